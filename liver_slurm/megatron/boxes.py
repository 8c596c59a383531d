"""The live tensors behind a rank's pieces: for each box of state, a view of where it lies."""

from __future__ import annotations

import math
from typing import Any

import torch

from liver_slurm.megatron.model import unwrap
from liver_slurm.megatron.rank_state import RankState
from liver_slurm.megatron.spec import shard_spec_of
from liver_slurm.state.pieces import Piece, flat_boxes, shifted, state_tensors
from liver_slurm.state.spec import ParamSpec, ShardSpec


def state_boxes(state: RankState, shard: ShardSpec | None = None) -> list[tuple[Piece, torch.Tensor]]:
    """Every piece of state that this rank really holds, with a view of its storage in the piece's shape.

    The order is that of :func:`liver_slurm.state.spec.pieces`. A view stays valid as long as the rank state lives;
    writing to it writes the state.
    """
    parameters = dict(unwrap(state.model).named_parameters())
    shard = shard or shard_spec_of(state.model)
    found: list[tuple[Piece, torch.Tensor]] = []
    for param in shard.params:
        parameter = parameters[param.name]
        flat = parameter.detach().view(-1)
        for box in param.boxes:
            view = flat[box.start : box.start + box.size].view(box.shape)
            found.append((Piece(box.tensor, box.offset, box.shape), view))
        if param.trained:
            found += _optimizer_boxes(state, parameter, param)
    return found


def _optimizer_boxes(state: RankState, parameter: Any, param: ParamSpec) -> list[tuple[Piece, torch.Tensor]]:
    held = _held(state, parameter)
    if held is None:
        return []
    start, end, tensors = held
    found: list[tuple[Piece, torch.Tensor]] = []
    for box in param.boxes:
        first, last = max(start - box.start, 0), min(end - box.start, box.size)
        for inside, shape in flat_boxes(box.shape, first, last):
            place = box.start + _flat_index(inside, box.shape) - start
            offset = shifted(box.offset, inside)
            for name in state_tensors(box.tensor, param.dtype):
                flat = tensors[name.rpartition("@")[2]].detach().view(-1)
                found.append((Piece(name, offset, shape), flat[place : place + math.prod(shape)].view(shape)))
    return found


def _held(state: RankState, parameter: Any) -> tuple[int, int, dict[str, torch.Tensor]] | None:
    """The flat range of a parameter whose optimizer state is here, and that state's flat tensors; None: none is."""
    for optimizer in state.inner_optimizers():
        if state.config.train.distributed_optimizer:
            if parameter not in optimizer.model_param_gbuf_map:
                continue
            tensors = optimizer._get_main_param_and_optimizer_states(parameter)
            held = optimizer._get_model_param_range_map(parameter)["param"]
            return held.start, held.end, {"master": tensors["param"], **_moments(tensors)}
        main = getattr(parameter, "main_param", parameter)
        moments = optimizer.optimizer.state.get(main)
        if moments:
            return 0, parameter.numel(), {"master": main, **_moments(moments)}
    return None


def _moments(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}


def _flat_index(offset: tuple[int, ...], shape: tuple[int, ...]) -> int:
    index = 0
    for place, size in zip(offset, shape, strict=True):
        index = index * size + place
    return index
