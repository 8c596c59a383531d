"""The job file: sections and keys. Model and training keys carry megatron-core's names, so a config carries over.

Each key is a field. The string after it is its description, which users read in configs/reference.toml.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from liver_slurm.config.data import DataSection as DataSection
from liver_slurm.config.model import ModelSection as ModelSection
from liver_slurm.config.outside import NotifySection, PrometheusSection
from liver_slurm.config.recovery import RecoverySection as RecoverySection
from liver_slurm.config.train import TrainSection as TrainSection
from liver_slurm.config.types import (
    Bytes,
    Count,
    Decay,
    Flag,
    LayoutText,
    Natural,
    OneOrNone,
    PathText,
    Positive,
    RunName,
    Seconds,
    SlurmMemory,
    SlurmSignal,
    SlurmTime,
    Text,
)
from liver_slurm.config.validation import ValidationSection


@dataclass(frozen=True)
class JobSection:
    """The run's name and place, and how long its parts wait for each other."""

    name: RunName = "liver"
    """Name of the run, shown by squeue; the run directory's name begins with it."""
    run_root: PathText = "runs"
    """Folder in which run directories are made. It must be on a file system that all nodes share."""
    heartbeat: Seconds = 1.0
    """Time between two heartbeats of a worker to the coordinator; more in a run of over a thousand workers."""
    lost_after: Seconds = 30.0
    """Time without a heartbeat after which a worker counts as lost, and after which a step that all members compute is
    given up, if it has taken twenty usual ones."""
    orphan_timeout: Seconds = 600.0
    """Time without a coordinator after which workers write a checkpoint and end."""
    prepare_timeout: Seconds = 300.0
    """Time that a target world may take to prepare; after it the reconfiguration is aborted."""
    start_timeout: Seconds = 900.0
    """Time that guaranteed workers may take to register when the run starts; after it the run fails. A standby job that
    runs for so long without a worker that is ready is ended, and counts as one that failed."""
    staging: Flag = False
    """The run is there to be tried: ``liver-slurm chaos`` injects faults into it without ``--yes``."""


@dataclass(frozen=True)
class ComponentSection:
    """One component of workers in the guaranteed job."""

    nodes: Count = 1
    """Nodes of the component."""
    tasks_per_node: Count = 1
    """Workers on each node."""
    cpus_per_task: Count = 1
    """CPUs of each worker."""
    gpus_per_task: OneOrNone = 0
    """GPUs of each worker, 0 or 1."""
    gpu_type: Text | None = None
    """Type of these GPUs, as in Slurm's --gres=gpu:TYPE:N."""
    mem: SlurmMemory | None = None
    """Memory on each node, as Slurm's --mem."""
    constraint: Text | None = None
    """Required node features, as Slurm's --constraint."""
    exclude: Text | None = None
    """Nodes that must not be used, as Slurm's --exclude."""
    partition: Text | None = None
    """Partition of this component. Default: live.partition."""


@dataclass(frozen=True)
class LiveSection:
    """The guaranteed part of the run: one heterogeneous Slurm job with the coordinator and the guaranteed workers."""

    partition: Text | None = None
    """Partition of the guaranteed workers. Default: Slurm's default partition."""
    coordinator_partition: Text | None = None
    """Partition of the coordinator, which is one task on one CPU. Default: live.partition."""
    time: SlurmTime = "24:00:00"
    """Time limit of the guaranteed job, as Slurm's --time."""
    account: Text | None = None
    """Slurm account of the guaranteed job."""
    qos: Text | None = None
    """Slurm QOS of the guaranteed job."""
    sbatch: tuple[Text, ...] = ()
    """Further options of sbatch for each component, such as ``--reservation=NAME`` and ``--exclusive``."""
    requeue: Flag = True
    """Let Slurm requeue the guaranteed job (scontrol requeue, preemption in REQUEUE mode). The run then resumes from
    its newest checkpoint in the same run directory. If false, the run ends with the job."""
    successor: Flag = True
    """Submit the same job again before the time limit and move the run over to it while it trains. If false, the run
    writes a checkpoint before the limit and ends."""
    successor_lead: Seconds | None = None
    """Time before the limit at which the successor is submitted. Default: a tenth of the limit, but at least 10 minutes
    and at most half of the limit."""
    setup: tuple[Text, ...] = ()
    """Shell lines to run before each of the job's processes, such as ``module load`` and ``export``."""
    python: Text | None = None
    """Python interpreter on the nodes. Default: the one that submits the job."""
    component: tuple[ComponentSection, ...] = (ComponentSection(),)
    """Worker components, one [[live.component]] each. Their workers train together as one world."""


