"""Defects of a target world's state, done on purpose: for tests that each of them is found before the commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from liver_slurm.base.faults import Defect
from liver_slurm.reshard.plan import RankMoves
from liver_slurm.reshard.tensors import Move
from liver_slurm.transfer.shared_box import SharedBox


def spoil(defect: Defect, boxes: Sequence[SharedBox]) -> str:
    """Do a defect to one of the boxes that have arrived, the first that is another one by it.

    Returns: which tensor; empty: none of them would be another one.
    """
    views = [(name, view) for box in boxes for name, view in zip(box.names, box.state, strict=True)]
    with torch.no_grad():
        if defect is Defect.SWAPPED:
            return _swap(views)
        change = _CHANGES.get(defect)
        for name, view in views if change is not None else ():
            assert change is not None
            if defect is Defect.STALE and not _is_moment(name):
                continue
            other = change(view)
            if not _alike(view, other):
                view.copy_(other)
                return name
    return ""


def without_a_name(moves: RankMoves) -> tuple[RankMoves, str]:
    """Return the moves without one of their tensors, and which."""
    name = next((move.tensor for some in (moves.receives, moves.copies) for move in some), "")
    return RankMoves(*([move for move in some if move.tensor != name] for some in moves)), name


def with_a_wrong_expert(moves: RankMoves) -> tuple[RankMoves, str]:
    """Return the moves with two experts in each other's place, and of which tensor; empty: there are no two."""
    for first, second in _pairs(moves.receives):
        one, other = moves.receives[first], moves.receives[second]
        if "expert" in one.tensor and one.offset != other.offset:
            receives = list(moves.receives)
            receives[first], receives[second] = other, one
            return moves._replace(receives=receives), one.tensor
    return moves, ""


def _pairs(moves: Sequence[Move]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of moves that could be mistaken for each other."""
    for first, one in enumerate(moves):
        for second, other in enumerate(moves[first + 1 :], first + 1):
            if (one.tensor, one.shape, one.source_rank) == (other.tensor, other.shape, other.source_rank):
                yield first, second


def _swap(views: Sequence[tuple[str, torch.Tensor]]) -> str:
    for place, (name, one) in enumerate(views):
        for _, other in views[place + 1 :]:
            if (one.shape, one.dtype) == (other.shape, other.dtype) and not _alike(one, other):
                kept = one.clone()
                one.copy_(other)
                other.copy_(kept)
                return name
    return ""


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    ours, theirs = (view.contiguous().view(-1).view(torch.uint8) for view in (one, other))
    return bool(torch.equal(ours, theirs))


def _is_moment(name: str) -> bool:
    return "@" in name and not name.endswith("@master")


def _bit_flipped(view: torch.Tensor) -> torch.Tensor:
    other = view.clone(memory_format=torch.contiguous_format)
    other.view(-1).view(torch.uint8)[0] ^= 1
    return other


_CHANGES: dict[Defect, Callable[[torch.Tensor], torch.Tensor]] = {
    Defect.UNLOADED: torch.zeros_like,
    Defect.CORRUPT: _bit_flipped,
    Defect.PERMUTED: lambda view: view.flip(tuple(range(view.dim()))),
    Defect.STALE: lambda view: view / 0.9,  # as before an update without a gradient
    Defect.CAST: lambda view: view.to(torch.bfloat16).to(view.dtype),
}
