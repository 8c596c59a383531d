"""The transfer plan: which worker copies what to whom, so that a target world's state is complete.

A region is a box that one set of source ranks owns and one set of target ranks needs. A receiver whose worker is an
owner copies locally; the others are served by the owners. All that one owner set has to send is laid out as one stream
of bytes, receiver after receiver and layer after layer, and the stream is cut among the owners at shares that
:mod:`liver_slurm.reshard.load_balance` chooses, nearest owners first, so that one owner sends the same boxes to several
receivers (:mod:`liver_slurm.reshard.sender_assignment`). So a move is a function of a few sums over the plan, and
every rank computes its own moves, the same ones that its peers compute, without listing the others'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from liver_slurm.base.errors import PlanError
from liver_slurm.reshard import load_balance
from liver_slurm.reshard.intersections import find_regions
from liver_slurm.reshard.rank_sets import NOBODY, Ints, RankMembership
from liver_slurm.reshard.sender_assignment import Place, build_streams, serve
from liver_slurm.reshard.shard_spec import WorldSpec
from liver_slurm.reshard.tensors import Move, TensorInfo, flat_boxes, shifted


class RankMoves(NamedTuple):
    """One worker's part of a plan; both ends of a pair list the moves between them in the same order.

    ``sends``: moves to other workers; ``receives``: moves from other workers; ``copies``: moves inside this worker.
    """

    sends: list[Move]
    receives: list[Move]
    copies: list[Move]


def default_keep(source_size: int, target_size: int) -> list[int | None]:
    """Let worker i of the source world be worker i of the target world, as far as both have one."""
    return [rank if rank < source_size else None for rank in range(target_size)]


def plan_transfer(
    source: WorldSpec,
    target: WorldSpec,
    keep: Sequence[int | None] | None = None,
    places: tuple[Sequence[Place], Sequence[Place]] | None = None,
) -> TransferPlan:
    """Plan the way from one world's state to another's; a function of its arguments alone, the same on every rank.

    Args:
        source: the live world.
        target: the world to fill.
        keep: for every target rank, the source rank of the same worker, or None for a joiner; default:
            :func:`default_keep`.
        places: where each source rank and each target rank is; all of one length. Where replicas leave a choice,
            senders serve receivers of the same host first, then of the same rack, as far as the balance allows.

    Raises:
        PlanError: the worlds are not of the same model, ``keep`` is no such map, or an element that the target needs is
            nowhere in the source.
    """
    if keep is None:
        keep = default_keep(source.layout.size, target.layout.size)
    return TransferPlan(source, target, keep, places)


class TransferPlan:
    """All moves of one reconfiguration; see :func:`plan_transfer`.

    Building it takes time in the number of regions; moves are made when they are asked for.

    Attributes:
        source, target, keep: what was planned.
        send_bytes: bytes that each source rank sends to other workers, [ranks]; to within one element for each
            region that two owners share.
        max_send_over_mean: how uneven senders are where replicas leave a choice, see
            :func:`liver_slurm.reshard.load_balance.max_over_mean`.
        least_hottest: bytes that the hottest owner of any plan as small as this one sends at least.
    """

    def __init__(
        self,
        source: WorldSpec,
        target: WorldSpec,
        keep: Sequence[int | None],
        places: tuple[Sequence[Place], Sequence[Place]] | None = None,
    ) -> None:
        self.source, self.target, self.keep = source, target, tuple(keep)
        problem = keep_problem(self.keep, source.layout.size, target.layout.size)
        if problem is not None:
            raise PlanError(f"the map of kept workers {problem}")
        _check_same_model(source.tensors, target.tensors)
        self._regions = find_regions(source, target)
        owners = self._regions.owners
        self._owned = RankMembership(owners, source.layout.size)
        kept = np.array([NOBODY if rank is None else rank for rank in self.keep], dtype=np.int64)
        self._streams = build_streams(self._regions, self._owned, kept)
        amounts = np.zeros(len(owners), dtype=np.int64)
        np.add.at(amounts, self._streams.owner, self._streams.size)
        part, self.send_bytes = load_balance.shares(owners, amounts, source.layout.size)
        self.max_send_over_mean = load_balance.max_over_mean(owners, part, self.send_bytes)
        self.least_hottest = load_balance.least_hottest(owners, amounts, source.layout.size)
        self._sending = np.flatnonzero(amounts)
        self._service = serve(self._streams, owners, part, _nearest_first(places, self))

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor that the plan moves, by name."""
        return self.target.tensors

    @cached_property
    def bytes_total(self) -> int:
        """Bytes of all moves, local and remote: of everything that all target ranks hold."""
        regions = self._regions
        return int((regions.size * regions.unit * regions.receivers.sizes[regions.receiver]).sum())

    @property
    def bytes_remote(self) -> int:
        """Bytes that go from one worker to another."""
        return int(self._streams.size.sum())

    @cached_property
    def senders(self) -> Ints:
        """Source ranks that send, or could: those that own a region which another worker must be sent."""
        return np.unique(self._regions.owners.members(self._sending)[1])

    def moves(self) -> Iterator[Move]:
        """Yield all moves, local copies too, target rank after target rank, each in plan order."""
        for rank in range(self.target.layout.size):
            yield from self._received_by(rank)

    def moves_for(self, source_rank: int | None, target_rank: int | None) -> RankMoves:
        """Return what the worker does that is ``source_rank`` in the source world and ``target_rank`` in the target
        world.

        Either is None for a worker that joins or leaves. Moves are in plan order: by layer, tensor, offset; sends by
        target rank first.

        Raises:
            ValueError: these two ranks are not of one worker.
        """
        if target_rank is not None and self.keep[target_rank] != source_rank:
            raise ValueError(f"target rank {target_rank} is source rank {self.keep[target_rank]}, not {source_rank}")
        receives: list[Move] = []
        copies: list[Move] = []
        if target_rank is not None:
            for move in self._received_by(target_rank):
                (copies if move.source_rank == source_rank else receives).append(move)
        sends = [] if source_rank is None else list(self._sent_by(source_rank))
        return RankMoves(sends, receives, copies)

    @cached_property
    def _rows_by_set(self) -> tuple[Ints, Ints]:
        """Row numbers of regions grouped by receiver set, each group in plan order; and where the groups begin."""
        order = np.argsort(self._regions.receiver, kind="stable")
        bounds = np.searchsorted(self._regions.receiver[order], np.arange(len(self._regions.receivers) + 1))
        return order, bounds

    @cached_property
    def _sets_of(self) -> tuple[Ints, Ints]:
        """Receiver sets grouped by target rank, and where the groups begin."""
        receivers = self._regions.receivers
        order = np.argsort(receivers.ranks, kind="stable")
        number = np.repeat(np.arange(len(receivers), dtype=np.int64), receivers.sizes)[order]
        return number, np.searchsorted(receivers.ranks[order], np.arange(self.target.layout.size + 1))

    def _rows(self, target_rank: int) -> Ints:
        """Return the row numbers of the regions that a target rank needs, in plan order."""
        order, bounds = self._rows_by_set
        numbers, first = self._sets_of
        sets = numbers[first[target_rank] : first[target_rank + 1]]
        groups = [order[bounds[number] : bounds[number + 1]] for number in sets.tolist()]
        return np.sort(np.concatenate([np.zeros(0, np.int64), *groups]))

    def _received_by(self, target_rank: int, sender: int | None = None) -> Iterator[Move]:
        """Yield every move into one target rank, in plan order.

        Those of owner sets without ``sender`` may be left out.
        """
        regions, own = self._regions, self.keep[target_rank]
        rows = self._rows(target_rank)
        if sender is not None:
            rows = rows[self._owned.contains(regions.owner[rows], np.full(len(rows), sender, dtype=np.int64))]
        owners = regions.owner[rows]
        local = self._owned.contains(owners, np.full(len(rows), NOBODY if own is None else own, dtype=np.int64))
        served = {int(n): self._service.of(self._streams.row(int(n), target_rank)) for n in np.unique(owners[~local])}
        begin = dict.fromkeys(served, 0)
        columns = (rows, owners, local, regions.size[rows], regions.unit[rows])
        for row, owner, is_local, size, unit in zip(*(column.tolist() for column in columns), strict=True):
            if is_local and own is not None:
                yield from self._move(row, own, target_rank, 0, size)
            else:
                yield from self._served(row, target_rank, *served[owner], begin[owner])
                begin[owner] += size * unit

    def _served(self, row: int, target_rank: int, ends: Ints, senders: Ints, begin: int) -> Iterator[Move]:
        """Yield the moves of one region that lies at ``begin`` in its stream's row, of which senders serve parts."""
        unit, size = int(self._regions.unit[row]), int(self._regions.size[row])
        index = int(np.searchsorted(ends, begin, side="right"))
        done = 0
        while done < size:
            # A part that ends inside an element ends at the element's start.
            until = min(size, (int(ends[index]) - begin) // unit)
            yield from self._move(row, int(senders[index]), target_rank, done, until)
            done, index = until, index + 1

    def _move(self, row: int, source_rank: int, target_rank: int, start: int, end: int) -> Iterator[Move]:
        """Yield the elements ``[start, end)`` of a region as moves of every tensor that lies there."""
        tensors = self._regions.kinds[self._regions.kind[row]]
        axes = len(tensors[0].shape)
        offset = tuple(self._regions.offset[row, :axes].tolist())
        for inside, extent in flat_boxes(tuple(self._regions.shape[row, :axes].tolist()), start, end):
            at = shifted(offset, inside)
            for info in tensors:
                yield Move(info.name, source_rank, target_rank, at, extent)

    def _sent_by(self, source_rank: int) -> Iterator[Move]:
        """Yield every move out of one source rank to another worker: by target rank, then in plan order."""
        rows = self._service.rows_of(source_rank)
        for target_rank in np.unique(self._streams.receiver[rows]).tolist():
            moves = self._received_by(target_rank, source_rank)
            yield from (move for move in moves if move.source_rank == source_rank)


def keep_problem(keep: Sequence[int | None], source_size: int, target_size: int) -> str | None:
    """Return why ``keep`` is no map from target ranks to source ranks of the same workers; None: it is one."""
    kept = [rank for rank in keep if rank is not None]
    if len(keep) != target_size:
        return f"has {len(keep)} entries, but the target world has {target_size} ranks"
    if outside := [rank for rank in kept if not 0 <= rank < source_size]:
        return f"names source rank {outside[0]}, but the source world's ranks are 0 to {source_size - 1}"
    if twice := [rank for rank, times in Counter(kept).items() if times > 1]:
        return f"names source rank {twice[0]} twice, but a worker has one rank in a world"
    return None


def _check_same_model(source: dict[str, TensorInfo], target: dict[str, TensorInfo]) -> None:
    for name in sorted({*source, *target}):
        if name not in source or name not in target:
            raise PlanError(f"{name} is only in the {'source' if name in source else 'target'} world's state")
        if source[name] != target[name]:
            raise PlanError(f"{name} is {source[name]} in the source world and {target[name]} in the target world")


def _nearest_first(
    places: tuple[Sequence[Place], Sequence[Place]] | None, plan: TransferPlan
) -> list[tuple[Ints, Ints]]:
    """Return for each width of place, the narrowest first, its number for every source and every target rank."""
    if places is None:
        return []
    sizes = plan.source.layout.size, plan.target.layout.size
    if tuple(map(len, places)) != sizes or len({len(place) for side in places for place in side}) != 1:
        raise PlanError("places must be given for all ranks of both worlds, and all alike: (host,) or (rack, host)")
    near = []
    for width in range(len(places[0][0]), 0, -1):
        numbers: dict[tuple[str, ...], int] = {}
        source, target = (
            np.array([numbers.setdefault(tuple(place[:width]), len(numbers)) for place in side], dtype=np.int64)
            for side in places
        )
        near.append((source, target))
    return near
