"""Votes for a commit side by side: each worker has proven its boxes, and all must mean the same by what is no box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from liver_slurm.protocol.messages import Streamed

_NOT_SAID = -1


def disagreement(votes: Mapping[str, Streamed], step: int) -> str:
    """Return why votes for a commit are not of one state; empty: they are, as far as they say.

    Args:
        votes: by worker, all of them for the commit.
        step: of the cutover.
    """
    for worker, vote in votes.items():
        if vote.found.step not in (_NOT_SAID, step):
            return f"{worker} would go on with the samples of step {vote.found.step}, and the cutover is at step {step}"
    updates = {worker: vote.found.updates for worker, vote in votes.items() if vote.found.updates != _NOT_SAID}
    if two := _two_of(updates):
        (worker, one), (other, most) = two
        return f"the optimizer's step of {worker} is {one}, and that of {other} is {most}"
    if two := _two_of({worker: vote.found.data for worker, vote in votes.items() if vote.found.data}):
        (worker, _), (other, _) = two
        return f"{worker} and {other} have other samples: data.paths must be the same on all nodes"
    return ""


def _two_of(said: Mapping[str, int | str]) -> tuple[tuple[str, int | str], tuple[str, int | str]] | None:
    """Return a worker that says something else than most do, and one of those; None: all say the same."""
    counts = Counter(said.values())
    if len(counts) < 2:
        return None
    (most, _), *_ = counts.most_common(1)
    alone = next(worker for worker, value in said.items() if value != most)
    usual = next(worker for worker, value in said.items() if value == most)
    return (alone, said[alone]), (usual, most)
