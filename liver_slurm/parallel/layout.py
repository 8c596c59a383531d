"""Parallel layouts: sizes of the named dimensions of a world, and all arithmetic between ranks and coordinates.

Ranks are numbered as Megatron does by default: they fill a matrix of the axes in :data:`RANK_ORDER`, row by row.
Process groups, shards and replicas are slices of that matrix; no other module turns ranks into coordinates or back.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

Axis = Literal["tp", "cp", "pp", "dp"]
"""Dimensions: tensor, context, pipeline, data parallel."""

AXES: tuple[Axis, ...] = ("tp", "cp", "pp", "dp")
"""In the order in which a layout is written."""
YOUNGER: frozenset[Axis] = frozenset({"cp"})
"""Axes that are written only where they are larger than one, and were not known to earlier versions."""
RANK_ORDER: tuple[Axis, ...] = ("pp", "dp", "cp", "tp")
"""Axes of the rank matrix, slowest first: neighbours along the last one have consecutive ranks."""
REPLICA_AXES: tuple[Axis, ...] = ("dp", "cp")
"""Ranks that differ along these only hold the same parameters: they divide samples and sequences."""
GROUPS: dict[str, tuple[Axis, ...]] = {
    "world": RANK_ORDER,
    "tp": ("tp",),
    "cp": ("cp",),
    "dp": ("dp",),
    "dp_cp": REPLICA_AXES,
    "tp_cp": ("tp", "cp"),
    "pp": ("pp",),
    "mp": ("tp", "pp"),
    "self": (),
}
"""A world's process groups by their usual names, and the axes that each is along."""

ShardKey = tuple[int, int]
"""Coordinates (tp, pp) of a model shard."""

_PATTERN = re.compile("".join(f"(?:{axis}([1-9]\\d*)){'?' if axis in YOUNGER else ''}" for axis in AXES))


class Coordinates(NamedTuple):
    """Coordinates of a rank along each axis of its layout."""

    tp: int
    pp: int
    dp: int
    cp: int = 0


@dataclass(frozen=True, order=True)
class Layout:
    """Sizes of the axes, written ``tp2pp1dp2``, or ``tp2cp4pp1dp2`` with an axis that few use."""

    tp: int
    pp: int
    dp: int
    cp: int = 1

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read ``tp2pp1dp2``.

        Raises:
            ValueError: the text is not of that form.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a layout; write one as tp2pp1dp2")
        return cls(**{axis: int(part or 1) for axis, part in zip(AXES, match.groups(), strict=True)})

    def __str__(self) -> str:
        sizes = [(axis, getattr(self, axis)) for axis in AXES]
        return "".join(f"{axis}{size}" for axis, size in sizes if size > 1 or axis not in YOUNGER)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return math.prod(getattr(self, axis) for axis in AXES)

    @property
    def replicas(self) -> int:
        """Number of ranks that hold the same parameters."""
        return math.prod(getattr(self, axis) for axis in REPLICA_AXES)

    # ---- one rank

    def coordinates(self, rank: int) -> Coordinates:
        """Coordinates of ``rank``."""
        place = {}
        for axis in reversed(RANK_ORDER):
            rank, place[axis] = divmod(rank, getattr(self, axis))
        return Coordinates(**place)

    def rank(self, tp: int, pp: int, dp: int, cp: int = 0) -> int:
        """The rank at these coordinates; inverse of :meth:`coordinates`."""
        place, rank = Coordinates(tp, pp, dp, cp), 0
        for axis in RANK_ORDER:
            rank = rank * getattr(self, axis) + getattr(place, axis)
        return rank

    def group(self, rank: int, *axes: Axis) -> list[int]:
        """The ranks that differ from ``rank`` along ``axes`` only, itself included, in ascending order."""
        place = self.coordinates(rank)._asdict()
        part = tuple(slice(None) if axis in axes else place[axis] for axis in RANK_ORDER)
        members: list[int] = self.rank_matrix()[part].reshape(-1).tolist()
        return members

    # ---- all ranks

    def rank_matrix(self) -> Ints:
        """All ranks, int64, with one array axis for each of :data:`RANK_ORDER`."""
        import numpy as np  # not at the top: `liver-slurm --help` need not pay for it

        return np.arange(self.size, dtype=np.int64).reshape([getattr(self, axis) for axis in RANK_ORDER])

    def groups(self, *axes: Axis) -> Ints:
        """All groups along ``axes``, int64, [groups, members].

        Rows follow the other axes in :data:`RANK_ORDER`, members within a row the given ones. So row ``s`` of
        :meth:`replica_groups` is the replicas of the ``s``-th of :meth:`shards`.
        """
        order = sorted(RANK_ORDER, key=lambda axis: axis in axes)
        members = math.prod(getattr(self, axis) for axis in axes)
        matrix: Ints = self.rank_matrix().transpose([RANK_ORDER.index(axis) for axis in order])
        return matrix.reshape(-1, members)

    def replica_groups(self) -> Ints:
        """The ranks of each model shard, int64, [shards, replicas]; columns are what :meth:`replica` says."""
        return self.groups(*REPLICA_AXES)

    def shards(self) -> list[ShardKey]:
        """Coordinates of all model shards, in the order of the rows of :meth:`replica_groups`."""
        return [(tp, pp) for pp in range(self.pp) for tp in range(self.tp)]

    @overload
    def coordinate(self, axis: Axis, ranks: int) -> int: ...
    @overload
    def coordinate(self, axis: Axis, ranks: Ints) -> Ints: ...
    def coordinate(self, axis: Axis, ranks: int | Ints) -> int | Ints:
        """Coordinate along one axis, of one rank or of an array of ranks; some valid one where a rank is negative."""
        faster = RANK_ORDER[RANK_ORDER.index(axis) + 1 :]
        stride: int = math.prod(getattr(self, each) for each in faster)
        size: int = getattr(self, axis)
        return ranks // stride % size

    @overload
    def replica(self, ranks: int) -> int: ...
    @overload
    def replica(self, ranks: Ints) -> Ints: ...
    def replica(self, ranks: int | Ints) -> int | Ints:
        """Number of a rank, or of each of an array of ranks, among those that hold the same parameters."""
        return self.coordinate("dp", ranks) * self.cp + self.coordinate("cp", ranks)
