"""Parallel layouts: sizes of the named dimensions of a world, and all arithmetic between ranks and coordinates.

Ranks are numbered as Megatron does by default: they fill a matrix of the axes in :data:`RANK_ORDER`, row by row. Expert
parallelism cuts the same ranks in another way, along those in :data:`EXPERT_ORDER`: it divides the experts over ranks
that are data and context parallel for all other parameters, and makes no world larger. Nor does the virtual pipeline:
it cuts each pipeline stage's layers into chunks, which lie apart in the model. Process groups, shards and replicas are
slices of the matrix; no other module turns ranks into coordinates or back.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

Axis = Literal["tp", "cp", "pp", "vpp", "dp", "ep", "edp"]
"""Dimensions: tensor, context, pipeline, virtual pipeline, data, expert, expert data parallel; the last one follows
from the others, and no rank has a coordinate along ``vpp``."""

AXES: tuple[Axis, ...] = ("tp", "cp", "pp", "vpp", "ep", "dp")
"""In the order in which a layout is written."""
YOUNGER: frozenset[Axis] = frozenset({"cp", "vpp", "ep"})
"""Axes that are written only where they are larger than one, and were not known to earlier versions."""
RANK_ORDER: tuple[Axis, ...] = ("pp", "dp", "cp", "tp")
"""Axes of the rank matrix, slowest first: neighbours along the last one have consecutive ranks."""
EXPERT_ORDER: tuple[Axis, ...] = ("pp", "edp", "ep", "tp")
"""Axes of the same ranks' matrix as experts are divided, slowest first."""
REPLICA_AXES: tuple[Axis, ...] = ("dp", "cp")
"""Ranks that differ along these only hold the same parameters, but for experts: they divide samples and sequences."""
GROUPS: dict[str, tuple[Axis, ...]] = {
    "world": RANK_ORDER,
    "tp": ("tp",),
    "cp": ("cp",),
    "dp": ("dp",),
    "dp_cp": REPLICA_AXES,
    "tp_cp": ("tp", "cp"),
    "pp": ("pp",),
    "mp": ("tp", "pp"),
    "ep": ("ep",),
    "edp": ("edp",),
    "tp_ep": ("tp", "ep"),
    "tp_ep_pp": ("tp", "ep", "pp"),
    "self": (),
}
"""A world's process groups by their usual names, and the axes that each is along."""

