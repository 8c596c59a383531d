"""Optimizer replay on megatron-core: views of trained state and gradients, hooks around updates, derived weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.boxes import owned_boxes, weight_boxes
from liver_slurm.engine.megatron.gather import Gather
from liver_slurm.engine.megatron.rank_state import RankState
from liver_slurm.engine.megatron.rounded import hyperparameters
from liver_slurm.engine.replica import Groups, LayerFilter, Replica, TrainedBox, every_layer
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.reshard.tensors import Piece


def replica_of(state: RankState, chosen: LayerFilter = every_layer) -> Replica:
    """Return the state of the chosen layers for worlds whose weights are derived from masters.

    See :meth:`liver_slurm.engine.api.TrainingShard.replica`.
    """
    trained: list[TrainedBox] = []
    fixed: list[tuple[Piece, torch.Tensor]] = []
    for param in filter(lambda param: chosen(param.layer), state.spec.params):
        if param.group is None:
            fixed += weight_boxes(state.parameters[param.name], param)
            continue
        for box in owned_boxes(state, param):
            views = tuple(map(box.view, box.held.tensors.values()))
            piece, gradient = Piece(box.tensor, box.offset, box.shape), partial(box.view, box.held.gradient)
            trained.append(TrainedBox(piece, views, gradient, param.group, param.moments))
    return Replica(trained, fixed)


class LiveUpdates:
    """Implements :class:`liver_slurm.engine.replica.Updates`, which documents the methods."""

    def __init__(self, state: RankState) -> None:
        self._state = state
        self._made: int | None = None
        """Updates made so far, counted here while they are watched: Adam's own counter lies on the GPU."""

    def adam_step(self) -> int:
        return self._made if self._made is not None else max(self._state.steps(), default=-1)

    def _count(self) -> None:
        assert self._made is not None, "updates are counted while they are watched"
        self._made += self._made >= 0

    def groups(self) -> Groups:
        return {
            GroupSpec(float(group["wd_mult"]), float(group["lr_mult"])): hyperparameters(group)
            for optimizer in self._state.inner_optimizers()
            for group in optimizer.optimizer.param_groups
        }

    def watch(
        self, before: Callable[[], None], after: Callable[[], None], zeroing: Callable[[], None] | None
    ) -> Callable[[], None]:
        inner = [optimizer.optimizer for optimizer in self._state.inner_optimizers()]
        if not inner:
            raise RuntimeError("this rank has no optimizer: it trains no parameter")
        self._made = max(self._state.steps(), default=-1)

        def updated(*_: object) -> None:
            self._count()
            after()

        # megatron steps them one after the other, all gradients being final before the first.
        handles = [
            inner[0].register_step_pre_hook(lambda *_: before()),
            inner[-1].register_step_post_hook(updated),
        ]

        if zeroing is not None:
            self._state.before_zeroing = zeroing

        def stop() -> None:
            if zeroing is not None and self._state.before_zeroing is zeroing:
                self._state.before_zeroing = None
            for handle in handles:
                handle.remove()
            self._made = None

        return stop


def complete(state: RankState, adam_step: int) -> Gather:
    """Derive step counters and weights from masters and moments that have arrived.

    With the distributed optimizer, weights are gathered over the data parallel group, so all its members must call it.

    Returns:
        the weights that are being gathered; the first forward pass waits for each where it uses it.
    """
    state.set_step(adam_step)
    for optimizer in state.inner_optimizers():
        compat.copy_masters_to_weights(optimizer)
    return Gather(state)
