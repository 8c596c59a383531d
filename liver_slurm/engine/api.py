"""The interface between a training engine and the rest of the product.

The worker drives an engine through :class:`Engine` and :class:`TrainingShard`; the transfer engine moves state through
the box types and :class:`~liver_slurm.engine.replica.Updates` of :mod:`liver_slurm.engine.replica`. Nothing else of an
engine is known outside its own package, so another engine (a training loop of the user's own, FSDP2) needs to implement
these protocols and nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.replica import (
    Boxes,
    LayerFilter,
    Replica,
    Updates,
    every_layer,
)
from liver_slurm.parallel.groups import ProcessGroups
from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.shard_spec import ShardSpec
from liver_slurm.rundir.paths import RunDir

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# ---- samples -------------------------------------------------------------------------------------------------------


class Samples(Protocol):
    """Training samples, addressed by their number in the run; ``data.provider`` returns one for a job."""

    def __len__(self) -> int:
        """Return the number of samples in one epoch."""

    def batch(self, first: int, count: int) -> NDArray[np.int64]:
        """Return the run's samples ``first`` to ``first + count - 1``, counted over all epochs.

        Returns: tokens, int64, [count, seq_length + 1]. A function of the arguments (and the job) alone: every rank
        asks for its own part of a step, in whatever layout.
        """


# ---- a training step -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepFlags:
    """Flags that one rank raises for all ranks; they are reduced (logical or) together with the step's loss."""

    stop: bool = False
    """All ranks end after this step."""
    save: bool = False
    """A checkpoint is due."""
    saving: bool = False
    """The last checkpoint is still being written."""
    unready: bool = False
    """A refresh of the rank's mirror after the next step would hold that up."""


NO_FLAGS = StepFlags()

Reached = Literal["nothing", "gradients", "torn"]
"""How far an interrupted step has come: the state is as it was before; so it is, and the gradients are final; or some
of the state may have the step's update, and some not."""


@dataclass(frozen=True)
class StepResult:
    """Result of one training step; the same on every rank of the world."""

    step: int
    loss: float
    """Mean loss a token over the global batch."""
    grad_norm: float
    lr: float
    tokens: int
    skipped: bool
    """The gradient was not finite, and the optimizer left the state as it was."""
    start: float
    """Start of the first forward pass, seconds since the epoch."""
    end: float
    """End of the optimizer step, seconds since the epoch."""
    flags: StepFlags
    """Flags that any rank has raised."""
    data_s: float = 0.0
    """How long this rank waited for its samples, in seconds. Unlike the rest it is not the same on every rank."""


class Evaluation(NamedTuple):
    """What a forward pass over some samples gives; the same on every rank of the world."""

    loss_sum: float
    """Over all tokens."""
    tokens: int
    interrupted: bool
    """A rank has asked that no further samples be evaluated now."""


# ---- the engine ----------------------------------------------------------------------------------------------------


class PendingWeights(Protocol):
    """Weights that are still being gathered from the data parallel group."""

    def wait(self) -> None:
        """Wait for all of them.

        Raises:
            RuntimeError: a peer is gone.
        """


