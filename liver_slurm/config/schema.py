"""The job file: sections and keys. Model and training keys carry megatron-core's names, so a config carries over.

Each key is a field; the string after it is its documentation, and the reference of all keys is generated from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from liver_slurm.config.types import (
    Bytes,
    Count,
    Decay,
    Flag,
    FunctionName,
    LayoutText,
    Natural,
    NonNegative,
    OneOrNone,
    PathText,
    Positive,
    RunName,
    Seconds,
    Share,
    SlurmMemory,
    SlurmSignal,
    SlurmTime,
    Text,
    TokenizerText,
)


@dataclass(frozen=True)
class JobSection:
    """Names of the run, and how long its parts wait for each other."""

    name: RunName = "liver"
    """Name of the run: in squeue, and the first part of the run directory's name."""
    run_root: PathText = "runs"
    """Folder that run directories are made in; must be on a file system that all nodes share."""
    heartbeat: Seconds = 1.0
    """How often each worker tells the coordinator that it lives."""
    lost_after: Seconds = 30.0
    """A worker that has been silent for so long is lost."""
    orphan_timeout: Seconds = 600.0
    """Workers whose coordinator stays away for so long write a checkpoint and end."""
    prepare_timeout: Seconds = 300.0
    """A target world that is not ready after so long is given up."""
    start_timeout: Seconds = 900.0
    """The run fails if its live workers have not all registered after so long."""


@dataclass(frozen=True)
class ModelSection:
    """The GPT to train."""

    num_layers: Count = 0
    """Transformer layers."""
    hidden_size: Count = 0
    """Width of the residual stream."""
    num_attention_heads: Count = 0
    """Attention heads; a layout's tp must divide them."""
    ffn_hidden_size: Count | None = None
    """Width of the MLP; default: 4 × hidden_size."""
    num_query_groups: Count | None = None
    """Key/value heads of grouped-query attention; default: num_attention_heads."""
    kv_channels: Count | None = None
    """Width of one head; default: hidden_size / num_attention_heads."""
    vocab_size: Count | None = None
    """Vocabulary; default: the tokenizer's. May be larger than the tokenizer's, not smaller."""
    share_embeddings_and_output_weights: Flag = True
    """Tie the output layer to the input embedding."""
    normalization: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    """Kind of normalization."""
    layernorm_epsilon: Positive = 1e-5
    """Epsilon of the normalization."""
    gated_linear_unit: Flag = True
    """Gated MLP (SwiGLU with activation_func silu)."""
    activation_func: Literal["silu", "gelu", "relu"] = "silu"
    """Activation of the MLP."""
    add_bias_linear: Flag = False
    """Biases in linear layers."""
    add_qkv_bias: Flag = False
    """Bias in the fused query/key/value projection only."""
    rotary_base: Count = 10000
    """Base of the rotary position embedding."""
    rotary_percent: Share = 1.0
    """Share of each head that is rotated."""
    init_method_std: Positive = 0.02
    """Standard deviation of initial weights."""
    provider: FunctionName | None = None
    """Your own model: ``package.module:function``, see docs/models.md; the keys above are handed to it."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of megatron-core's TransformerConfig, passed through as they are."""


@dataclass(frozen=True)
class DataSection:
    """What to train on."""

    paths: tuple[PathText, ...] = ()
    """Text files, folders, or .bin/.idx prefixes; ``$PYTHON_STDLIB`` and environment variables are expanded."""
    tokenizer: TokenizerText = "byte"
    """``byte``, or the path of a Hugging Face ``tokenizer.json``."""
    provider: FunctionName | None = None
    """Your own data: ``package.module:function``, see docs/models.md."""


@dataclass(frozen=True)
class TrainSection:
    """How to train. The global batch is constant whatever the layout."""

    steps: Count = 0
    """Optimizer steps of the whole run."""
    seq_length: Count = 0
    """Tokens of one sample."""
    micro_batch_size: Count = 1
    """Samples of one microbatch."""
    global_batch_size: Count = 0
    """Samples of one step; a multiple of micro_batch_size."""
    lr: Positive = 3e-4
    """Peak learning rate."""
    min_lr: NonNegative = 0.0
    """Learning rate at the end of the decay."""
    lr_warmup_steps: Natural = 0
    """Steps of linear warm-up."""
    lr_decay_style: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay."""
    lr_decay_steps: Count | None = None
    """Step at which min_lr is reached; default: steps."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay, on matrices only."""
    adam_beta1: Decay = 0.9
    """Adam's first-moment decay."""
    adam_beta2: Decay = 0.95
    """Adam's second-moment decay."""
    adam_eps: Positive = 1e-8
    """Adam's epsilon."""
    clip_grad: NonNegative = 1.0
    """Global gradient norm to clip at; 0: no clipping."""
    seed: Natural = 1234
    """Initial weights and the order of samples are functions of it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Weights and activations; bf16 keeps fp32 masters and moments."""
    distributed_optimizer: Flag = True
    """Shard optimizer state over data parallel ranks."""


