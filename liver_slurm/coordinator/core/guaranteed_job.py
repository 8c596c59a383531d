"""The guaranteed job's end: a successor takes over at its time limit, or Slurm takes its nodes.

Handover: the successor's workers register like any others, as guaranteed ones of another job. Once all are there, those
of our own job get a notice, and the policy plans a world without them. When that world is live, this coordinator writes
down who goes on with the run, and ends; the successor's component 0, which has waited for that record, recovers from
the journal as a coordinator that is started again does.

Interruption: where the successor is not there in time, or Slurm takes the job away, a last checkpoint is written, and
this coordinator and its workers end; the run does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from liver_slurm.base.frozen import replace
from liver_slurm.coordinator.core import lifecycle, resize_queue, step_barrier
from liver_slurm.coordinator.core.io import (
    GuaranteedJobSeen,
    Interrupted,
    StopAsked,
    SubmitSuccessor,
    SuccessorAnswer,
    Tick,
)
from liver_slurm.coordinator.core.records import HandedOver
from liver_slurm.coordinator.core.signals import EvictionHeard, RunInterrupted, TimeIsUp
from liver_slurm.coordinator.core.state import Handover, Interruption, RunPhase, RunState
from liver_slurm.coordinator.core.transition import Transition, Writer
from liver_slurm.coordinator.core.workers import Eviction, Worker
from liver_slurm.protocol.messages import CheckpointWritten
from liver_slurm.rundir import events
from liver_slurm.scheduler.ports import GuaranteedJob, SuccessorJob

KILLED = 5.0
"""Seconds before the time limit by which the workers have been told to leave."""
ASSUMED_SAVE = 120.0
"""Seconds that a checkpoint takes while none was written yet."""
SPARE = 30.0
"""Seconds beside the checkpoint itself: a barrier to agree on, and workers that end before Slurm ends them."""
LONGEST_MARGIN = 0.25
"""Share of the time limit that is kept for the last checkpoint at most."""
SHORTEST_LEAD, LEAD_SHARE, LONGEST_LEAD = 600.0, 0.1, 0.5
"""The default lead: a tenth of the time limit, ten minutes at least, half of the limit at most."""
TRIES = 3
"""Successors that are submitted for one job: one that ends before it takes over may have had a broken node, and one
that is refused a controller that was busy."""
ASK_AGAIN = 60.0
"""Seconds after which another one is asked for where one was refused."""

SAVING = 20.0
"""Seconds that the last checkpoint may take. Slurm kills after KillWait, 30 s by default; leaving frees the nodes."""

_write = Writer(Handover, __name__)
_write_interruption = Writer(Interruption, __name__)


# ---- handover -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outlook:
    """The facts that :func:`decide` needs."""

    now: float
    job: GuaranteedJob
    lead: float | None
    """Seconds before the limit to submit the successor, as the user wants it; None: :func:`lead`."""
    save_s: float | None
    """Seconds that the last checkpoint took."""
    remaining_s: float | None
    """Seconds that the steps to come take at today's pace; None: not known."""
    tries: int
    """Successors submitted so far."""
    refused: str
    """Why there can be none, or why the last one was refused; empty: there can."""
    ask_again: float
    """When another one is asked for after that, seconds since the epoch."""
    submitting: bool
    """One is being submitted."""
    joined: int
    """Workers of the successor that can join a world."""
    wanted: int
    """Workers that it will have."""


Decision = Literal["stay", "submit", "hand over", "save"]


def decide(outlook: Outlook) -> tuple[Decision, str]:
    """Decide what to do about the guaranteed job's time limit, and say why.

    A world on the successor's workers is planned as soon as they are all there; whoever has less time left than the
    last checkpoint needs writes it and ends.
    """
    end = outlook.job.end_time
    if end is None:
        return "stay", "the guaranteed job has no time limit"
    left, successor = end - outlook.now, outlook.job.successor
    kept = margin(outlook.job.time_limit, outlook.save_s)
    last_step = outlook.remaining_s
    if left <= kept and last_step is not None and last_step + (outlook.save_s or kept / 2) < left:
        return "stay", f"the last step is {last_step:.0f} s away, the guaranteed job's time limit {left:.0f} s"
    if left <= kept:
        return "save", f"{left:.0f} s before the guaranteed job's time limit, {_standing(outlook)}"
    if successor is not None and outlook.joined >= outlook.wanted:
        return "hand over", f"job {successor.job_id} is ready to take over"
    if successor is not None or outlook.submitting:
        return "stay", _standing(outlook)
    # One that is submitted later than that has no chance to take over in time.
    ahead = max(outlook.lead if outlook.lead is not None else lead(outlook.job.time_limit), 2 * kept)
    if left > ahead:
        return "stay", f"{left:.0f} s until the guaranteed job's time limit"
    if last_step is not None and last_step < left - kept:
        return "stay", f"the last step is {last_step:.0f} s away, the guaranteed job's time limit {left:.0f} s"
    if outlook.tries >= TRIES or (outlook.refused and outlook.now < outlook.ask_again):
        return "stay", _standing(outlook)
    return "submit", f"{left:.0f} s until the guaranteed job's time limit"


