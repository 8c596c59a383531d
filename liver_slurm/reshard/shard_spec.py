"""What state a world holds, and where: enough to know every rank's pieces without a rank, a tensor or any memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from liver_slurm.parallel.layout import Layout, ShardKey
from liver_slurm.reshard.rank_sets import Ints
from liver_slurm.reshard.tensors import (
    ADAM,
    STATE_DTYPE,
    Box,
    Piece,
    TensorInfo,
    flat_boxes,
    shifted,
    state_dtype,
    state_tensors,
)
from liver_slurm.reshard.zero_partition import Range, buffer_elements, owned_table


class BoxSpec(NamedTuple):
    """A box of a global tensor that a parameter holds, row-major from element ``start`` of the flat parameter on."""

    tensor: str
    global_shape: Box
    offset: Box
    shape: Box
    start: int
    layered: bool = False

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


class GroupSpec(NamedTuple):
    """Identity of a parameter's optimizer group: what multiplies the weight decay and the learning rate."""

    wd_mult: float = 1.0
    lr_mult: float = 1.0


_PLAIN_GROUP = GroupSpec()

Buffer = tuple[tuple[int, ...], tuple[bool, ...], int, int | None]
"""The arguments of :func:`~liver_slurm.reshard.zero_partition.owned_table` for one gradient buffer."""


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """One parameter of one model shard.

    ``name`` is the local one. ``boxes`` are in the order in which they lie in the flat parameter (a gated MLP's first
    matrix is two). ``shared``: an embedding that the first and the last pipeline stage both hold. ``group`` is None
    for a parameter that is not trained. ``expert``: of an expert that other ranks hold alike than all else. ``chunk``:
    which of the stage's chunks of layers it is of; each has gradient buffers of its own. ``moments``: what the
    optimizer keeps of it, see :func:`liver_slurm.reshard.tensors.moments_of`.
    """

    name: str
    size: int
    dtype: str
    boxes: tuple[BoxSpec, ...]
    group: GroupSpec | None = _PLAIN_GROUP
    shared: bool = False
    expert: bool = False
    chunk: int = 0
    moments: tuple[str, ...] = ADAM

    @property
    def trained(self) -> bool:
        """Whether it has optimizer state."""
        return self.group is not None

    @property
    def layer(self) -> int:
        """The transformer layer that it is of; -1: of none."""
        return self.boxes[0].offset[0] if self.boxes[0].layered else -1


@dataclass(frozen=True)
class ShardSpec:
    """What the model of one shard holds: its parameters, in the model's order.

    What is no expert may be in other shards of its stage, too: this one is the ``place``-th of ``alike`` of them.
    ``expert_place`` and ``expert_alike`` say the same of its experts, which are in several shards only where they are
    cut over other ranks than all else.
    """

    params: tuple[ParamSpec, ...]
    alike: int = 1
    place: int = 0
    expert_alike: int = 1
    expert_place: int = 0

    def ranges(self, replicas: int, bucket_size: int | None) -> tuple[tuple[Range, ...], ...]:
        """Return per parameter, the flat ranges that each replica owns with the distributed optimizer.

        What is in several shards is cut over the replicas of all of them.
        """
        ranges: list[tuple[Range, ...]] = [()] * len(self.params)
        for index, replica, start, end in self.range_table(replicas, bucket_size).tolist():
            ranges[index] += (Range(replica, start, end),)
        return tuple(ranges)

    def range_table(self, replicas: int, bucket_size: int | None) -> Ints:
        """Return :meth:`ranges` as rows (parameter, replica, start, end)."""
        tables = [np.zeros((0, 4), dtype=np.int64)]
        for members, (alike, place), buffer in self._buffers(replicas, bucket_size):
            table = owned_table(*buffer).copy()
            table[:, 0] = np.array(members, dtype=np.int64)[table[:, 0]]
            if alike > 1:
                table = table[table[:, 1] % alike == place]
                table[:, 1] //= alike
            tables.append(table)
        return np.concatenate(tables)

    def buffer_elements(self, replicas: int, bucket_size: int | None) -> dict[str, int]:
        """Return the elements of the distributed optimizer's buffers of trained parameters, padding included, by their
        dtype."""
        found: dict[str, int] = {}
        for members, _, buffer in self._buffers(replicas, bucket_size):
            dtype = self.params[members[0]].dtype
            found[dtype] = found.get(dtype, 0) + buffer_elements(*buffer)
        return found

    def _buffers(self, replicas: int, bucket_size: int | None) -> Iterator[tuple[list[int], tuple[int, int], Buffer]]:
        """Yield, for each gradient buffer, its parameters, how many shards have the same ones and which of them this
        is, and how it is cut."""
        buffers: dict[tuple[int, str, bool], list[int]] = {}
        for index, param in enumerate(self.params):
            if param.trained:
                buffers.setdefault((param.chunk, param.dtype, param.expert), []).append(index)
        for (chunk, _, expert), members in buffers.items():
            params = [self.params[index] for index in members]
            alike = (self.expert_alike, self.expert_place) if expert else (self.alike, self.place)
            sizes, shared = tuple(param.size for param in params), tuple(param.shared for param in params)
            # As Megatron trains, gradients of a stage's first chunk alone are cut into buckets.
            yield members, alike, (sizes, shared, replicas * alike[0], bucket_size if chunk == 0 else None)