@dataclass(frozen=True)
class ComponentSection:
    """One component of workers in the live het job, or the resources of a standby job."""

    nodes: Count = 1
    """Nodes of the component."""
    tasks_per_node: Count = 1
    """Workers a node."""
    cpus_per_task: Count = 1
    """CPUs a worker."""
    gpus_per_task: OneOrNone = 0
    """GPUs a worker: 0 or 1."""
    mem: SlurmMemory | None = None
    """Memory a node, as Slurm's --mem."""
    constraint: Text | None = None
    """Node features, as Slurm's --constraint."""
    exclude: Text | None = None
    """Nodes to keep away from, as Slurm's --exclude."""
    partition: Text | None = None
    """Partition of this component; default: live.partition."""


@dataclass(frozen=True)
class LiveSection:
    """The guaranteed part: one heterogeneous Slurm job."""

    partition: Text | None = None
    """Partition of the live workers."""
    coordinator_partition: Text | None = None
    """Partition of the coordinator's one CPU task; default: live.partition."""
    time: SlurmTime = "24:00:00"
    """Time limit of the live job, as Slurm's --time."""
    account: Text | None = None
    """Slurm account."""
    qos: Text | None = None
    """Slurm QOS."""
    requeue: Flag = True
    """Slurm may start the live job again (scontrol requeue, preemption in REQUEUE mode): the run then goes on from its
    newest checkpoint in the same run directory. False: such a job ends, and the run with it."""
    successor: Flag = True
    """Before the time limit submit the same job again, to which the run moves over while it trains. False: a checkpoint
    is written before the limit, and the run ends."""
    successor_lead: Seconds | None = None
    """How long before the time limit that is; default: a tenth of it, 10 minutes at least, at most half of it."""
    setup: tuple[Text, ...] = ()
    """Shell lines to run before each of the job's processes: module load, exports."""
    python: Text | None = None
    """Python interpreter on the nodes; default: the one that submits."""
    component: tuple[ComponentSection, ...] = (ComponentSection(),)
    """Worker components, each [[live.component]]; together they are one world."""


@dataclass(frozen=True)
class UnitSection:
    """One size of standby job, where there are several; a key that is left out is as in [standby]."""

    nodes_per_job: Count | None = None
    """Nodes of one standby job."""
    tasks_per_node: Count | None = None
    """Workers a node."""
    cpus_per_task: Count | None = None
    """CPUs a worker."""
    gpus_per_task: OneOrNone | None = None
    """GPUs a worker: 0 or 1."""
    mem: SlurmMemory | None = None
    """Memory a node, as Slurm's --mem."""
    constraint: Text | None = None
    """Node features, as Slurm's --constraint."""
    exclude: Text | None = None
    """Nodes to keep away from, as Slurm's --exclude."""
    partitions: tuple[Text, ...] | None = None
    """Scavenger partitions for this size, best first."""
    max_jobs: Natural | None = None
    """Standby jobs of this size at most; all together never more than standby.max_jobs."""


