"""Which rank each member of a target world gets, so that survivors keep as much of their state as possible.

Decided before any shard is built, so from layouts alone: a model is a line of parameters, its depth, that chunks of
pipeline stages and the distributed optimizer cut into intervals, and that tensor parallel ranks cut across. Members
are first put into tensor parallel groups, on one host each where the hosts allow it, then groups onto stages and
replicas. Which experts a rank holds is not in that line: where they are divided, or cut otherwise than all else, only
the hosts count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

import numpy as np
import numpy.typing as npt

from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.rank_sets import NOBODY, Ints, spans
from liver_slurm.reshard.shard_spec import WorldSpec
from liver_slurm.reshard.tensors import ITEMSIZE
from liver_slurm.reshard.tp_groups import TpGroups, form_groups

Floats = npt.NDArray[np.float64]
_WORTH = 0.002
"""Share of the target's state that another order must keep more: a line of parameters is not quite the model."""
_FEW = 256
"""Members up to which pairs are exchanged as long as that helps; it takes time in the cube of their number."""


@dataclass(frozen=True)
class Depth:
    """How much state there is along a model's depth.

    ``source``, ``target``: where each world's virtual stages begin and end, [pp · vpp + 1], in elements. ``weight``,
    ``state``: bytes of an element's weight and optimizer state. ``cut``: whether the latter is cut over replicas.
    """

    source: Sequence[float]
    target: Sequence[float]
    weight: float
    state: float
    cut: bool

    @classmethod
    def between(cls, source: WorldSpec, target: WorldSpec) -> Depth:
        """Measure the depth of two worlds of one model that are known piece by piece."""
        stored = {"weight": 0.0, "state": 0.0}
        for info in target.tensors.values():
            stored["state" if "@" in info.name else "weight"] += math.prod(info.shape) * ITEMSIZE[info.dtype]
        elements = sum(math.prod(info.shape) for info in target.weights.values())
        return cls(
            source=_bounds(source),
            target=_bounds(target),
            weight=stored["weight"] / elements,
            state=stored["state"] / elements,
            cut=target.distributed_optimizer,
        )


def _bounds(world: WorldSpec) -> list[float]:
    stages = [0.0] * world.layout.virtual_stages
    for (_, pp), shard in world.shards.items():
        chunks = world.layout.chunks(pp)
        for param in shard.params:
            stages[chunks[param.chunk]] += param.size
    return [0.0, *accumulate(stages)]


def number(
    source: Layout, target: Layout, kept: Sequence[int | None], hosts: Sequence[str], depth: Depth
) -> tuple[list[int], str]:
    """Return the members of a target world in rank order, and why in this one.

    Args:
        source, target: layouts of both worlds.
        kept: for every member, in the order that it has if nothing speaks for another one, its source rank; None for a
            joiner.
        hosts: for every member, the host that it is on.
        depth: what is held where.

    Returns:
        For every target rank the number of its member in ``kept``. Compared with the given order, tensor parallel
        groups are on fewer hosts, or else no fewer bytes are kept; where neither is better, it is the given order.
    """
    worth = _Worth(source, target, np.array([NOBODY if rank is None else rank for rank in kept], np.int64), depth)
    plain = np.arange(target.size, dtype=np.int64)
    place = _hosts(hosts, target.tp)
    tp_groups = form_groups(source, target.tp, worth.rank, place)
    order = np.empty(target.size, dtype=np.int64)
    order[target.groups("tp")[_slots(worth, tp_groups)]] = tp_groups
    if target.size <= _FEW:
        order = _exchanged(worth, order, place)
    spread, spread_plain = _spread(place[order], target), _spread(place, target)
    share, share_plain = worth.kept_share(order), worth.kept_share(plain)
    seen = all(world.ep == 1 and world.etp == world.tp for world in (source, target))
    if spread < spread_plain:
        return order.tolist(), f"tensor parallel groups on fewer hosts ({spread} instead of {spread_plain})"
    if seen and spread == spread_plain and share > share_plain + _WORTH:
        return order.tolist(), f"workers keep {share:.0%} of the state instead of {share_plain:.0%}"
    kept_share = f": workers keep {share_plain:.0%} of the state" if seen else ""
    return plain.tolist(), f"survivors in their order, then joiners{kept_share}"