@dataclass(frozen=True, eq=False)
class WorldSpec:
    """A world's state: one shard for every part of every stage of the layout, which all its replicas hold.

    ``bucket_size``: elements of a gradient bucket in the first chunk of the first pipeline stage (Megatron never cuts
    the others); None where gradients are not reduced in buckets. It decides who owns what with the distributed
    optimizer. ``derived``: weights that are trained are no state of their own, for they follow from the masters.
    ``lost``: ranks whose state is gone, so that other holders of each of its boxes stand in for them. ``moment_dtype``:
    what moments are kept in.
    """

    layout: Layout
    shards: Mapping[ShardKey, ShardSpec]
    distributed_optimizer: bool
    precision: str
    bucket_size: int | None = None
    derived: bool = False
    lost: frozenset[int] = frozenset()
    moment_dtype: str = STATE_DTYPE

    @cached_property
    def weights(self) -> dict[str, TensorInfo]:
        """Every weight by name, sorted."""
        found: dict[str, TensorInfo] = {}
        for shard in self.shards.values():
            for param in shard.params:
                for box in param.boxes:
                    if box.tensor not in found:
                        found[box.tensor] = TensorInfo(box.tensor, box.global_shape, param.dtype, box.layered)
        return dict(sorted(found.items()))

    @cached_property
    def moments(self) -> dict[str, tuple[str, ...]]:
        """What the optimizer keeps of each weight that is trained, by its name."""
        params = (param for shard in self.shards.values() for param in shard.params if param.trained)
        return {box.tensor: param.moments for param in params for box in param.boxes}

    @cached_property
    def trained(self) -> frozenset[str]:
        """Names of the weights that have optimizer state."""
        return frozenset(self.moments)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor of the world's state by name, weights and optimizer state, sorted."""
        found: dict[str, TensorInfo] = {}
        for name, info in self.weights.items():
            if not (self.derived and name in self.trained):
                found[name] = info
            if name in self.trained:
                for state in state_tensors(name, info.dtype, self.derived, self.moments[name]):
                    dtype = state_dtype(state.rpartition("@")[2], self.moment_dtype)
                    found[state] = info._replace(name=state, dtype=dtype)
        return dict(sorted(found.items()))

    def ranges(self, part: int, pp: int) -> tuple[tuple[Range, ...], ...]:
        """Return :meth:`ShardSpec.ranges` of one shard of this world."""
        return self.shards[part, pp].ranges(self.layout.replicas, self.bucket_size if pp == 0 else None)

    def range_table(self, part: int, pp: int) -> Ints:
        """Return :meth:`ranges` as rows (parameter, replica, start, end)."""
        return self.shards[part, pp].range_table(self.layout.replicas, self.bucket_size if pp == 0 else None)


def pieces(world: WorldSpec, rank: int) -> list[Piece]:
    """Return every piece that ``rank`` holds, weights and optimizer state, in the model's order."""
    return list(_pieces(world, rank))


def _pieces(world: WorldSpec, rank: int) -> Iterator[Piece]:
    key, replica = world.layout.shard_key(rank), world.layout.replica(rank)
    shard = world.shards[key]
    ranges = world.ranges(*key) if world.distributed_optimizer else None
    for index, param in enumerate(shard.params):
        if not (world.derived and param.trained):
            for box in param.boxes:
                yield Piece(box.tensor, box.offset, box.shape)
        if not param.trained:
            continue
        owned = [(0, param.size)]
        if ranges is not None:
            owned = [(own.start, own.end) for own in ranges[index] if own.replica == replica]
        for box in param.boxes:
            for start, end in owned:
                first, last = max(start - box.start, 0), min(end - box.start, box.size)
                for inside, shape in flat_boxes(box.shape, first, last):
                    offset = shifted(box.offset, inside)
                    for name in state_tensors(box.tensor, param.dtype, world.derived, param.moments):
                        yield Piece(name, offset, shape)