@dataclass(frozen=True)
class StandbySection:
    """The reclaimable part: ordinary jobs, one per unit."""

    partitions: tuple[Text, ...] = ()
    """Scavenger partitions to watch, best first."""
    max_jobs: Natural = 0
    """Standby jobs at most; 0: the run is never resized by capacity."""
    launch: Literal["probe", "queue"] = "probe"
    """When standby jobs are submitted. ``probe``: only where nodes are idle right now; nothing of the run waits in the
    queue, and a job that does not start is taken back. For partitions that are often idle, and where waiting jobs are
    counted or frowned upon. ``queue``: as many as are useful wait in the queue, and Slurm starts each as soon as there
    is room. For partitions where other jobs wait too: there, a node is never seen idle."""
    nodes_per_job: Count = 1
    """Nodes of one standby job."""
    tasks_per_node: Count = 1
    """Workers a node."""
    cpus_per_task: Count = 1
    """CPUs a worker."""
    gpus_per_task: OneOrNone = 0
    """GPUs a worker: 0 or 1."""
    mem: SlurmMemory | None = None
    """Memory a node, as Slurm's --mem."""
    constraint: Text | None = None
    """Node features, as Slurm's --constraint."""
    exclude: Text | None = None
    """Nodes to keep away from, as Slurm's --exclude."""
    time: SlurmTime = "4:00:00"
    """Time limit of a standby job; finite, because backfill plans with it."""
    account: Text | None = None
    """Slurm account; default: live.account."""
    qos: Text | None = None
    """Slurm QOS of standby jobs."""
    signal: SlurmSignal | None = None
    """Warning signal before the time limit, as Slurm's --signal, e.g. ``USR2@60``."""
    policy: Text = "greedy"
    """When to grow: ``greedy`` as soon as it makes a step faster; ``hysteresis`` only by workers that have stayed for
    ``hold``; ``cost-aware`` if the time that it saves while they may be expected to stay exceeds its measured cost; or
    the name of a policy of another package (entry-point group ``liver_slurm.policies``)."""
    hold: Seconds = 60.0
    """A node that stays for less is not worth the trouble: policy ``hysteresis`` waits so long, a standby job that
    nothing has had use for for so long is ended, and a standby job that was taken sooner counts for ``back_off``."""
    back_off: Seconds = 30.0
    """How long a partition that has taken three standby jobs in a row within ``hold`` is left alone; doubled with each
    further one, up to an hour."""
    expected_life: Seconds = 900.0
    """How long policy ``cost-aware`` expects a standby job to stay as long as it has seen none go."""
    unit: tuple[UnitSection, ...] = ()
    """Standby jobs of several sizes, each [[standby.unit]]; the largest that is still useful is started first, of equal
    ones the one that is listed first. Default: one size, that of [standby]."""
    poll: Seconds = 2.0
    """How often Slurm is asked for idle capacity and the state of standby jobs, if ``queries_per_minute`` allows."""
    queries_per_minute: Positive = 12.0
    """Questions to slurmctld a minute at most, however many standby jobs there are. A look at the supply takes four
    with one partition, and two more for each further one, and one at the live job two a minute, so the default gives a
    look in 24 seconds."""
    grace: Seconds | None = None
    """How long a worker has after a notice that does not say; default: from the cluster's GraceTime and KillWait."""


@dataclass(frozen=True)
class ElasticSection:
    """Which layouts the run may take."""

    layouts: tuple[LayoutText, ...] | Literal["auto"] = "auto"
    """Allowed layouts, or ``auto``: every layout that the model can have, chosen by the cost model."""
    initial: LayoutText | None = None
    """First layout; default: chosen like any other for the live workers."""
    max_workers: Count | None = None
    """Workers in a world at most."""
    max_tp: Count | None = None
    """Bound for ``auto``; default: workers of one node."""
    settle: Seconds = 1.0
    """How long new standbys are waited for together before the world grows."""


@dataclass(frozen=True)
class StreamSection:
    """How state moves."""

    mode: Literal["overlap", "pause"] = "overlap"
    """``overlap``: state moves while training runs, and is kept current where it arrives. ``pause``: training stands
    still while state moves."""
    transport: Literal["auto", "gloo", "nccl", "tcp", "shm", "ucx"] = "auto"
    """What carries it; auto: nccl between GPUs in the pause, otherwise shared memory within a machine and tcp between
    machines. shm: an error if two peers are on different machines. nccl beside training: as auto. ucx: needs the extra
    ``[ucx]``."""
    staging_bytes: Bytes = 16 << 20
    """Staging memory of one worker."""
    memory_limit: Bytes | None = None
    """Memory that weights, masters, moments and gradient buffers of the old and the new world, staging and staged
    gradients may take on one worker during a resize; default: no limit. Layers that do not fit move in the pause."""
    interface: Text | None = None
    """Network interface for collectives and state, e.g. ``ib0``; default: chosen by gloo and NCCL."""


@dataclass(frozen=True)
class CheckpointSection:
    """Checkpoints: a second line of defence, never part of a resize."""

    every: Natural = 0
    """Steps between checkpoints; 0: none in between."""
    keep: Natural = 2
    """Checkpoints that are kept, newest first; 0: all."""
    at_end: Flag = True
    """Write one after the last step."""
    asynchronous: Flag = True
    """Write beside training, from a copy of the state. One that is due while another is written comes after it."""


@dataclass(frozen=True)
class JobConfig:
    """A whole, validated job file."""

    job: JobSection = JobSection()
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    live: LiveSection = LiveSection()
    standby: StandbySection = StandbySection()
    elastic: ElasticSection = ElasticSection()
    stream: StreamSection = StreamSection()
    checkpoint: CheckpointSection = CheckpointSection()