def lead(time_limit: float | None) -> float:
    """Return the default lead: seconds before the limit at which a successor is submitted, so that it can queue."""
    limit = time_limit if time_limit is not None else SHORTEST_LEAD / LONGEST_LEAD
    return min(LONGEST_LEAD * limit, max(SHORTEST_LEAD, LEAD_SHARE * limit))


def margin(time_limit: float | None, save_s: float | None) -> float:
    """Return how many seconds before the limit the last checkpoint begins: twice its time, and :data:`SPARE`."""
    wanted = 2 * (save_s if save_s is not None else ASSUMED_SAVE) + SPARE
    return wanted if time_limit is None else min(wanted, LONGEST_MARGIN * time_limit)


def _standing(outlook: Outlook) -> str:
    """Describe how far the successor is."""
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


# ---- carrying it out ----------------------------------------------------------------------------------------------


def seen(t: Transition, given: GuaranteedJobSeen) -> None:
    """Handle one look at the guaranteed job and its successor."""
    before, after = t.state.handover.successor, given.job.successor
    _write(t, replace(t.state.handover, job=given.job, unseen=False))
    if before and (after is None or after.job_id != before):
        t.emit(events.SuccessorLost(job_id=before))


def answered(t: Transition, given: SuccessorAnswer) -> None:
    """Handle a successor that was submitted, or refused."""
    known = replace(t.state.handover, submitting=False, refused=given.error)
    if given.error:
        _write(t, replace(known, ask_again=t.now + ASK_AGAIN, unseen=True))
        then = f"a checkpoint before the time limit; go on with {t.state.settings.how_to_resume}"
        if known.tries < TRIES:
            then = f"another one is asked for in {ASK_AGAIN:.0f} s; if there is none, {then}"
        t.emit(events.SuccessorRefused(reason=given.error, then=then))
        return
    if known.job is not None:  # known before the next look, so that it is not submitted twice
        known = replace(known, job=replace(known.job, successor=SuccessorJob(given.job_id, "PENDING")))
    _write(t, known)
    t.emit(events.SuccessorSubmitted(job_id=given.job_id))


def stop_asked(t: Transition, given: StopAsked) -> None:
    """Handle a signal to the coordinator: at the time limit a successor goes on with the run, else it is cancelled."""
    job = t.state.handover.job
    lifecycle.hurry(t)
    if job is not None and job.successor and job.end_time is not None and t.now >= job.end_time - KILLED:
        lifecycle.end(t, RunPhase.INTERRUPTED, "the guaranteed job's time limit")
    else:
        lifecycle.end(t, RunPhase.CANCELLED, given.reason)


def advance(t: Transition, _: Tick) -> None:
    """Do what the time limit calls for."""
    state, job = t.state, t.state.handover.job
    if job is None or state.interruption.reason or state.over:
        return
    if state.phase in (RunPhase.STARTING, RunPhase.RECOVERING):
        return
    if _moved(state):
        _hand_over(t)
        return
    decision, reason = decide(_outlook(state, job))
    if decision == "save":
        _save(t, job, reason)
    elif decision == "submit":
        _write(t, replace(state.handover, submitting=True, tries=state.handover.tries + 1))
        t.actions.append(SubmitSuccessor())
        t.emit(events.SuccessorWanted(reason=reason))
    if decision != "hand over":
        _take_back(t)
    elif state.steady:  # reconfigurations never overlap, and this one can wait
        _announce(t, job, reason)


# ---- who belongs to which job --------------------------------------------------------------------------------------


def kept_out(state: RunState) -> frozenset[str]:
    """Return the guaranteed workers of other jobs, which have no part in the next world.

    They are those of the successor until all of them are there, and those of a job that has handed over.
    """
    own_job = state.settings.job_id
    if not own_job or announced(state):
        return frozenset()
    return frozenset(worker.name for worker in state.membership.with_role("live") if worker.job_id != own_job)


def announced(state: RunState) -> bool:
    """Return whether our own job's workers leave because the successor takes over."""
    evictions = [worker.eviction for worker in state.own_workers]
    return any(notice is not None and notice.kind == "successor" for notice in evictions)


def under_way(state: RunState) -> bool:
    """Return whether the run moves to the successor: our own job's workers know, or the world has moved already."""
    own_job = state.settings.job_id
    return announced(state) or any(worker.role == "live" and worker.job_id != own_job for worker in state.members)


def _moved(state: RunState) -> bool:
    """Return whether the live world trains on the successor's workers, and nothing else is under way."""
    barriers, successor = state.barriers, state.handover.successor
    if not successor or not state.steady or barriers.checkpoint is not None or barriers.checkpoint_wanted:
        return False
    members = state.members
    guaranteed = any(worker.job_id == successor for worker in members)
    own_job = state.settings.job_id
    return guaranteed and not any(worker.role == "live" and worker.job_id == own_job for worker in members)


