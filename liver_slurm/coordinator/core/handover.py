"""The live job's time limit: a successor job's workers join, world and coordinator move over, the old job ends.

The successor's workers register like any others, as guaranteed ones of another job. Once all are there, those of our
own job get a notice, and the policy plans a world without them. When that world is live, this coordinator writes down
who goes on with the run, and ends; the successor's component 0, which has waited for that record, recovers from the
journal as a coordinator that is started again does. Where the successor is not there in time: :mod:`interruption`.
"""

from __future__ import annotations

from dataclasses import replace

from liver_slurm.coordinator.core import eviction, interruption, resize_queue
from liver_slurm.coordinator.core.io import Interrupted, LiveJobSeen, SubmitSuccessor, SuccessorAnswer
from liver_slurm.coordinator.core.lifecycle import HANDED_OVER, end
from liver_slurm.coordinator.core.records import HandedOver
from liver_slurm.coordinator.core.state import Eviction, Phase, RunState, Worker
from liver_slurm.coordinator.core.successor import Outlook, decide, margin
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.rundir import events
from liver_slurm.scheduler.ports import SuccessorJob

KILLED = 5.0
"""Seconds before the time limit by which the workers have been told to leave."""


def seen(turn: Transition, given: LiveJobSeen) -> None:
    """One look at the live job and its successor."""
    before = turn.state.live_job.successor if turn.state.live_job is not None else None
    after = given.job.successor
    turn.update(live_job=given.job)
    if before is not None and (after is None or after.job_id != before.job_id):
        turn.emit(events.SuccessorLost(job_id=before.job_id))


def answered(turn: Transition, given: SuccessorAnswer) -> None:
    """The successor was submitted, or refused."""
    turn.update(submitting=False, successor_refused=given.error)
    if given.error:
        how = f"liver-slurm submit --resume {turn.state.settings.run_dir}"
        then = f"a checkpoint before the time limit; go on with {how}"
        turn.emit(events.SuccessorRefused(reason=given.error, then=then))
        return
    turn.emit(events.SuccessorSubmitted(job_id=given.job_id))
    if turn.state.live_job is not None:  # known before the next look, so that it is not submitted twice
        following = SuccessorJob(given.job_id, "PENDING")
        turn.update(live_job=replace(turn.state.live_job, successor=following))


def advance(turn: Transition) -> None:
    """Do what the time limit calls for."""
    state = turn.state
    if state.live_job is None or state.interrupted or state.phase in (Phase.STARTING, Phase.RECOVERING):
        return
    if state.phase.over or state.phase is Phase.FINISHING:
        return
    if _moved(state):
        _hand_over(turn)
        return
    decision, reason = decide(_outlook(turn))
    if decision == "save":
        _save(turn, reason)
    elif decision == "submit":
        turn.update(submitting=True, successor_tries=state.successor_tries + 1)
        turn.actions.append(SubmitSuccessor())
        turn.emit(events.SuccessorWanted(reason=reason))
    _announce(turn, reason if decision == "hand over" else None)


def timed_out(state: RunState) -> bool:
    """Whether a signal to the coordinator is the time limit's, and a successor can go on with the run."""
    job = state.live_job
    return bool(job and job.successor and job.end_time is not None and state.now >= job.end_time - KILLED)


def kept_out(state: RunState) -> frozenset[str]:
    """Guaranteed workers of other jobs, which have no part in the next world: those of the successor until all of them
    are there, and those of a job that has handed over."""
    own_job = state.settings.job_id
    if not own_job or is_why(state):
        return frozenset()
    others = (worker for worker in state.workers.values() if worker.role == "live" and worker.job_id != own_job)
    return frozenset(worker.name for worker in others)


def is_why(state: RunState) -> bool:
    """Our own job's workers leave because the successor takes over."""
    departures_of_own = [worker.departure for worker in _own(state)]
    return any(departure is not None and departure.kind == "successor" for departure in departures_of_own)


def under_way(state: RunState) -> bool:
    """The run is moving to the successor: our own job's workers have notice of it, or the world has moved already."""
    members = state.live.members if state.live is not None else ()
    inside = (state.workers[name] for name in members if name in state.workers)
    return is_why(state) or any(one.role == "live" and one.job_id != state.settings.job_id for one in inside)


def _outlook(turn: Transition) -> Outlook:
    state, job = turn.state, turn.state.live_job
    assert job is not None
    config = state.settings.config
    remaining = resize_queue.seconds_until(turn, config.train.steps)
    successor = job.successor.job_id if job.successor is not None else ""
    return Outlook(
        now=turn.now,
        job=job,
        lead=config.live.successor_lead,
        save_s=state.save_seconds,
        remaining_s=remaining if remaining > 0 else None,
        tries=state.successor_tries,
        refused=state.successor_refused if config.live.successor else "live.successor is false",
        submitting=state.submitting,
        joined=sum(_can_join(worker, successor) for worker in state.workers.values()),
        wanted=state.settings.live_workers,
    )


def _can_join(worker: Worker, successor: str) -> bool:
    return worker.role == "live" and worker.job_id == successor and worker.warm and worker.departure is None


def _own(state: RunState) -> list[Worker]:
    """Workers of the job that this coordinator belongs to."""
    return [one for one in state.workers.values() if one.role == "live" and one.job_id == state.settings.job_id]


def _announce(turn: Transition, reason: str | None) -> None:
    """Give our own job's workers notice once the successor can take over; take it back if it no longer can."""
    state, job = turn.state, turn.state.live_job
    assert job is not None
    if reason is not None and (state.phase is not Phase.STEADY or state.attempt is not None):
        return  # reconfigurations never overlap, and this one can wait
    for worker in _own(state):
        known = worker.announced if worker.announced is not None and worker.announced.kind == "successor" else None
        if worker.dismissed or (known is None) == (reason is None):
            continue
        word = None
        if reason is not None:
            assert job.end_time is not None
            last = job.end_time - margin(job.time_limit, state.save_seconds)
            word = Eviction("successor", reason, deadline=last, at=turn.now)
        eviction.revise(turn, worker.name, announced=word)


def _moved(state: RunState) -> bool:
    """The live world trains on the successor's workers, and nothing else is under way."""
    job, live = state.live_job, state.live
    if job is None or job.successor is None or live is None or state.phase is not Phase.STEADY:
        return False
    own = {worker.name for worker in _own(state)}
    guaranteed = any(
        state.workers[name].job_id == job.successor.job_id for name in live.members if name in state.workers
    )
    busy = state.attempt is not None or state.checkpoint is not None or state.checkpoint_wanted
    return guaranteed and not busy and not own.intersection(live.members)


def _hand_over(turn: Transition) -> None:
    job = turn.state.live_job
    assert job is not None
    assert job.successor is not None
    turn.journal(HandedOver(job_id=job.successor.job_id))
    end(turn, Phase.HANDED_OVER, HANDED_OVER, f"job {job.successor.job_id} goes on with the run")


def _save(turn: Transition, reason: str) -> None:
    """Write a checkpoint and end, so that the successor can go on from it whenever it starts."""
    state, job = turn.state, turn.state.live_job
    assert job is not None
    assert job.end_time is not None
    if state.attempt is not None and state.attempt.committed:
        return  # the run moves over in this moment
    resumes = job.successor is not None
    turn.update(interrupted_for_good=not resumes)
    interruption.interrupt(turn, Interrupted(turn.now, reason, requeued=True))
    if not turn.state.phase.over:
        turn.update(interrupted_until=max(turn.now, job.end_time - KILLED))
