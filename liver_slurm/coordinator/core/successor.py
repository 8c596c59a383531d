"""When the live job's time limit calls for a successor job, and when for a checkpoint instead. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from liver_slurm.scheduler.ports import LiveJob

ASSUMED_SAVE = 120.0
"""Seconds that a checkpoint takes while none was written yet."""
SPARE = 30.0
"""Seconds beside the checkpoint itself: a boundary to agree on, and workers that end before Slurm ends them."""
LONGEST_MARGIN = 0.25
"""Share of the time limit that is kept for the last checkpoint at most."""
SHORTEST_LEAD, LEAD_SHARE, LONGEST_LEAD = 600.0, 0.1, 0.5
"""The default lead: a tenth of the time limit, ten minutes at least, half of the limit at most."""
TRIES = 3
"""Successors that are submitted for one live job: one that ends before it takes over may have had a broken node."""


@dataclass(frozen=True)
class Outlook:
    """What the decision may look at."""

    now: float
    job: LiveJob
    lead: float | None
    """Seconds before the limit to submit the successor, as the user wants it; None: :func:`lead`."""
    save_s: float | None
    """Seconds that the last checkpoint took."""
    remaining_s: float | None
    """Seconds that the steps to come take at today's pace; None: not known."""
    tries: int
    """Successors submitted so far."""
    refused: str
    """Why there can be none; empty: there can."""
    submitting: bool
    """One is being submitted."""
    joined: int
    """Workers of the successor that can join a world."""
    wanted: int
    """Workers that it will have."""


Decision = Literal["stay", "submit", "hand over", "save"]


def decide(outlook: Outlook) -> tuple[Decision, str]:
    """What to do about the live job's time limit, and why.

    A world on the successor's workers is planned as soon as they are all there; whoever has less time left than the
    last checkpoint needs writes it and ends.
    """
    end = outlook.job.end_time
    if end is None:
        return "stay", "the live job has no time limit"
    left, successor = end - outlook.now, outlook.job.successor
    kept = margin(outlook.job.time_limit, outlook.save_s)
    last_step = outlook.remaining_s
    if left <= kept and last_step is not None and last_step + (outlook.save_s or kept / 2) < left:
        return "stay", f"the last step is {last_step:.0f} s away, the live job's time limit {left:.0f} s"
    if left <= kept:
        return "save", f"{left:.0f} s before the live job's time limit, {_standing(outlook)}"
    if successor is not None and outlook.joined >= outlook.wanted:
        return "hand over", f"job {successor.job_id} is ready to take over"
    if successor is not None or outlook.submitting:
        return "stay", _standing(outlook)
    # One that is submitted later than that has no chance to take over in time.
    ahead = max(outlook.lead if outlook.lead is not None else lead(outlook.job.time_limit), 2 * kept)
    if left > ahead:
        return "stay", f"{left:.0f} s until the live job's time limit"
    if last_step is not None and last_step < left - kept:
        return "stay", f"the last step is {last_step:.0f} s away, the live job's time limit {left:.0f} s"
    if outlook.tries >= TRIES or outlook.refused:
        return "stay", _standing(outlook)
    return "submit", f"{left:.0f} s until the live job's time limit"


def lead(time_limit: float | None) -> float:
    """Seconds before the limit at which a successor is submitted where the user does not say: time for its queue."""
    limit = time_limit if time_limit is not None else SHORTEST_LEAD / LONGEST_LEAD
    return min(LONGEST_LEAD * limit, max(SHORTEST_LEAD, LEAD_SHARE * limit))


def margin(time_limit: float | None, save_s: float | None) -> float:
    """Seconds before the limit at which the last checkpoint is begun: twice its time, and :data:`SPARE`."""
    wanted = 2 * (save_s if save_s is not None else ASSUMED_SAVE) + SPARE
    return wanted if time_limit is None else min(wanted, LONGEST_MARGIN * time_limit)


def _standing(outlook: Outlook) -> str:
    """How far the successor is."""
    successor = outlook.job.successor
    if successor is not None and successor.state == "PENDING":
        return f"successor job {successor.job_id} waits in the queue: {successor.why or 'no reason given'}"
    if successor is not None:
        return f"successor job {successor.job_id}: {outlook.joined} of {outlook.wanted} workers are ready"
    if outlook.refused:
        return f"there is no successor: {outlook.refused}"
    if outlook.tries >= TRIES:
        return f"{outlook.tries} successors have ended before they took over"
    return "there is no successor yet"