def _hosts(hosts: Sequence[str], tp: int) -> Ints:
    """Return a number for each member's host; one for all where no order could put groups on fewer hosts."""
    names, place = np.unique(np.array(hosts), return_inverse=True)
    return np.zeros(len(hosts), dtype=np.int64) if tp == 1 or len(names) == len(hosts) else place.astype(np.int64)


def _spread(place: Ints, target: Layout) -> int:
    """Return the hosts that each tensor parallel group is on, summed."""
    groups = np.sort(place[target.groups("tp")], axis=1)
    return int((np.diff(groups, axis=1) != 0).sum()) + len(groups)


def _exchanged(worth: _Worth, order: Ints, place: Ints) -> Ints:
    """Exchange two members of one host for as long as more is kept so: what groups of workers are too coarse for."""
    order = order.copy()
    rank = np.arange(len(order), dtype=np.int64)
    bytes_at = worth.kept(rank[:, None], rank[None, :])
    while True:
        now = bytes_at[order]
        gain = now + now.T - (np.diagonal(now)[:, None] + np.diagonal(now)[None, :])
        gain[place[order][:, None] != place[order][None, :]] = 0.0
        one, other = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[one, other] <= 1e-9 * max(float(now.max()), 1.0):
            return order
        order[[one, other]] = order[[other, one]]


class _Worth:
    """Bytes that a member keeps on a target rank. Members and ranks are numbers; joiners have rank NOBODY."""

    def __init__(self, source: Layout, target: Layout, rank: Ints, depth: Depth) -> None:
        self.source, self.target, self.rank, self.depth = source, target, rank, depth
        before, after = np.asarray(depth.source, dtype=float), np.asarray(depth.target, dtype=float)
        common = np.maximum(
            np.minimum(before[1:, None], after[None, 1:]) - np.maximum(before[:-1, None], after[None, :-1]), 0.0
        )
        # Of all chunks together: the one before a stage's next one is as many stages back as there are.
        self.stages = common.reshape(source.vpp, source.pp, target.vpp, target.pp).sum(axis=(0, 2))
        """Elements that a source stage and a target stage have in common, [source.pp, target.pp]."""
        self.whole = depth.weight + (0 if depth.cut else depth.state)
        """Bytes of an element that every replica holds."""

    def across(self, member: Ints, tp: Ints) -> Floats:
        """Return the share of the model's width that members hold, and need as tensor parallel ranks ``tp``.

        It is 0 for joiners.
        """
        ours, theirs = self.source.tp, self.target.tp
        mine = self.source.coordinate("tp", self.rank[member])
        low, high = np.maximum(mine / ours, tp / theirs), np.minimum((mine + 1) / ours, (tp + 1) / theirs)
        return np.where(self.rank[member] == NOBODY, 0.0, np.maximum(high - low, 0.0))

    def stage(self, member: Ints) -> Ints:
        """Return the source stages of members; any for a joiner."""
        return self.source.coordinate("pp", self.rank[member])

    def before(self, member: Ints, chunk: int) -> tuple[Floats, Floats]:
        """Return the interval of the depth, in one chunk, whose optimizer state each member holds, where replicas cut
        it."""
        stage, replica = self.stage(member) + chunk * self.source.pp, self.source.dense_replica(self.rank[member])
        return _interval(self.depth.source, stage, replica, self.source.dense_replicas)

    def after(self, rank: Ints, chunk: int) -> tuple[Floats, Floats]:
        """Return the same for target ranks."""
        stage, replica = self.target.coordinate("pp", rank) + chunk * self.target.pp, self.target.dense_replica(rank)
        return _interval(self.depth.target, stage, replica, self.target.dense_replicas)

    @property
    def chunks(self) -> Iterator[tuple[int, int]]:
        """Each pair of a source stage's chunk and a target stage's chunk, by their numbers."""
        return product(range(self.source.vpp), range(self.target.vpp))

    def kept(self, member: Ints, rank: Ints) -> Floats:
        """Return the bytes that each member has already of what the target rank beside it needs, times the width of the
        model."""
        kept = self.whole * self.stages[self.stage(member), self.target.coordinate("pp", rank)]
        for one, other in self.chunks if self.depth.cut else ():
            (low, high), (start, end) = self.before(member, one), self.after(rank, other)
            kept = kept + self.depth.state * np.maximum(np.minimum(high, end) - np.maximum(low, start), 0.0)
        return np.asarray(self.across(member, self.target.coordinate("tp", rank)) * kept, dtype=float)

    def kept_share(self, order: Ints) -> float:
        """Return the share of the target world's bytes that are where they are needed already."""
        elements = float(self.depth.target[-1] - self.depth.target[0])
        needed = self.whole * self.target.dense_replicas + (self.depth.state if self.depth.cut else 0)
        return float(self.kept(order, np.arange(self.target.size, dtype=np.int64)).sum()) / (elements * needed)


