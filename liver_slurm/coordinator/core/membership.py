"""Workers come, live and go; notices are in :mod:`departures`."""

from __future__ import annotations

import math

from liver_slurm.coordinator.core import reconfiguration, resize_queue
from liver_slurm.coordinator.core.io import Release
from liver_slurm.coordinator.core.lifecycle import end, must_go
from liver_slurm.coordinator.core.state import Phase, Worker
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.protocol.messages import (
    PROTOCOL,
    Abort,
    Alive,
    Failed,
    Heartbeat,
    Leave,
    Leaving,
    Refused,
    Register,
    Welcome,
    WithdrawBoundary,
)
from liver_slurm.rundir import events

COMMIT_PATIENCE = 5.0
"""Seconds after which a member that has not entered its world is told of the commit again."""
BEATS = 5.0
"""Heartbeats that a worker whose job is over may miss until it is lost."""


# ---- come ----------------------------------------------------------------------------------------------------------


def register(turn: Transition, peer: bytes, message: Register) -> None:
    """A worker says who it is, for the first time or again."""
    refusal = _refusal(turn, message)
    if refusal is not None:
        turn.reject("refused")
        turn.answer(peer, Refused(reason=refusal))
        if message.role == "standby" and _of_lost_world(turn, message):
            turn.actions.append(Release(message.job_id))  # it may stand in a collective for ever, and holds its nodes
        return
    known = turn.state.workers.get(message.worker)
    if known is not None and (known.host, known.pid) != (message.host, message.pid):
        lose(turn, known.name, "another process took its place")
        known = None
    worker = Worker(
        name=message.worker,
        peer=peer,
        role=message.role,
        host=message.host,
        pid=message.pid,
        job_id=message.job_id,
        device=message.device,
        arrived=known.arrived if known else turn.now,
        seen=turn.now,
        generation=message.generation,
        step=message.step,
        step_at=turn.now,
        signalled=known.signalled if known else None,
        announced=known.announced if known else None,
        dismissed=known.dismissed if known else False,
        finished=known.finished if known else False,
    )
    turn.put_worker(worker)
    settings = turn.state.settings
    turn.answer(peer, Welcome(run_id=settings.run_id, epoch=settings.epoch))
    if turn.state.outcome is not None:
        if must_go(turn.state, worker):
            turn.send([worker.name], Leave(epoch=settings.epoch, reason=turn.state.outcome[1]))
        return
    _bring_up_to_date(turn, worker, first=known is None)
    _warmed(turn, worker.name, warm=message.warm or bool(known and known.warm))


def _refusal(turn: Transition, message: Register) -> str | None:
    settings, known = turn.state.settings, turn.state.workers.get(message.worker)
    if message.protocol != PROTOCOL:
        return f"protocol {message.protocol} is not the coordinator's {PROTOCOL}: install the same version on both"
    if message.run_id != settings.run_id:
        return f"this is run {settings.run_id}, not {message.run_id}"
    if _of_lost_world(turn, message):
        return f"generation {message.generation} is lost: the run has begun anew from {settings.start_step} steps"
    if message.generation > turn.state.generation:
        return f"generation {message.generation} was never committed in this run"
    if message.role == "live" and message.job_id == settings.job_id and message.restarts < settings.restarts:
        return f"job {message.job_id} was started again since; this process is of its start {message.restarts}"
    if known is None or (known.host, known.pid) == (message.host, message.pid):
        return None
    if turn.now - known.seen > settings.config.job.lost_after:
        return None
    return f"the name {message.worker} is taken by process {known.pid} on {known.host}"


def _of_lost_world(turn: Transition, message: Register) -> bool:
    """The worker trains in a world that was live before the run began anew."""
    return 0 <= message.generation < turn.state.anew_from


def _bring_up_to_date(turn: Transition, worker: Worker, *, first: bool) -> None:
    """Tell a worker what it may have missed while its coordinator was away: the last commit, or the last abort."""
    state, epoch = turn.state, turn.state.settings.epoch
    if first and state.open_attempt is not None and worker.name in state.open_attempt[1]:
        generation = state.open_attempt[0]
        turn.send([worker.name], Abort(epoch=epoch, generation=generation, reason="the coordinator was restarted"))
    if first:
        resize_queue.hold_at_start(turn, worker.name)
    for number in state.open_boundaries if first else ():
        turn.send([worker.name], WithdrawBoundary(epoch=epoch, boundary=number))
    live = state.live
    if live is None or worker.generation == live.generation:
        return
    if worker.generation >= 0 or worker.name in live.members:
        turn.send([worker.name], reconfiguration.commit_message(turn, live))


