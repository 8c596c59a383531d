"""Regions: boxes that one set of source ranks owns and one set of target ranks needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from liver_slurm.base.errors import PlanError
from liver_slurm.reshard.overlap_join import overlapping, shared_boxes
from liver_slurm.reshard.ownership import Ownership, ownership
from liver_slurm.reshard.rank_sets import Ints, RankSets
from liver_slurm.reshard.shard_spec import WorldSpec
from liver_slurm.reshard.tensors import ITEMSIZE, TensorInfo, state_tensors


@dataclass(frozen=True)
class Regions:
    """Table of all regions of a transfer, [n] rows in plan order: by layer, tensor, offset.

    ``kinds[kind[i]]``: the tensors that lie in region i alike: a weight alone, or all optimizer state of one. ``unit``:
    bytes that one element takes in all of them together. ``owners[owner[i]]``: source ranks that hold the region;
    ``receivers[receiver[i]]``: target ranks that need it; each sorted. Offsets and shapes, [n, axes], are padded with
    axes of size one.
    """

    kinds: tuple[tuple[TensorInfo, ...], ...]
    owners: RankSets
    receivers: RankSets
    kind: Ints
    offset: Ints
    shape: Ints
    unit: Ints
    owner: Ints
    receiver: Ints

    @cached_property
    def size(self) -> Ints:
        """Elements of each region."""
        return np.asarray(self.shape.prod(axis=1), dtype=np.int64)


def find_regions(source: WorldSpec, target: WorldSpec) -> Regions:
    """Intersect what the source world holds with what the target world needs.

    Raises:
        PlanError: an element that the target needs is nowhere in the source.
    """
    weights = list(target.weights)
    infos = target.tensors
    axes = max((len(info.shape) for info in target.weights.values()), default=1)
    sides = zip(ownership(source, weights, axes), ownership(target, weights, axes), strict=True)
    kinds: list[tuple[TensorInfo, ...]] = [(infos[name],) if name in infos else () for name in weights]
    kinds += [
        tuple(infos[state] for state in state_tensors(name, info.dtype, target.derived, target.moments[name]))
        if name in target.trained
        else ()
        for name, info in target.weights.items()
    ]
    owners, receivers = RankSets.of([]), RankSets.of([])
    columns: list[list[Ints]] = []
    for number, (held, needed) in enumerate(sides):
        tensor, offset, shape, owner, receiver = _intersect(held, needed, weights)
        columns.append(
            [tensor + number * len(weights), tensor, offset, shape, owner + len(owners), receiver + len(receivers)]
        )
        owners, receivers = owners + held.sets, receivers + needed.sets
    kind, tensor, offset, shape, owner, receiver = (np.concatenate(column) for column in zip(*columns, strict=True))
    layered = np.array([bool(tensors) and tensors[0].layered for tensors in kinds], dtype=bool)
    layer = np.where(layered[kind], offset[:, 0], -1)
    order = np.lexsort([*(offset[:, axis] for axis in reversed(range(axes))), tensor, layer])
    unit = np.array([sum(ITEMSIZE[info.dtype] for info in tensors) for tensors in kinds], dtype=np.int64)
    kind = kind[order]
    return Regions(
        kinds=tuple(kinds),
        owners=owners,
        receivers=receivers,
        kind=kind,
        offset=offset[order],
        shape=shape[order],
        unit=unit[kind],
        owner=owner[order],
        receiver=receiver[order],
    )


def _intersect(source: Ownership, target: Ownership, names: list[str]) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """Return the tensor, offset, shape, owner set and receiver set of every overlap of a source box
    with a target box."""
    held, needed = overlapping(source, target)
    offset, shape = shared_boxes(source, held, target, needed)
    _check_covered(target, needed, shape.prod(axis=1), names)
    return target.tensor[needed], offset, shape, source.holder[held], target.holder[needed]


def _check_covered(target: Ownership, needed: Ints, sizes: Ints, names: list[str]) -> None:
    """Check that regions have the size of their target box: they are disjoint, so each element comes once."""
    found = np.zeros(len(target.tensor), dtype=np.int64)
    np.add.at(found, needed, sizes)
    wanted = target.shape.prod(axis=1)
    for row in np.flatnonzero(found != wanted)[:1]:
        raise PlanError(
            f"{names[target.tensor[row]]}: the source world holds {found[row]} of the {wanted[row]} elements at "
            f"{tuple(target.offset[row].tolist())}, shape {tuple(target.shape[row].tolist())}, that the target needs"
        )