def _interval(bounds: Sequence[float], stage: Ints, replica: Ints, replicas: int) -> tuple[Floats, Floats]:
    """Return a replica's interval; gradient buffers lie in reverse, so the first has the end of its virtual stage."""
    edges = np.asarray(bounds, dtype=float)
    size = np.diff(edges)[stage] / replicas
    high = edges[stage + 1] - replica * size
    return high - size, high


def _slots(worth: _Worth, tp_groups: TpGroups) -> Ints:
    """Return a place for each tensor parallel group, as a row of ``target.groups("tp")``.

    The most valuable pairs of group and place come first.
    """
    count, stages, replicas = len(tp_groups), worth.target.pp, worth.target.dense_replicas
    seat = np.arange(tp_groups.shape[1], dtype=np.int64)
    width = worth.across(tp_groups, seat)
    # What a group keeps on any place of a stage.
    common = worth.whole * (width[:, :, None] * worth.stages[worth.stage(tp_groups)]).sum(axis=1)
    tp_group, slot, value = _own_places(worth, tp_groups, width)
    value = value + common[tp_group, worth.target.coordinate("pp", worth.target.groups("tp")[slot, 0])]
    anywhere, stage = np.nonzero(common > 0)
    # Places are tried from the most to the least valuable; a place of a stage's own comes as stage + all places.
    groups_of = np.concatenate([tp_group, anywhere])
    places = np.concatenate([slot, stage + count])
    values = np.concatenate([value, common[anywhere, stage]])
    scale = values.max(initial=1.0)
    order = np.lexsort([places, groups_of, -np.rint(values / scale * 1e9)])
    found = [NOBODY] * count
    free = [True] * count
    lowest = [pp * replicas for pp in range(stages)]
    for one, place in zip(groups_of[order].tolist(), places[order].tolist(), strict=True):
        if found[one] != NOBODY:
            continue
        if place >= count:
            pp = place - count
            while lowest[pp] < (pp + 1) * replicas and not free[lowest[pp]]:
                lowest[pp] += 1
            if lowest[pp] == (pp + 1) * replicas:
                continue
            place = lowest[pp]
        if free[place]:
            found[one], free[place] = place, False
    rest = iter([place for place in range(count) if free[place]])
    return np.array([next(rest) if place == NOBODY else place for place in found], dtype=np.int64)


def _own_places(worth: _Worth, tp_groups: TpGroups, width: Floats) -> tuple[Ints, Ints, Floats]:
    """Return the groups and places that have a part of the cut optimizer state in common, and its bytes."""
    tp_group, seat = np.nonzero(width > 0)
    if not worth.depth.cut or not len(tp_group):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    # Places in the order of depth: within a stage from the last replica to the first.
    places = np.arange(len(tp_groups), dtype=np.int64).reshape(worth.target.pp, -1)[:, ::-1].reshape(-1)
    found, values = [], []
    for one, other in worth.chunks:
        low, high = worth.before(tp_groups[tp_group, seat], one)
        start, end = worth.after(worth.target.groups("tp")[places, 0], other)
        first = np.searchsorted(end, low, side="right")
        count = np.maximum(np.searchsorted(start, high, side="left") - first, 0)
        at, pair = spans(first, count), np.repeat(np.arange(len(tp_group), dtype=np.int64), count)
        common = np.minimum(high[pair], end[at]) - np.maximum(low[pair], start[at])
        found.append(tp_group[pair] * len(tp_groups) + places[at])
        values.append(worth.depth.state * width[tp_group, seat][pair] * np.maximum(common, 0.0))
    keys, inverse = np.unique(np.concatenate(found), return_inverse=True)
    total = np.bincount(inverse, weights=np.concatenate(values), minlength=len(keys))
    return keys // len(tp_groups), keys % len(tp_groups), np.asarray(total, dtype=float)