def _warmed(turn: Transition, name: str, *, warm: bool) -> None:
    worker = turn.state.workers[name]
    if not warm or worker.warm:
        return
    turn.change_worker(name, warm=True, arrived=turn.now)
    live = turn.state.live
    if live is not None and name in live.members:
        return
    if worker.role == "standby":
        turn.emit(events.StandbyReady(worker=name, host=worker.host, device=worker.device, job_id=worker.job_id))
    turn.update(last_arrival=turn.now)
    turn.stir()


# ---- live ----------------------------------------------------------------------------------------------------------


def heartbeat(turn: Transition, message: Heartbeat) -> None:
    """A worker lives; what it may have missed on a broken connection is said again."""
    state, epoch = turn.state, turn.state.settings.epoch
    worker = state.workers[message.worker]
    live = state.live
    turn.change_worker(
        worker.name,
        generation=min(message.generation, state.generation),
        step=max(worker.step, message.step),
        step_at=turn.now,
        step_seconds=message.step_seconds,
        rejected=message.rejected,
    )
    turn.send([worker.name], Alive(epoch=epoch))
    _warmed(turn, worker.name, warm=message.warm)
    if must_go(state, worker) or worker.dismissed:
        turn.send([worker.name], Leave(epoch=epoch, reason=state.outcome[1] if state.outcome else "dismissed"))
    elif live is not None and worker.name in live.members and message.generation < live.generation:
        attempt = state.attempt
        if attempt is not None and turn.now > attempt.committed_at + COMMIT_PATIENCE:
            turn.send([worker.name], reconfiguration.commit_message(turn, live))
    elif live is not None and message.generation == live.generation:
        reconfiguration.stands(turn, worker.name)


# ---- go ------------------------------------------------------------------------------------------------------------


def leaving(turn: Transition, message: Leaving) -> None:
    """A worker exits, as it was told to or after a notice."""
    state, worker = turn.state, turn.state.workers[message.worker]
    needed = state.live.members if state.live is not None else ()
    if state.attempt is not None and not state.attempt.committed:
        needed = state.attempt.involved
    unexpected = worker.name in needed or (worker.role == "live" and state.phase is Phase.STARTING)
    if unexpected and not state.phase.over:
        lose(turn, worker.name, f"it left: {message.reason}")
        return
    turn.forget_worker(worker.name)
    turn.emit(events.WorkerLeft(worker=worker.name, host=worker.host, reason=message.reason))
    turn.stir()


def failed(turn: Transition, message: Failed) -> None:
    """A worker's last words."""
    lose(turn, message.worker, message.error)


def lose(turn: Transition, name: str, reason: str) -> None:
    """A worker is gone without having been told to go."""
    state = turn.state
    worker = state.workers[name]
    turn.forget_worker(name)
    if state.phase.over or worker.dismissed:
        turn.emit(events.WorkerLeft(worker=name, host=worker.host, reason=reason))
        return
    in_world = state.live is not None and name in state.live.members
    turn.emit(events.WorkerLost(worker=name, host=worker.host, role=worker.role, in_world=in_world, reason=reason))
    last_of_job = not any(other.job_id == worker.job_id for other in turn.state.workers.values())
    jobs = state.supply.jobs if state.supply is not None else ()
    if worker.role == "standby" and last_of_job and any(job.job_id == worker.job_id for job in jobs):
        turn.actions.append(Release(worker.job_id))  # a job whose workers are silent only holds nodes
    attempt = state.attempt
    if attempt is not None and not attempt.committed and name in attempt.involved:
        reconfiguration.abort(turn, f"{name} was lost: {reason}")
    if in_world:
        lose_live_worker(turn, name, reason)
    elif worker.role == "live" and state.phase is Phase.STARTING:
        end(turn, Phase.FAILED, 1, f"{name} was lost before training began: {reason}")
    turn.stir()


def lose_live_worker(turn: Transition, name: str, reason: str) -> None:
    """The live world has lost a member without notice: it cannot go on, the newest checkpoint can."""
    how = f"continue from the newest checkpoint: liver-slurm submit --resume {turn.state.settings.run_dir}"
    end(turn, Phase.FAILED, 1, f"{name} of the live world was lost ({reason}); {how}")


def find_silent(turn: Transition) -> None:
    """Workers that have not been heard of for too long are lost."""
    for worker in list(turn.state.workers.values()):
        silence = turn.now - worker.seen
        if silence > _patience(turn, worker) and worker.name in turn.state.workers:
            lose(turn, worker.name, f"silent for {silence:.1f} s")


def _patience(turn: Transition, worker: Worker) -> float:
    """Seconds of silence after which a worker is lost."""
    job, live, departure = turn.state.settings.config.job, turn.state.live, worker.departure
    if departure is not None and departure.returns and (live is None or worker.name not in live.members):
        return math.inf  # it cannot speak; should its job end meanwhile, the scheduler says so
    if worker.announced is not None and worker.announced.kind == "over":
        return min(job.lost_after, BEATS * job.heartbeat)
    return job.lost_after
