"""Views of a rank's state, box by box: where each piece of it lies in megatron's tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.rank_state import RankState
from liver_slurm.engine.replica import LayerFilter, every_layer
from liver_slurm.reshard.shard_spec import ParamSpec
from liver_slurm.reshard.tensors import Piece, flat_boxes, shifted, state_tensors


def state_boxes(state: RankState, chosen: LayerFilter = every_layer) -> list[tuple[Piece, torch.Tensor]]:
    """Return every piece of state of the chosen layers; see :meth:`liver_slurm.engine.api.TrainingShard.boxes`."""
    found: list[tuple[Piece, torch.Tensor]] = []
    for param in filter(lambda param: chosen(param.layer), state.spec.params):
        parameter = state.parameters[param.name]
        found += weight_boxes(parameter, param)
        if param.trained:
            found += _optimizer_boxes(state, param)
    return found


def weight_boxes(parameter: torch.Tensor, param: ParamSpec) -> list[tuple[Piece, torch.Tensor]]:
    """Return a parameter's own boxes, each a view of it."""
    flat = parameter.detach().view(-1)
    return [
        (Piece(box.tensor, box.offset, box.shape), flat[box.start : box.start + box.size].view(box.shape))
        for box in param.boxes
    ]


class Held(NamedTuple):
    """This rank's optimizer state of a parameter: flat elements ``[start, end)`` of the parameter."""

    start: int
    end: int
    tensors: dict[str, torch.Tensor]
    """``master``, then the moments by name; flat, or of a shape that ``view(-1)`` makes flat."""
    gradient: torch.Tensor
    """Of the same elements, in megatron's gradient buffer, where they are reduced and clipped and the optimizer reads
    them: the buffer is fp32, so megatron makes no copy of it."""


class OwnedBox(NamedTuple):
    """A box of a weight whose optimizer state this rank holds.

    ``place`` is its first element in the tensors of ``held``.
    """

    tensor: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    place: int
    held: Held

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a view of the box in one of the tensors of ``held``; on the meta device if that has no storage now."""
        if not tensor.untyped_storage().nbytes():
            return torch.empty(self.shape, dtype=tensor.dtype, device="meta")
        flat = tensor.detach().view(-1)
        return flat[self.place : self.place + math.prod(self.shape)].view(self.shape)


def owned_boxes(state: RankState, param: ParamSpec) -> Iterator[OwnedBox]:
    """Yield the boxes of one parameter whose optimizer state this rank holds."""
    held = optimizer_state(state, param)
    if held is None:
        return
    for box in param.boxes:
        first, last = max(held.start - box.start, 0), min(held.end - box.start, box.size)
        for inside, shape in flat_boxes(box.shape, first, last):
            place = box.start + _flat_index(inside, box.shape) - held.start
            yield OwnedBox(box.tensor, shifted(box.offset, inside), shape, place, held)


def _optimizer_boxes(state: RankState, param: ParamSpec) -> list[tuple[Piece, torch.Tensor]]:
    return [
        (Piece(name, box.offset, box.shape), box.view(box.held.tensors[name.rpartition("@")[2]]))
        for box in owned_boxes(state, param)
        for name in state_tensors(box.tensor, param.dtype, moments=param.moments)
    ]


def optimizer_state(state: RankState, param: ParamSpec) -> Held | None:
    """Return this rank's optimizer state of a parameter; None: it holds none."""
    parameter: Any = state.parameters[param.name]

    def moments_in(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensors[name] for name in param.moments}

    for optimizer in state.inner_optimizers():
        if state.config.train.distributed_optimizer:
            found = compat.distributed_state(optimizer, parameter)
            if found is None:
                continue
            held, tensors = found
            gradient = parameter.main_grad.view(-1)[held.start : held.end]
            return Held(held.start, held.end, {"master": tensors["param"], **moments_in(tensors)}, gradient)
        main = getattr(parameter, "main_param", parameter)
        moments = optimizer.optimizer.state.get(main)
        if moments:
            return Held(0, parameter.numel(), {"master": main, **moments_in(moments)}, parameter.main_grad.view(-1))
    return None


def _flat_index(offset: tuple[int, ...], shape: tuple[int, ...]) -> int:
    index = 0
    for place, size in zip(offset, shape, strict=True):
        index = index * size + place
    return index
