"""Section of a job file about the training schedule and the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from liver_slurm.config.types import (
    Bytes,
    Count,
    Decay,
    Flag,
    FunctionName,
    Natural,
    NonNegative,
    PathText,
    Positive,
    Text,
)


@dataclass(frozen=True)
class TrainSection:
    """The training schedule and the optimizer. Each step's batch is the same in every layout."""

    steps: Count = 0
    """Optimizer steps of the whole run."""
    seq_length: Count = 0
    """Tokens of one sample."""
    micro_batch_size: Count = 1
    """Samples of one microbatch."""
    global_batch_size: Count = 0
    """Samples of one optimizer step, a multiple of micro_batch_size."""
    rampup_batch_size: tuple[Count, ...] = ()
    """Ramp of the global batch: ``[start, increment, samples]``, as Megatron's. It begins with ``start`` samples and
    grows by ``increment`` in equal parts of the first ``samples`` samples, until it is global_batch_size."""
    earlier_batches: tuple[tuple[Count, ...], ...] = ()
    """Batches of earlier steps: ``[step, global_batch_size]`` each for those until so many steps are completed, with
    the three numbers of rampup_batch_size behind where there was a ramp. A resumed run has those of the runs that it
    goes on from, whatever is written here, so that it takes each sample once."""
    lr: Positive = 3e-4
    """Peak learning rate."""
    min_lr: NonNegative = 0.0
    """Learning rate at the end of the decay."""
    lr_warmup_steps: Natural = 0
    """Steps of linear warm-up."""
    lr_decay_style: Literal["cosine", "linear", "constant", "inverse-square-root", "wsd"] = "cosine"
    """Shape of the learning rate's decay. ``wsd``: warm-up, stable, decay."""
    lr_decay_steps: Count | None = None
    """Step at which the learning rate reaches min_lr. Default: steps. ``constant`` never does."""
    lr_wsd_decay_steps: Count | None = None
    """Steps of the decay at the end of ``wsd``. Default: a tenth of lr_decay_steps."""
    lr_wsd_decay_style: Literal["exponential", "linear", "cosine", "minus-sqrt"] = "exponential"
    """Shape of that decay."""
    optimizer: Literal["adam", "sgd", "muon"] = "adam"
    """What makes the updates: ``adam`` is AdamW, ``sgd`` has a momentum, ``muon`` orthogonalises the momentum of
    matrices and is AdamW for all else, which takes a plain optimizer, not a distributed one. See docs/models.md."""
    weight_decay: NonNegative = 0.01
    """Weight decay, applied to matrices only; ``sgd`` adds it to the gradient, others decouple it."""
    no_weight_decay: tuple[Text, ...] = ()
    """Tensors without weight decay besides vectors and biases, as patterns of their names such as ``embedding.*``;
    ``plan --json`` lists the names, which are the same in every layout."""
    adam_beta1: Decay = 0.9
    """Decay rate of Adam's first moment."""
    adam_beta2: Decay = 0.95
    """Decay rate of Adam's second moment."""
    adam_eps: Positive = 1e-8
    """Adam's epsilon."""
    sgd_momentum: Decay = 0.9
    """Factor of ``sgd``'s momentum."""
    muon_momentum: Decay = 0.95
    """Decay rate of ``muon``'s momentum."""
    muon_nesterov: Flag = True
    """Look a step ahead with it (Nesterov)."""
    muon_ns_steps: Count = 5
    """Newton-Schulz steps that orthogonalise it, a multiple of 5, which there are coefficients for."""
    muon_scale: Positive = 0.2
    """Factor of ``muon``'s updates besides the square root of the matrix' longer side; with 0.2 they are about as large
    as AdamW's, so that lr is for both."""
    moments_precision: Literal["fp32", "bf16"] = "fp32"
    """What the optimizer's moments are kept in. With bf16 they take half of the memory: they are updated in fp32 and
    rounded to the nearest, and what decays by less than 1/256 in a step would never fall, so decay rates of 0.996 and
    more are refused."""
    ema_decay: Decay = 0.0
    """Decay rate of an exponential moving average of the fp32 weights, such as 0.999, which each update brings so much
    less of the weights; ``evaluate --ema`` and ``export hf --ema`` take it. 0: none is kept."""
    z_loss_coeff: NonNegative = 0.0
    """Weight of the z-loss, the square of the logarithm of the softmax's denominator, which keeps logits from drifting;
    0 turns it off. The loss in the metrics is without it."""
    most_skipped: Natural = 100
    """Steps in a row whose loss or gradient may be not finite; such a step changes nothing. After so many the run
    fails, as more will not help; 0 sets no limit."""
    clip_grad: NonNegative = 1.0
    """Global gradient norm above which gradients are clipped; 0 turns clipping off."""
    start_from: PathText | None = None
    """Checkpoint to begin with at step 0 instead of with weights drawn from the seed: what ``liver-slurm import`` made,
    or the folder step-N of another run's checkpoint. It is of the same model, in any layout and precision."""
    start_optimizer: Literal["fresh", "loaded"] = "fresh"
    """The optimizer's moments at the start from such a checkpoint: ``fresh`` ones, of zeros, or ``loaded`` from it."""
    seed: Natural = 1234
    """Seed of the initial weights and of the order of samples."""
    compile: Flag = True
    """Compile the layers' forward and backward passes on GPUs; costs seconds at the start of each worker."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations to compute again in the backward pass: ``selective`` those of MLPs, ``full`` those of all layers."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of weights and activations. With bf16, master weights stay fp32, and moments as moments_precision
    says."""
    fp8: Flag = False
    """Compute the matrix products of layers in FP8, with bf16 for the rest: E4M3 forward and E5M2 for gradients, each
    tensor scaled by its own greatest magnitude. For cards of compute capability 8.9 and above, such as H100. See
    docs/models.md."""
    distributed_optimizer: Flag = True
    """Shard the optimizer state over data parallel ranks, as ZeRO stage 1 does."""
    loop: FunctionName | None = None
    """Function ``package.module:function`` with a training loop of your own in PyTorch. Its model, data and optimizer
    are its own: [model], [data], [validation] and the other keys of the optimizer have no use with it. See
    docs/your-loop.md."""
    peak_tflops: Positive | None = None
    """Dense bf16 TFLOP/s that one GPU can do at most, for MFU. Default: from a table, by the GPU's name."""
    gpu_memory: Bytes | None = None
    """Memory of one GPU, such as "80GiB": layouts of which a rank needs more are refused before anything queues, and
    left out with ``auto``. Default: that of gpu_type, where its name tells it (h100, a100-80gb); else all fit."""

    @property
    def replayed(self) -> bool:
        """Return whether who has state and gradients of some elements can update them as the optimizer does."""
        return self.optimizer != "muon"

    @property
    def wsd_decay_steps(self) -> int:
        """Steps of the decay of ``wsd``."""
        return self.lr_wsd_decay_steps or max((self.lr_decay_steps or self.steps) // 10, 1)
