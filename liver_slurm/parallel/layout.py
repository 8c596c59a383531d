"""Parallel layouts: sizes of the named dimensions of a world, and all arithmetic between ranks and coordinates.

Ranks are numbered as Megatron does by default: they fill a matrix of the axes in :data:`RANK_ORDER`, row by row. Expert
parallelism cuts the same ranks in another way, along those in :data:`EXPERT_ORDER`: it divides the experts over the
ranks of a pipeline stage, and makes no world larger. An expert may be cut over fewer or more ranks than all other
matrices are: expert tensor parallelism. Nor does the virtual pipeline make worlds larger: it cuts each pipeline stage's
layers into chunks, which lie apart in the model. Process groups, shards and replicas are slices of the matrix; no other
module turns ranks into coordinates or back.
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

Axis = Literal["tp", "cp", "pp", "vpp", "dp", "ep", "etp", "edp"]
"""Dimensions: tensor, context, pipeline, virtual pipeline, data, expert, expert tensor, expert data parallel; the last
one follows from the others, and no rank has a coordinate along ``vpp``."""

AXES: tuple[Axis, ...] = ("tp", "cp", "pp", "vpp", "ep", "etp", "dp")
"""In the order in which a layout is written."""
YOUNGER: frozenset[Axis] = frozenset({"cp", "vpp", "ep", "etp"})
"""Axes that were not known to earlier versions, and are left out where their size is the usual one: that of ``tp`` for
``etp``, and one for the others."""
RANK_ORDER: tuple[Axis, ...] = ("pp", "dp", "cp", "tp")
"""Axes of the rank matrix, slowest first: neighbours along the last one have consecutive ranks."""
EXPERT_ORDER: tuple[Axis, ...] = ("pp", "edp", "ep", "etp")
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
    "etp": ("etp",),
    "edp": ("edp",),
    "tp_ep": ("etp", "ep"),
    "tp_ep_pp": ("etp", "ep", "pp"),
    "self": (),
}
"""A world's process groups by their usual names, and the axes that each is along."""

ShardKey = tuple[int, int]
"""(part, pp) of a model shard: which part of which pipeline stage. A part says which experts a rank has, by its etp and
ep coordinates, and which of all else, by its tp coordinate. Where experts are cut as all else is, it is tp + ep · TP,
and without expert parallelism the tp coordinate."""

_PATTERN = re.compile("".join(f"(?:{axis}([1-9]\\d*)){'?' if axis in YOUNGER else ''}" for axis in AXES))


class Coordinates(NamedTuple):
    """Coordinates of a rank along each axis of its layout."""

    tp: int
    pp: int
    dp: int
    cp: int = 0


