"""What a user's loop declares of its state: each tensor by name, with the box of the global tensor that is here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel

from liver_slurm.base.errors import RunIsOver
from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.shard_spec import BoxSpec, ParamSpec, ShardSpec
from liver_slurm.reshard.tensors import ITEMSIZE, Box, Piece


class Sharded(NamedTuple):
    """A plain tensor that is a box of a global one: what ``Elastic.register`` is told of a sharding of one's own."""

    tensor: torch.Tensor
    shape: Box
    """Of the global tensor; the same in every layout."""
    offset: Box
    """Of the part that is here. It depends on :attr:`Elastic.shard` alone: replicas hold the same."""


class Held(NamedTuple):
    """A named tensor of the state, and where it lies in the global one."""

    name: str
    tensor: torch.Tensor
    """The part that is here, with at least one axis."""
    shape: Box
    offset: Box
    replicated: bool
    """Whether all ranks hold the same; else each has its part, which may be all of it on one and nothing on others."""

    @property
    def piece(self) -> Piece:
        """The box that is here."""
        return Piece(self.name, self.offset, tuple(self.tensor.shape))

    @property
    def spec(self) -> ParamSpec:
        """What the planner is told: a tensor that moves as it is, without an optimizer's state of its own."""
        dtype = str(self.tensor.dtype).removeprefix("torch.")
        box = BoxSpec(self.name, self.shape, self.offset, tuple(self.tensor.shape), 0)
        return ParamSpec(self.name, box.size, dtype, (box,), group=None)

    @property
    def whole(self) -> bool:
        """Whether all of the global tensor is here."""
        return tuple(self.tensor.shape) == self.shape


def held(name: str, value: torch.Tensor | Sharded) -> Held:
    """Describe a tensor: a DTensor says itself how it is divided, another one is whole, or declared to be a part.

    Raises:
        RunIsOver: it is divided in a way that is not known here, or of a type that no state has.
    """
    if isinstance(value, Sharded):
        found = Held(name, value.tensor.detach(), tuple(value.shape), tuple(value.offset), replicated=False)
        _check_inside(found)
    elif isinstance(value, DTensor):
        found = _held_of(name, value)
    else:
        local = value.detach()
        local = local if local.dim() else local.view(1)
        found = Held(name, local, tuple(local.shape), (0,) * local.dim(), replicated=True)
    dtype = str(found.tensor.dtype).removeprefix("torch.")
    if dtype not in ITEMSIZE:
        raise RunIsOver(f"{name} has dtype {dtype}, which is not moved; allowed: {', '.join(ITEMSIZE)}")
    if "@" in name:
        raise RunIsOver(f"{name}: the name of a tensor may not have an @ in it")
    return found


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that is here, without its history."""
    found: torch.Tensor = tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()
    return found


def _check_inside(one: Held) -> None:
    own = tuple(one.tensor.shape)
    fits = len(own) == len(one.shape) == len(one.offset) and own
    if not fits or any(a < 0 or a + n > m for a, n, m in zip(one.offset, own, one.shape, strict=True)):
        raise RunIsOver(f"{one.name}: a part of shape {own} at {one.offset} does not lie in a tensor of {one.shape}")


def _held_of(name: str, tensor: Any) -> Held:
    """Describe a DTensor; each mesh dimension that shards divides an axis as ``torch.chunk`` does."""
    shape, offset = [*tensor.shape], [0] * tensor.dim()
    mesh, part, replicated = tensor.device_mesh, local(tensor), True
    for parts, place, placement in zip(mesh.shape, mesh.get_coordinate(), tensor.placements, strict=True):
        if type(placement) is Replicate:
            continue
        if type(placement) is not Shard:
            raise RunIsOver(f"{name} is placed as {placement}, which is not moved; allowed: Shard and Replicate")
        axis = placement.dim % tensor.dim()
        most = -(-shape[axis] // parts)
        begin = min(place * most, shape[axis])
        offset[axis] += begin
        shape[axis] = min(begin + most, shape[axis]) - begin
        replicated = replicated and parts == 1
    if tuple(part.shape) != tuple(shape):
        raise RunIsOver(f"{name}: its part here is of shape {tuple(part.shape)}, and torch.chunk would make {shape}")
    if not part.dim():
        return Held(name, part.view(1), (1,), (0,), replicated)
    return Held(name, part, tuple(tensor.shape), tuple(offset), replicated)


def inner(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module itself, out of what ``DistributedDataParallel`` wraps around it."""
    found: torch.nn.Module = module.module if isinstance(module, DistributedDataParallel) else module
    return found


def module_tensors(name: str, module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Yield every parameter and persistent buffer of a module by name, and whether it is a buffer.

    Raises:
        RunIsOver: the module has state that is no tensor.
    """
    state = module.state_dict(keep_vars=True)  # first: FSDP2 puts its parameters back into their places for it
    parameters = {id(value) for value in module.parameters()}
    for path, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise RunIsOver(f"{name}.{path} is state that is no tensor; register what it is of as an object")
        yield f"{name}.{path}", value, id(value) not in parameters


def attributes(name: str, module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a module that is neither parameter nor buffer, by name.

    Nobody knows whether it is state.
    """
    known = {id(value) for value in (*module.parameters(), *module.buffers())}
    for path, part in module.named_modules():
        place = f"{name}.{path}" if path else name
        for attribute, value in vars(part).items():
            if isinstance(value, torch.Tensor) and id(value) not in known:
                yield f"{place}.{attribute}", value


def omitted(name: str, module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter that a module's own ``state_dict`` does not have, by name."""
    there = {id(value) for value in module.state_dict(keep_vars=True).values()}
    for path, value in module.named_parameters():
        if id(value) not in there:
            yield f"{name}.{path}", value


def check_places(state: Mapping[str, Held], layout: Layout, device: torch.device) -> None:
    """Check that all state lies on the worker's device, and is divided among ranks that the layout has for it.

    Raises:
        RunIsOver: a tensor lies elsewhere, or is divided where the layout has replicas only.
    """
    for one in state.values():
        if one.tensor.device.type != device.type:
            raise RunIsOver(f"{one.name} lies on {one.tensor.device}; allowed: elastic.device, which is {device} here")
        if layout.tp == 1 and not one.whole:
            raise RunIsOver(
                f"{one.name} is divided, and all ranks of {layout} are replicas; divide over elastic.mesh, and write "
                f"tp{layout.dp}pp1dp1 for state that {layout.dp} ranks share"
            )


def shard_spec(state: Mapping[str, Held]) -> ShardSpec:
    """Return what this rank holds; a tensor of which it has nothing is left out."""
    return ShardSpec(tuple(one.spec for one in state.values() if math.prod(one.tensor.shape)))