@dataclass(frozen=True)
class UnitSection:
    """One size of standby job, where there are several. A key that is left out has its value from [standby]."""

    nodes_per_job: Count | None = None
    """Nodes of each standby job."""
    tasks_per_node: Count | None = None
    """Workers on each node."""
    cpus_per_task: Count | None = None
    """CPUs of each worker."""
    gpus_per_task: OneOrNone | None = None
    """GPUs of each worker, 0 or 1."""
    gpu_type: Text | None = None
    """Type of these GPUs, as in Slurm's --gres=gpu:TYPE:N."""
    mem: SlurmMemory | None = None
    """Memory on each node, as Slurm's --mem."""
    constraint: Text | None = None
    """Required node features, as Slurm's --constraint."""
    exclude: Text | None = None
    """Nodes that must not be used, as Slurm's --exclude."""
    partitions: tuple[Text, ...] | None = None
    """Reclaimable partitions for this size, best first."""
    max_jobs: Natural | None = None
    """Maximum number of standby jobs of this size. All sizes together never exceed standby.max_jobs."""


@dataclass(frozen=True)
class StandbySection:
    """The reclaimable part of the run: ordinary Slurm jobs of one size, or of several."""

    partitions: tuple[Text, ...] = ()
    """Reclaimable (scavenger) partitions, best first."""
    max_jobs: Natural = 0
    """Maximum number of standby jobs. With 0 the run never grows or shrinks with idle capacity."""
    spares: Natural = 0
    """Workers that are held although they make no step faster, so that one that is lost is replaced at once. With 0 no
    reclaimable node is held that does not make the run faster."""
    launch: Literal["probe", "queue"] = "probe"
    """When standby jobs are submitted. ``probe`` submits only where nodes are idle right now and cancels a job that
    does not start; it suits partitions that are often idle, and sites that limit waiting jobs. ``queue`` lets jobs
    that are useful wait in the queue, 64 at most or as many as run, and Slurm starts each as soon as there is room; it
    suits partitions where other jobs wait too, so that no node is ever seen idle. While others take nodes back, what
    waits stays in the queue for some seconds (its StartTime is set), so that it takes none of them first."""
    nodes_per_job: Count = 1
    """Nodes of each standby job."""
    tasks_per_node: Count = 1
    """Workers on each node."""
    cpus_per_task: Count = 1
    """CPUs of each worker."""
    gpus_per_task: OneOrNone = 0
    """GPUs of each worker, 0 or 1."""
    gpu_type: Text | None = None
    """Type of these GPUs, as in Slurm's --gres=gpu:TYPE:N."""
    mem: SlurmMemory | None = None
    """Memory on each node, as Slurm's --mem."""
    constraint: Text | None = None
    """Required node features, as Slurm's --constraint."""
    exclude: Text | None = None
    """Nodes that must not be used, as Slurm's --exclude."""
    time: SlurmTime = "4:00:00"
    """Time limit of each standby job, as Slurm's --time. It must be finite, because Slurm's backfill plans with it."""
    account: Text | None = None
    """Slurm account of standby jobs. Default: live.account."""
    qos: Text | None = None
    """Slurm QOS of standby jobs."""
    sbatch: tuple[Text, ...] = ()
    """Further options of sbatch for each standby job, as ``live.sbatch``."""
    signal: SlurmSignal | None = None
    """Signal that Slurm sends before the time limit, as its --signal, such as ``USR2@60``."""
    policy: Text = "greedy"
    """When to grow. ``greedy`` grows as soon as it makes a step faster. ``hysteresis`` uses only workers that have
    stayed for ``hold``. ``cost-aware`` grows if the time saved while the workers are expected to stay exceeds the
    measured cost of growing. ``explore`` leaves what is on offer with a stated chance, so that it can be learned from;
    ``advisor`` does what was learned. A package can add further policies under the entry-point group
    ``liver_slurm.policies``."""
    hold: Seconds = 60.0
    """Time that a standby must stay to be worth using. Policy ``hysteresis`` waits this long before it grows, a standby
    job that has been idle this long is cancelled, and one that Slurm takes back sooner counts towards ``back_off``."""
    back_off: Seconds = 30.0
    """Time for which a partition is left alone after it has taken back three standby jobs in a row within ``hold``, if
    the mean life of all that run and were taken meanwhile is below that, too; and after some have ended by themselves
    before a worker was ready, three times in a row. It doubles with each further time, up to an hour; after failures
    one job at a time is tried."""
    expected_life: Seconds = 900.0
    """Time that policy ``cost-aware`` expects a standby job to stay, until it has seen one go."""
    explore: Decay = 0.2
    """Chance that policy ``explore`` leaves what is on offer; otherwise it takes it."""
    commit: Seconds = 900.0
    """Time for which the partitions of standby jobs rest that policy ``explore`` or ``advisor`` has left."""
    advisor: PathText | None = None
    """File that ``liver-slurm advisor fit`` has written, for policy ``advisor``."""
    unit: tuple[UnitSection, ...] = ()
    """Sizes of standby jobs, one [[standby.unit]] each. The largest that is still useful is started first; of equal
    ones the one that is listed first. Default: one size, that of [standby]."""
    poll: Seconds = 2.0
    """Least time between two polls of idle capacity and of standby jobs' state, if ``queries_per_minute`` allows."""
    queries_per_minute: Positive = 12.0
    """Maximum number of queries to slurmctld in a minute, however many standby jobs there are. A poll of capacity takes
    four queries, and two more for each further partition; watching the guaranteed job takes two a minute. The default
    gives one poll in 24 seconds."""
    grace: Seconds | None = None
    """Time that a worker has after a notice that names no deadline. Default: from the cluster's GraceTime and
    KillWait."""