@dataclass(frozen=True, order=True)
class Layout:
    """Sizes of the axes, written ``tp2pp1dp2``, or ``tp2cp4pp1ep2etp1dp2`` with axes that few use."""

    tp: int
    pp: int
    dp: int
    cp: int = 1
    ep: int = 1
    """Parts that the experts are divided into. Times etp it divides tp times cp times dp."""
    vpp: int = 1
    """Chunks of layers that each pipeline stage has."""
    etp: int = 0
    """Ranks that each expert is cut over. It becomes tp where it is 0."""

    def __post_init__(self) -> None:
        if not self.etp:
            object.__setattr__(self, "etp", self.tp)

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read ``tp2pp1dp2``.

        Raises:
            ValueError: the text is not of that form, or its ep, etp or vpp cannot be.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a layout; write one as tp2pp1dp2")
        found = cls(**{axis: int(part) for axis, part in zip(AXES, match.groups(), strict=True) if part is not None})
        if found.uneven_experts:
            raise ValueError(f"{text!r} is not a layout: its {found.uneven_experts}")
        if found.vpp > 1 and found.pp == 1:
            raise ValueError(f"{text!r} is not a layout: its vpp{found.vpp} needs a pp of at least 2")
        return found

    def __str__(self) -> str:
        usual = {axis: self.tp if axis == "etp" else 1 for axis in YOUNGER}
        sizes = [(axis, getattr(self, axis)) for axis in AXES]
        return "".join(f"{axis}{size}" for axis, size in sizes if size != usual.get(axis))

    @property
    def size(self) -> int:
        """Number of ranks."""
        return math.prod(getattr(self, axis) for axis in RANK_ORDER)

    @property
    def dense_replicas(self) -> int:
        """Number of ranks that hold the same parameters, but for experts."""
        return math.prod(getattr(self, axis) for axis in REPLICA_AXES)

    @property
    def stage_size(self) -> int:
        """Number of ranks of a pipeline stage."""
        return self.tp * self.dense_replicas

    @property
    def expert_parts(self) -> int:
        """Number of different parts of a stage's experts: ranks next to each other have one each."""
        return self.etp * self.ep

    @property
    def uneven_experts(self) -> str:
        """What keeps each part of the experts from being on as many ranks; empty: nothing does."""
        if self.stage_size % self.expert_parts == 0:
            return ""
        several = f"cp{self.cp} times dp{self.dp}" if self.cp > 1 else f"dp{self.dp}"
        if self.etp == self.tp:
            return f"ep{self.ep} does not divide {several}"
        return f"ep{self.ep} times etp{self.etp} does not divide tp{self.tp} times {several}"

    @property
    def edp(self) -> int:
        """Number of ranks that hold the same experts, or parts of them."""
        return self.stage_size // self.expert_parts

    @property
    def parts(self) -> int:
        """Number of shards that a pipeline stage is divided into.

        Ranks next to each other differ in all other parameters up to tp of them, and in experts up to etp times ep; so
        after the least common multiple of both, what ranks hold begins again.
        """
        return math.lcm(self.tp, self.expert_parts)

    @property
    def replicas(self) -> int:
        """Number of ranks that hold the same shard, experts and all."""
        return self.stage_size // self.parts

    @property
    def experts_need_microbatches(self) -> bool:
        """Whether experts are divided over ranks of several data parallel replicas, which so need as many
        microbatches."""
        return self.tp * self.cp % self.expert_parts > 0

    @property
    def virtual_stages(self) -> int:
        """Number of parts that the model's layers are cut into, in the order in which a sample passes through them."""
        return self.pp * self.vpp

    @property
    def unreplicated(self) -> Layout:
        """The smallest layout of the same shards: replicas make no difference to what each of them holds."""
        return replace(self, dp=self.parts // self.tp, cp=1)

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
        return rank % self.stage_size % self.parts, self.coordinate("pp", rank)

    def shard_replicas(self, rank: int) -> list[int]:
        """Return the ranks that hold the same shard as ``rank``, itself included, in ascending order."""
        part, pp = self.shard_key(rank)
        first = pp * self.stage_size
        return list(range(first + part, first + self.stage_size, self.parts))

    # ---- all ranks

    def rank_matrix(self, order: tuple[Axis, ...] = RANK_ORDER) -> Ints:
        """Return all ranks, int64, with one array axis for each of :data:`RANK_ORDER`, or of :data:`EXPERT_ORDER`."""
        import numpy as np  # not at the top: `liver-slurm --help` need not pay for it

        return np.arange(self.size, dtype=np.int64).reshape([getattr(self, axis) for axis in order])

    def groups(self, *axes: Axis) -> Ints:
        """Return all groups along ``axes``, int64, [groups, members].

        Rows follow the other axes in the order of the matrix, members within a row the given ones.
        """
        whole = _order(axes)
        order = sorted(whole, key=lambda axis: axis in axes)
        members = math.prod(getattr(self, axis) for axis in axes)
        matrix: Ints = self.rank_matrix(whole).transpose([whole.index(axis) for axis in order])
        return matrix.reshape(-1, members)

    def replica_groups(self) -> Ints:
        """Return the ranks of each model shard, int64, [shards, replicas], in the order of :meth:`shards`; columns are
        what :meth:`replica` says."""
        stages: Ints = self.rank_matrix().reshape(self.pp, self.replicas, self.parts).transpose(0, 2, 1)
        return stages.reshape(-1, self.replicas)

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
        return ranks % self.stage_size // self.parts

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
    return EXPERT_ORDER if any(axis in ("ep", "etp", "edp") for axis in axes) else RANK_ORDER
