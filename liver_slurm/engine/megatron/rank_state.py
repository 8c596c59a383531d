"""One rank's model and optimizer in one world, as megatron-core's objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.megatron.attention_dropout import AttentionDropout
from liver_slurm.engine.megatron.batches import Batches
from liver_slurm.engine.megatron.dropout import Dropout
from liver_slurm.engine.megatron.model import named_parameters
from liver_slurm.engine.megatron.optimizer import OptimizerState
from liver_slurm.engine.megatron.spec import shard_spec_of
from liver_slurm.parallel.groups import ProcessGroups
from liver_slurm.reshard.shard_spec import ShardSpec


@dataclass
class RankState:
    """megatron-core's objects behind one rank's share of a world: what the modules of this package work on."""

    config: JobConfig
    world: ProcessGroups
    device: torch.device
    groups: Any
    """The world's ``ProcessGroupCollection``."""
    transformer: Any
    """megatron's ``TransformerConfig``."""
    chunks: list[Any]
    """``DistributedDataParallel`` around each of the chunks of the model, in their order."""
    optimizer: Any
    """megatron's ``ChainedOptimizer``."""
    pipeline: Any
    """``P2PCommunicator`` between pipeline stages."""
    gradients_used: bool = False
    """A backward pass may have added to the gradient buffers, which start as zeros."""
    final_norm: float | None = None
    """Norm of the gradients while they are final and their update is not begun; None: they are not, or it is."""
    torn: bool = False
    """An update has begun and has not ended: some of the state has it, some may not."""
    gradients_final: Callable[[int, bool], None] | None = None
    """Called in each step between clipping and the update; see
    :meth:`liver_slurm.engine.api.TrainingShard.when_gradients_are_final`."""
    computing: bool = False
    """See :attr:`liver_slurm.engine.api.TrainingShard.computing`."""
    before_zeroing: Callable[[], None] | None = None
    """Called by a step that begins, before it zeroes the gradients."""

    @cached_property
    def batches(self) -> Batches:
        """This rank's part of each step's batch."""
        layout, place = self.world.layout, self.world.place
        return Batches(self.config.train, layout, place.dp, self.device)

    @cached_property
    def dropout(self) -> Dropout:
        """What makes the streams of this rank's microbatches."""
        return Dropout(self.config, self.world, self.device)

    @cached_property
    def attention_dropout(self) -> AttentionDropout:
        """What makes the streams of their attention weights."""
        return AttentionDropout(self.config, self.world, self.device)

    @cached_property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The chunks' parameters, by the names that :attr:`spec` has for them."""
        return named_parameters(self.chunks)

    @cached_property
    def spec(self) -> ShardSpec:
        """Parameters that the model holds; see :func:`liver_slurm.engine.megatron.spec.shard_spec_of`."""
        layout = self.world.layout
        part, _ = layout.shard_key(self.world.rank)
        return shard_spec_of(self.chunks, self.config.train, layout, part)

    def inner_optimizers(self) -> Iterator[Any]:
        """Yield megatron's optimizers that hold parameters of this rank."""
        for optimizer in self.optimizer.chained_optimizers:
            if not optimizer.is_stub_optimizer:
                yield optimizer

    def zero_gradients(self) -> None:
        """Zero the gradient buffers for a step that begins.

        A world's first step skips this, as its buffers are new and training stands still until that step has begun.
        """
        if self.before_zeroing is not None:
            self.before_zeroing()
        if self.gradients_used:
            for chunk in self.chunks:
                chunk.zero_grad_buffer()
            self.optimizer.zero_grad()
        self.gradients_used = True

    def optimizer_states(self) -> list[OptimizerState]:
        """Return the state of each optimizer that holds parameters of this rank."""
        return [OptimizerState(optimizer.optimizer) for optimizer in self.inner_optimizers()]

    def set_step(self, step: int) -> None:
        """Set the optimizer's step counters to ``step`` completed updates."""
        for each in self.optimizer_states():
            each.step = step

    def steps(self) -> set[int]:
        """Return the step counters, as a set: one value, unless something went wrong.

        The set is empty where nothing is trained.
        """
        return {step for each in self.optimizer_states() if (step := each.step) is not None}
