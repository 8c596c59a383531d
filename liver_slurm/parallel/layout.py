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

Axis = Literal["tp", "pp", "dp"]
"""Dimensions: tensor, pipeline, data parallel."""

RANK_ORDER: tuple[Axis, ...] = ("pp", "dp", "tp")
"""Axes of the rank matrix, slowest first: neighbours along the last one have consecutive ranks."""

ShardKey = tuple[int, int]
"""Coordinates (tp, pp) of a model shard: ranks that differ in dp only hold the same parameters."""

_PATTERN = re.compile(r"tp([1-9]\d*)pp([1-9]\d*)dp([1-9]\d*)")


class Coordinates(NamedTuple):
    """Coordinates of a rank along each axis of its layout."""

    tp: int
    pp: int
    dp: int


@dataclass(frozen=True, order=True)
class Layout:
    """Sizes of the axes, written ``tp2pp1dp2``."""

    tp: int
    pp: int
    dp: int

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read ``tp2pp1dp2``.

        Raises:
            ValueError: the text is not of that form.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a layout; write one as tp2pp1dp2")
        return cls(*(int(part) for part in match.groups()))

    def __str__(self) -> str:
        return f"tp{self.tp}pp{self.pp}dp{self.dp}"

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.tp * self.pp * self.dp

    # ---- one rank

    def coordinates(self, rank: int) -> Coordinates:
        """Coordinates of ``rank``."""
        return Coordinates(tp=rank % self.tp, dp=rank // self.tp % self.dp, pp=rank // (self.tp * self.dp))

    def rank(self, tp: int, pp: int, dp: int) -> int:
        """The rank at these coordinates; inverse of :meth:`coordinates`."""
        return tp + self.tp * (dp + self.dp * pp)

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
        ``groups("dp")`` is the replicas of the ``s``-th of :meth:`shards`, and its columns are their dp coordinates.
        """
        order = sorted(RANK_ORDER, key=lambda axis: axis in axes)
        members = math.prod(getattr(self, axis) for axis in axes)
        matrix: Ints = self.rank_matrix().transpose([RANK_ORDER.index(axis) for axis in order])
        return matrix.reshape(-1, members)

    def shards(self) -> list[ShardKey]:
        """Coordinates of all model shards, in the order of the rows of ``groups("dp")``."""
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