ShardKey = tuple[int, int]
"""(part, pp) of a model shard: which part of which pipeline stage. A part is tp + ep · TP: without expert parallelism
it is the tp coordinate."""

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
    ep: int = 1
    """Ranks that the experts are divided over. It divides dp times cp."""
    vpp: int = 1
    """Chunks of layers that each pipeline stage has."""

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read ``tp2pp1dp2``.

        Raises:
            ValueError: the text is not of that form, or its ep or vpp cannot be.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a layout; write one as tp2pp1dp2")
        found = cls(**{axis: int(part or 1) for axis, part in zip(AXES, match.groups(), strict=True)})
        if found.dense_replicas % found.ep:
            several = f"cp{found.cp} times dp{found.dp}" if found.cp > 1 else f"dp{found.dp}"
            raise ValueError(f"{text!r} is not a layout: its ep{found.ep} does not divide {several}")
        if found.vpp > 1 and found.pp == 1:
            raise ValueError(f"{text!r} is not a layout: its vpp{found.vpp} needs a pp of at least 2")
        return found

    def __str__(self) -> str:
        sizes = [(axis, getattr(self, axis)) for axis in AXES]
        return "".join(f"{axis}{size}" for axis, size in sizes if size > 1 or axis not in YOUNGER)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return math.prod(getattr(self, axis) for axis in RANK_ORDER)

    @property
    def dense_replicas(self) -> int:
        """Number of ranks that hold the same parameters, but for experts."""
        return math.prod(getattr(self, axis) for axis in REPLICA_AXES)

    @property
    def edp(self) -> int:
        """Number of ranks that hold the same experts."""
        return self.dense_replicas // self.ep

    @property
    def replicas(self) -> int:
        """Number of ranks that hold the same shard, experts and all."""
        return self.edp

    @property
    def parts(self) -> int:
        """Number of shards that a pipeline stage is divided into."""
        return self.tp * self.ep

    @property
    def virtual_stages(self) -> int:
        """Number of parts that the model's layers are cut into, in the order in which a sample passes through them."""
        return self.pp * self.vpp

    @property
    def unreplicated(self) -> Layout:
        """The smallest layout of the same shards: replicas make no difference to what each of them holds."""
        return replace(self, dp=self.ep, cp=1)

    def chunks(self, pp: int) -> range:
        """Return the virtual stages of one pipeline stage, in order.

        It is the order in which megatron-core deals them out, round by round.
        """
        return range(pp, self.virtual_stages, self.pp)

    # ---- one rank

    def coordinates(self, rank: int) -> Coordinates:
        """Return the coordinates of ``rank``."""
        place = {}
        for axis in reversed(RANK_ORDER):
            rank, place[axis] = divmod(rank, getattr(self, axis))
        return Coordinates(**place)

    def rank(self, tp: int, pp: int, dp: int, cp: int = 0) -> int:
        """Return the rank at these coordinates; inverse of :meth:`coordinates`."""
        place, rank = Coordinates(tp, pp, dp, cp), 0
        for axis in RANK_ORDER:
            rank = rank * getattr(self, axis) + getattr(place, axis)
        return rank

    def group(self, rank: int, *axes: Axis) -> list[int]:
        """Return the ranks that differ from ``rank`` along ``axes`` only, itself included, in ascending order.

        Axes are all of :data:`RANK_ORDER`, or all of :data:`EXPERT_ORDER`.
        """
        order = _order(axes)
        part = tuple(slice(None) if axis in axes else self.coordinate(axis, rank) for axis in order)
        members: list[int] = self.rank_matrix(order)[part].reshape(-1).tolist()
        return members

    def shard_key(self, rank: int) -> ShardKey:
        """Return the shard that ``rank`` holds."""
        return self.coordinate("tp", rank) + self.coordinate("ep", rank) * self.tp, self.coordinate("pp", rank)

    # ---- all ranks

    def rank_matrix(self, order: tuple[Axis, ...] = RANK_ORDER) -> Ints:
        """Return all ranks, int64, with one array axis for each of :data:`RANK_ORDER`, or of :data:`EXPERT_ORDER`."""
        import numpy as np  # not at the top: `liver-slurm --help` need not pay for it

        return np.arange(self.size, dtype=np.int64).reshape([getattr(self, axis) for axis in order])

    def groups(self, *axes: Axis) -> Ints:
        """Return all groups along ``axes``, int64, [groups, members].

        Rows follow the other axes in the order of the matrix, members within a row the given ones. So row ``s`` of
        :meth:`replica_groups` is the replicas of the ``s``-th of :meth:`shards`.
        """
        whole = _order(axes)
        order = sorted(whole, key=lambda axis: axis in axes)
        members = math.prod(getattr(self, axis) for axis in axes)
        matrix: Ints = self.rank_matrix(whole).transpose([whole.index(axis) for axis in order])
        return matrix.reshape(-1, members)

    def replica_groups(self) -> Ints:
        """Return the ranks of each model shard, int64, [shards, replicas]; columns are what :meth:`replica` says."""
        return self.groups("edp")

    def shards(self) -> list[ShardKey]:
        """Return all model shards, in the order of the rows of :meth:`replica_groups`."""
        return [(part, pp) for pp in range(self.pp) for part in range(self.parts)]

    @overload
    def coordinate(self, axis: Axis, ranks: int) -> int: ...
    @overload
    def coordinate(self, axis: Axis, ranks: Ints) -> Ints: ...
    def coordinate(self, axis: Axis, ranks: int | Ints) -> int | Ints:
        """Return the coordinate along one axis, of one rank or of an array of ranks.

        It is some valid one where a rank is negative.
        """
        order = _order((axis,))
        faster = order[order.index(axis) + 1 :]
        stride: int = math.prod(getattr(self, each) for each in faster)
        size: int = getattr(self, axis)
        return ranks // stride % size

    @overload
    def replica(self, ranks: int) -> int: ...
    @overload
    def replica(self, ranks: Ints) -> Ints: ...
    def replica(self, ranks: int | Ints) -> int | Ints:
        """Return the number of a rank, or of each of an array of ranks, among those that hold the same shard."""
        return self.coordinate("edp", ranks)

    @overload
    def dense_replica(self, ranks: int) -> int: ...
    @overload
    def dense_replica(self, ranks: Ints) -> Ints: ...
    def dense_replica(self, ranks: int | Ints) -> int | Ints:
        """Return the number of a rank, or of each of an array, among those that hold the same parameters, but for
        experts."""
        return self.coordinate("dp", ranks) * self.cp + self.coordinate("cp", ranks)


def _order(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """Return the matrix that these are axes of."""
    return EXPERT_ORDER if any(axis in ("ep", "edp") for axis in axes) else RANK_ORDER