@dataclass(frozen=True)
class ElasticSection:
    """The layouts that the run may take."""

    layouts: tuple[LayoutText, ...] | Literal["auto"] = "auto"
    """Allowed layouts, or ``auto`` for every layout that the model can have; the cost model chooses among them."""
    initial: LayoutText | None = None
    """First layout. Default: chosen for the guaranteed workers like any other."""
    max_workers: Count | None = None
    """Maximum number of workers in a world."""
    max_tp: Count | None = None
    """Largest tp that ``auto`` considers. Default: the number of workers on one node; with train.loop 1."""
    max_cp: Count = 1
    """Largest context parallel size that `auto` considers: the ranks that divide one sequence's tokens among them."""
    max_vpp: Count = 1
    """Most chunks of layers a pipeline stage that `auto` considers: with several, stages idle less and send more."""
    max_ep: Count = 1
    """Largest expert parallel size that `auto` considers: the ranks that experts are divided over."""
    max_etp: Count | None = None
    """Largest expert tensor parallel size that `auto` considers, from 1 on: the ranks that each expert is cut over.
    Default: tp, and no other."""
    settle: Seconds = 1.0
    """Time to wait for further standbys before the world grows, so that several join at once."""


@dataclass(frozen=True)
class StreamSection:
    """How state moves between workers in a reconfiguration."""

    mode: Literal["overlap", "pause", "flat"] = "overlap"
    """``overlap`` moves the state while training runs and keeps it current where it arrives. ``pause`` stops training
    while the state moves. ``flat`` stops it, too, and moves the state to host memory: the new world is built once the
    old one has made room on the card, so a card never has more than one of them. Where both have no room on the cards
    the other modes do the same."""
    transport: Literal["auto", "gloo", "nccl", "tcp", "shm", "ucx"] = "auto"
    """How a worker reads the state of another. With ``auto``, from the other's memory on the same machine (CUDA IPC on
    GPUs, memory that it maps on CPUs), else through nixl (UCX) where it is installed and works, else over TCP. ``shm``
    is memory only, and an error if two peers are on different machines; ``tcp`` is TCP only; ``ucx`` is nixl only and
    needs the extra ``[ucx]``. ``gloo`` and ``nccl`` are old names of ``auto``."""
    staging_bytes: Bytes = 16 << 20
    """Maximum staging memory of each worker."""
    memory_limit: Bytes | None = None
    """Maximum memory on each worker during a reconfiguration: weights, master weights, moments and gradient buffers of
    both worlds, staging and staged gradients. Layers that do not fit move in the pause. Default: what the card has
    next to training; on CPUs no limit."""
    interface: Text | None = None
    """Network interface of sockets, such as ``ib0``: of the control channel, gloo, NCCL's start and state over TCP. The
    coordinator's node must have it, too. RDMA devices are chosen by NCCL_IB_HCA and UCX_NET_DEVICES. Variables
    NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME override it. Default: the choice of gloo and NCCL."""


@dataclass(frozen=True)
class CheckpointSection:
    """Checkpoints, a second line of defence; a reconfiguration never needs one."""

    every: Natural | None = None
    """Steps between two checkpoints; with 0 none is written on the way. Default: after 5 to 60 minutes, by what one
    costs this run and how often so many workers may be expected to fail."""
    keep: Natural = 2
    """Number of newest checkpoints to keep; 0 keeps all."""
    copy_to: PathText | None = None
    """Folder, best on another file system, to which each checkpoint is copied while training goes on, under the run
    directory's name. A run goes on from a copy where its own checkpoint is damaged or gone."""
    at_end: Flag = True
    """Write a checkpoint after the last step."""
    asynchronous: Flag = True
    """Write checkpoints in the background, from a copy of the state. One that is due while another is being written
    comes after it."""


@dataclass(frozen=True)
class JobConfig:
    """A whole job file."""

    job: JobSection = JobSection()
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    validation: ValidationSection = field(default_factory=ValidationSection)
    train: TrainSection = field(default_factory=TrainSection)
    live: LiveSection = LiveSection()
    standby: StandbySection = StandbySection()
    elastic: ElasticSection = ElasticSection()
    stream: StreamSection = StreamSection()
    checkpoint: CheckpointSection = CheckpointSection()
    recovery: RecoverySection = field(default_factory=RecoverySection)
    prometheus: PrometheusSection = field(default_factory=PrometheusSection)
    notify: NotifySection = field(default_factory=NotifySection)