class TrainingShard(Protocol):
    """One rank's share of a world's training state: model, optimizer, and the step that trains them."""

    @property
    def world(self) -> ProcessGroups:
        """The world that the shard is built for, with its process groups."""

    @property
    def spec(self) -> ShardSpec:
        """Parameters that the shard's model holds.

        Raises:
            PlanError: the model has state that cannot be described.
        """

    def boxes(self, chosen: LayerFilter = every_layer) -> Boxes:
        """Return every piece of state that this rank holds: weights, masters, moments.

        The order is that of :func:`liver_slurm.reshard.shard_spec.pieces`. A view stays valid as long as the shard
        exists; writing to it writes the state. The view of a moment that has no storage now is a meta tensor.
        """

    def replica(self, chosen: LayerFilter = every_layer) -> Replica:
        """Return the same state for worlds whose weights are derived from masters.

        One trained box stands for three pieces.
        """

    def tensors(self) -> Iterator[torch.Tensor]:
        """Return every tensor of the shard's state and gradients: what its memory is counted and freed by."""

    def moments(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Return the optimizer's moments with the layer that each belongs to; their storage can be resized."""

    def updates(self) -> Updates:
        """Return the shard's optimizer updates."""

    def steps(self) -> set[int]:
        """Return the optimizer's step counters, as a set: one value, unless something went wrong; or none."""

    def set_step(self, step: int) -> None:
        """Set the optimizer's step counters to ``step`` completed updates."""

    def share_storage(self, live: TrainingShard) -> None:
        """Keep parameters, masters and moments where the shard of the live world has the very same boxes.

        Costs neither time nor memory, and needs no rollback: this shard first writes to them in its first update, which
        comes after the commit.
        """

    def derive_weights(self, adam_step: int) -> PendingWeights:
        """Derive step counters and weights from masters and moments that have arrived; every member must call it."""

    def make_live(self) -> None:
        """Make the shard's world the one that this process's torch and the engine's globals refer to."""

    computing: bool
    """Whether the training thread computes a step right now, or waits for its peers in it: not for samples, for the
    commit, or for somebody's own code. Any thread may ask."""

    def train_step(
        self,
        samples: Samples,
        step: int,
        flags: StepFlags = NO_FLAGS,
        before_update: Callable[[float], None] | None = None,
    ) -> StepResult:
        """Run step ``step`` (0-based) of the run: forward, backward, gradient reduction, optimizer update.

        Args:
            flags: what this rank reports to all others.
            before_update: called between the backward pass and the update, with the start of the forward pass in
                seconds since the epoch; an exception that it raises ends the step with the state as it was.
        """

    def evaluate(self, samples: Samples, first: int, count: int, interrupt: bool) -> Evaluation:
        """Run a forward pass over the samples ``first`` to ``first + count - 1``; every member must call it.

        Args:
            samples: those of validation.
            first: number of the first sample.
            count: a multiple of ``train.micro_batch_size``.
            interrupt: what this rank reports to all others.
        """

    def when_gradients_are_final(self, call: Callable[[int, bool], None] | None) -> None:
        """Have ``call(step, finite)`` called in each step, by the thread that trains; None: no more.

        Gradients are reduced and clipped by then, and no rank has begun the update, nor can before all ranks' calls
        have returned. ``finite`` says whether there will be an update.
        """

    @property
    def reached(self) -> Reached:
        """How far a step has come that :meth:`train_step` has not ended, because a peer was lost."""

    def finish_update(self) -> None:
        """Make the update of an interrupted step whose gradients are final; no peer is needed for it.

        For a rank whose peers have begun theirs: :meth:`train_step` begins an update only when it knows that the
        gradients of every rank are final.
        """

    def overwritten(self, updates: int) -> None:
        """Note that what :meth:`replica` shows was written over with the state after ``updates`` optimizer updates.

        Weights do not follow, so nobody trains with this shard again, and :attr:`reached` is ``torn``: it is what other
        shards get their state from.
        """

    def clear_caches(self) -> None:
        """End what runs for a shard that is never used again, and drop what caches keep of it."""


class Engine(Protocol):
    """A training engine: builds shards, and knows what each rank of a layout will hold before it is built."""

    def build(self, config: JobConfig, world: ProcessGroups, device: torch.device, *, fresh: bool) -> TrainingShard:
        """Build this rank's shard of ``world``; all members must do so, at any pace.

        Args:
            fresh: initialise the weights from the seed. Otherwise values are undefined, for a target world that
                receives them, and moments have no storage until :class:`liver_slurm.engine.storage.Moments` gives it.
        """

    def rehearsal(self, config: JobConfig) -> JobConfig | None:
        """Return a small job of the same kind, of which a worker trains one step before it joins a world; None: nothing
        is trained before, and what can be imported is.

        Raises:
            BadInput: the job names something that cannot be imported.
        """

    def compile_layouts(self, config: JobConfig, device: torch.device) -> None:
        """Compile what any layout of the job may need, so that no first step of a world has to; before training."""

    def token_flops(self, config: JobConfig) -> float | None:
        """Return the floating-point operations that the model takes for one token, forward and backward; costs no
        memory.

        None: not known, as of a model of the user's own.
        """

    def shard_spec(self, config: JobConfig, layout: Layout, rank: int) -> ShardSpec:
        """Return the parameters that the model of one rank of a layout will hold; costs no memory."""

    def gradient_bucket(self, config: JobConfig, layout: Layout) -> int | None:
        """Return the elements of a bucket of gradients that replicas reduce beside the backward pass; None: all at its
        end.

        With the distributed optimizer it decides which replica owns what; see
        :class:`liver_slurm.reshard.shard_spec.WorldSpec`.
        """

    def open_samples(self, config: JobConfig, run_dir: RunDir) -> Samples:
        """Open the run's samples; text is prepared in the run directory first, once for all workers.

        Raises:
            BadInput: the data cannot be read, or a provider returns something else.
        """

    def open_validation(self, config: JobConfig, run_dir: RunDir) -> Samples | None:
        """Open the samples of validation, as :meth:`open_samples` does; None: the job has none."""