# ---- steps of the handover -----------------------------------------------------------------------------------------


def _outlook(state: RunState, job: GuaranteedJob) -> Outlook:
    config, handover = state.settings.config, state.handover
    remaining = resize_queue.seconds_until(state, config.train.steps)
    workers = state.membership.of_job(handover.successor, "live")
    return Outlook(
        now=state.now,
        job=job,
        lead=config.live.successor_lead,
        save_s=state.barriers.save_seconds,
        remaining_s=remaining if remaining > 0 or state.phase is RunPhase.FINISHING else None,
        tries=handover.tries,
        refused=handover.refused if config.live.successor else "live.successor is false",
        ask_again=math.inf if handover.unseen or not config.live.successor else handover.ask_again,
        submitting=handover.submitting,
        joined=sum(worker.warm and worker.eviction is None for worker in workers),
        wanted=state.settings.live_workers,
    )


def _announce(t: Transition, job: GuaranteedJob, reason: str) -> None:
    """Give our own job's workers notice: the successor can take over."""
    assert job.end_time is not None
    last = job.end_time - margin(job.time_limit, t.state.barriers.save_seconds)
    word = Eviction("successor", reason, deadline=last, at=t.now)
    for worker in t.state.own_workers:
        if not worker.dismissed and not _has_notice(worker):
            t.signal(EvictionHeard(worker.name, {"announced": word}))


def _take_back(t: Transition) -> None:
    """Take our own job's workers' notice back: the successor can no longer take over."""
    for worker in t.state.own_workers:
        if not worker.dismissed and _has_notice(worker):
            t.signal(EvictionHeard(worker.name, {"announced": None}))


def _has_notice(worker: Worker) -> bool:
    return worker.announced is not None and worker.announced.kind == "successor"


def _hand_over(t: Transition) -> None:
    successor = t.state.handover.successor
    t.journal(HandedOver(job_id=successor))
    lifecycle.end(t, RunPhase.HANDED_OVER, f"job {successor} goes on with the run")


def _save(t: Transition, job: GuaranteedJob, reason: str) -> None:
    """Write a checkpoint and end, so that the successor can go on from it whenever it starts."""
    attempt = t.state.world.attempt
    if attempt is not None and attempt.committed:
        return  # the run moves over in this moment
    assert job.end_time is not None
    t.signal(TimeIsUp(reason, until=max(t.now, job.end_time - KILLED), resumes=job.successor is not None))


# ---- interruption ---------------------------------------------------------------------------------------------------


def interrupted(t: Transition, given: Interrupted) -> None:
    """Save, and leave once the job is in the queue again.

    While only its grace time runs the workers stay: a job that ends by itself in it is not started again.
    """
    _begin(t, given.reason, t.now + SAVING if given.requeued else None, for_good=False)


def time_is_up(t: Transition, news: TimeIsUp) -> None:
    """Save and leave before the guaranteed job's time limit ends it."""
    _begin(t, news.reason, news.until, for_good=not news.resumes)


def _begin(t: Transition, reason: str, until: float | None, *, for_good: bool) -> None:
    state = t.state
    if state.over or state.interruption.until is not None:
        return
    t.emit(events.GuaranteedJobTaken(reason=reason, step=state.step))
    _write_interruption(t, Interruption(reason, state.step, until, for_good))
    t.signal(RunInterrupted(reason))


def save_or_leave(t: Transition, _: RunInterrupted) -> None:
    """Write a last checkpoint, or leave at once if there is nothing to save or nobody who could."""
    live = t.state.world.live
    step_barrier.want_checkpoint(t, wanted=live is not None)
    if live is None or t.state.lifecycle.phase is RunPhase.RECOVERING:
        leave(t)


def saved(t: Transition, message: CheckpointWritten) -> None:
    """Leave when the last checkpoint that was wanted is written, or has failed.

    Behind the last step it is the run's own: its members say next that they have finished, and have until the end.
    """
    state, interruption = t.state, t.state.interruption
    if state.lifecycle.phase is RunPhase.FINISHING or message.step >= state.settings.config.train.steps:
        return
    if interruption.until is not None and message.step >= interruption.at_step:
        leave(t)


def watch_last_checkpoint(t: Transition, _: Tick) -> None:
    """Leave when the time for the last checkpoint is up."""
    until = t.state.interruption.until
    if until is not None and t.now >= until:
        leave(t)


def leave(t: Transition) -> None:
    """End this coordinator and its workers, not the run."""
    interruption = t.state.interruption
    if interruption.until is None:
        return
    if interruption.for_good:
        error = t.state.barriers.save_error
        unsaved = f"; the last checkpoint could not be written: {error}" if error else ""
        lifecycle.end(t, RunPhase.STOPPED, f"{interruption.reason}{unsaved}; {t.state.how_to_continue}")
    else:
        lifecycle.end(t, RunPhase.INTERRUPTED, interruption.reason)
