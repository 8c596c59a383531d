"""The transfer plan: which worker copies what to whom, so that a target world's state is complete.

A region is a box that one set of source ranks owns and one set of target ranks needs. A receiver whose worker is an
owner copies locally; the others are served by the owners. All that one owner set has to send is laid out as one stream
of bytes, receiver after receiver and layer after layer, and the stream is cut among the owners at shares that
:mod:`liver_slurm.state.balance` chooses. So a move is a function of a few sums over the plan, and every rank computes
its own moves, the same ones that its peers compute, without listing the others'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from liver_slurm.errors import PlanError
from liver_slurm.state import balance
from liver_slurm.state.holdings import Ints
from liver_slurm.state.pieces import ITEMSIZE, Move, TensorInfo, flat_boxes, intersect, shifted, volume
from liver_slurm.state.regions import find_regions
from liver_slurm.state.spec import WorldSpec, pieces
from liver_slurm.state.streams import NOBODY, Membership, build_streams


class RankMoves(NamedTuple):
    """One worker's part of a plan; both ends of a pair list the moves between them in the same order.

    ``sends``: moves to other workers; ``receives``: moves from other workers; ``copies``: moves inside this worker.
    """

    sends: list[Move]
    receives: list[Move]
    copies: list[Move]


def default_keep(source_size: int, target_size: int) -> list[int | None]:
    """Worker i of the source world is worker i of the target world, as far as both have one."""
    return [rank if rank < source_size else None for rank in range(target_size)]


def plan_transfer(source: WorldSpec, target: WorldSpec, keep: Sequence[int | None] | None = None) -> TransferPlan:
    """Plan the way from one world's state to another's.

    Args:
        source: the live world.
        target: the world to fill.
        keep: for every target rank, the source rank of the same worker, or None for a joiner; default:
            :func:`default_keep`.

    Raises:
        PlanError: the worlds are not of the same model, ``keep`` is no such map, or an element that the target needs is
            nowhere in the source.
    """
    if keep is None:
        keep = default_keep(source.layout.size, target.layout.size)
    return TransferPlan(source, target, keep)


class TransferPlan:
    """All moves of one reconfiguration; see :func:`plan_transfer`.

    Building it takes time in the number of regions; moves are made when they are asked for.

    Attributes:
        source, target, keep: what was planned.
        send_bytes: bytes that each source rank sends to other workers, [ranks]; to within one element for each
            region that two owners share.
        max_send_over_mean: how uneven senders are where replicas leave a choice, see
            :func:`liver_slurm.state.balance.max_over_mean`.
    """

    def __init__(self, source: WorldSpec, target: WorldSpec, keep: Sequence[int | None]) -> None:
        self.source, self.target, self.keep = source, target, tuple(keep)
        problem = keep_problem(self.keep, source.layout.size, target.layout.size)
        if problem is not None:
            raise PlanError(f"the map of kept workers {problem}")
        _check_same_model(source.tensors, target.tensors)
        self._regions = find_regions(source, target)
        self._owned = Membership(self._regions.owners, source.layout.size)
        kept = np.array([NOBODY if rank is None else rank for rank in self.keep], dtype=np.int64)
        self._streams = build_streams(self._regions, self._owned, kept)
        amounts = np.zeros(len(self._regions.owners), dtype=np.int64)
        np.add.at(amounts, self._streams.owner, self._streams.size)
        sending = {int(owner): int(amounts[owner]) for owner in np.flatnonzero(amounts)}
        shares, self.send_bytes = balance.shares(self._regions.owners, sending, source.layout.size)
        self.max_send_over_mean = balance.max_over_mean(self._regions.owners, shares, self.send_bytes)
        # Where each owner's part of its owner set's stream ends.
        self._cuts = {owner: np.cumsum(share) for owner, share in shares.items()}

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor that the plan moves, by name."""
        return self.target.tensors

    @cached_property
    def bytes_total(self) -> int:
        """Bytes of all moves, local and remote: of everything that all target ranks hold."""
        regions = self._regions
        counts = np.array([len(ranks) for ranks in regions.receivers], dtype=np.int64)
        return int((regions.size * regions.unit * counts[regions.receiver]).sum())

    @property
    def bytes_remote(self) -> int:
        """Bytes that go from one worker to another."""
        return int(self._streams.size.sum())

    @cached_property
    def senders(self) -> Ints:
        """Source ranks that send, or could: those that own a region which another worker must be sent."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *(self._regions.owners[n] for n in self._cuts)]))

    def moves(self) -> Iterator[Move]:
        """All moves, local copies too, target rank after target rank, each in plan order."""
        for rank in range(self.target.layout.size):
            yield from self._arrivals(rank)

    def moves_for(self, source_rank: int | None, target_rank: int | None) -> RankMoves:
        """What the worker does that is ``source_rank`` in the source world and ``target_rank`` in the target world.

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
            for move in self._arrivals(target_rank):
                (copies if move.source_rank == source_rank else receives).append(move)
        sends = [] if source_rank is None else list(self._departures(source_rank))
        return RankMoves(sends, receives, copies)

    @cached_property
    def _rows_by_set(self) -> tuple[Ints, Ints]:
        """Row numbers of regions grouped by receiver set, each group in plan order; and where the groups begin."""
        order = np.argsort(self._regions.receiver, kind="stable")
        bounds = np.searchsorted(self._regions.receiver[order], np.arange(len(self._regions.receivers) + 1))
        return order, bounds

    @cached_property
    def _sets_of(self) -> list[list[int]]:
        """For every target rank, the receiver sets that it is in."""
        found: list[list[int]] = [[] for _ in range(self.target.layout.size)]
        for number, ranks in enumerate(self._regions.receivers):
            for rank in ranks.tolist():
                found[rank].append(number)
        return found

    def _rows(self, target_rank: int) -> Ints:
        """Row numbers of the regions that a target rank needs, in plan order."""
        order, bounds = self._rows_by_set
        groups = [order[bounds[number] : bounds[number + 1]] for number in self._sets_of[target_rank]]
        return np.sort(np.concatenate([np.zeros(0, np.int64), *groups]))

    def _arrivals(self, target_rank: int) -> Iterator[Move]:
        """Every move into one target rank, in plan order."""
        regions, own = self._regions, self.keep[target_rank]
        rows = self._rows(target_rank)
        owners = regions.owner[rows]
        local = self._owned.contains(owners, np.full(len(rows), NOBODY if own is None else own, dtype=np.int64))
        begin = {int(n): self._streams.begin_of(int(n), target_rank) for n in np.unique(owners[~local])}
        columns = (rows, owners, local, regions.size[rows], regions.unit[rows])
        for row, owner, is_local, size, unit in zip(*(column.tolist() for column in columns), strict=True):
            if is_local and own is not None:
                yield from self._move(row, own, target_rank, 0, size)
            else:
                yield from self._served(row, owner, target_rank, begin[owner])
                begin[owner] += size * unit

    def _served(self, row: int, owner: int, target_rank: int, begin: int) -> Iterator[Move]:
        """The moves of one region that lies at ``begin`` in its owner set's stream."""
        unit, size = int(self._regions.unit[row]), int(self._regions.size[row])
        cuts, members = self._cuts[owner], self._regions.owners[owner]
        index = int(np.searchsorted(cuts, begin, side="right"))
        done = 0
        while done < size:
            # A cut inside an element moves down to the element's start.
            until = min(size, (int(cuts[index]) - begin) // unit)
            yield from self._move(row, int(members[index]), target_rank, done, until)
            done, index = until, index + 1

    def _move(self, row: int, source_rank: int, target_rank: int, start: int, end: int) -> Iterator[Move]:
        """Elements ``[start, end)`` of a region as moves of every tensor that lies there."""
        tensors = self._regions.kinds[self._regions.kind[row]]
        axes = len(tensors[0].shape)
        offset = tuple(self._regions.offset[row, :axes].tolist())
        for inside, extent in flat_boxes(tuple(self._regions.shape[row, :axes].tolist()), start, end):
            at = shifted(offset, inside)
            for info in tensors:
                yield Move(info.name, source_rank, target_rank, at, extent)

    def _departures(self, source_rank: int) -> Iterator[Move]:
        """Every move out of one source rank to another worker: by target rank, then in plan order."""
        targets: set[int] = set()
        for owner, cuts in self._cuts.items():
            members = self._regions.owners[owner]
            at = int(np.searchsorted(members, source_rank))
            if at < len(members) and members[at] == source_rank:
                start = int(cuts[at - 1]) if at else 0
                targets.update(self._streams.receivers_within(owner, start, int(cuts[at])).tolist())
        for target_rank in sorted(targets):
            if self.keep[target_rank] != source_rank:
                yield from (move for move in self._arrivals(target_rank) if move.source_rank == source_rank)


def remote_minimum(source: WorldSpec, target: WorldSpec, keep: Sequence[int | None]) -> int:
    """Bytes that must go from one worker to another whatever the plan: what a worker needs and does not hold.

    Found from the ranks' pieces, one worker at a time, and not from a plan.
    """
    needed = 0
    for target_rank, source_rank in enumerate(keep):
        held: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
        if source_rank is not None:
            for piece in pieces(source, source_rank):
                held.setdefault(piece.tensor, []).append((piece.offset, piece.shape))
        for piece in pieces(target, target_rank):
            overlaps = (intersect(piece.offset, piece.shape, *box) for box in held.get(piece.tensor, ()))
            missing = volume(piece.shape) - sum(volume(overlap[1]) for overlap in overlaps if overlap is not None)
            needed += missing * ITEMSIZE[target.tensors[piece.tensor].dtype]
    return needed


def keep_problem(keep: Sequence[int | None], source_size: int, target_size: int) -> str | None:
    """Why ``keep`` is no map from target ranks to source ranks of the same workers; None: it is one."""
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
