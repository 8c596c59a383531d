"""Detection of sudden deaths: what is seen of a worker that may be dead, and what confirms it.

A connection that was closed and has not come back is a suspicion, and so is a worker that has gone silent while
training stands. Neither is a death: networks fail, and a slow worker is no dead one. It takes a second witness: a
collective that has failed at a survivor, or training that stands still for longer than its last steps explain, as
other members say that are asked: their heartbeats may be far apart, and say too late that a step was completed.

Where nobody is silent and no connection is closed, a step that all compute and none completes may hang in a card or in
a collective. Then the world is broken up, and who cannot leave it is the one.
"""

from __future__ import annotations

import math
from itertools import islice

from liver_slurm.base.frozen import replace
from liver_slurm.coordinator.core.io import HungUp, Tick
from liver_slurm.coordinator.core.signals import WorkerGone, WorkersLost, WorldStands
from liver_slurm.coordinator.core.state import RunPhase, RunState, Vigil
from liver_slurm.coordinator.core.transition import Transition, Writer
from liver_slurm.coordinator.core.workers import Worker
from liver_slurm.coordinator.core.worlds import ReconfigurationPhase
from liver_slurm.protocol.messages import HeartbeatRequest
from liver_slurm.rundir.worker_names import place_of

WITNESSED_STALL, STEPS = 0.5, 3.0
"""Training stands still where a connection is closed and another member says that it has completed no step for so many
seconds, and so many times a step's time."""
WITNESSES = 16
"""Members that are asked, of thousands maybe."""
QUICK_STALL = 1.0
"""As the first, where no other member answers and the worker itself is silent."""
SILENT_BEATS, SILENT = 5.0, 2.0
"""A worker is silent that has missed so many heartbeats, and has not been heard of for so many seconds."""
SLOW_STALL, SLOW_STEPS = 5.0, 10.0
"""As the first two, where a worker is silent but its connection stands: it may only be slow."""
HUNG_STALL, HUNG_STEPS = 10.0, 20.0
"""As the first two, where all members answer and say that they compute; and it must be longer than ``lost_after``."""
PARKING = 3.0
"""Seconds that a member has to leave its collectives, once it was told to, before its suspicion counts."""

_write = Writer(Vigil, __name__)


def hung_up(t: Transition, given: HungUp) -> None:
    """Note that a worker has closed its connection."""
    worker, vigil = t.state.membership.at(given.peer), t.state.vigil
    if worker is not None:
        _write(t, replace(vigil, hung_up={**vigil.hung_up, worker.name: (given.since, given.time)}))


def place_is_empty(t: Transition, place: str) -> None:
    """Note that in the place of a guaranteed worker none is started again."""
    _write(t, replace(t.state.vigil, empty=t.state.vigil.empty | {place}))


def workers_lost(t: Transition, news: WorkersLost) -> None:
    """Note that places stay empty whose workers have told of a signal: their parents had the same one."""
    for worker in (one.worker for one in news.workers):
        if worker.role == "live" and worker.signalled is not None:
            place_is_empty(t, place_of(worker.name))


def watch(t: Transition, _: Tick) -> None:
    """Follow training's progress, and conclude from it which suspected members of the live world are dead."""
    _follow(t)
    state = t.state
    if state.over or state.world.live is None:
        return
    if state.vigil.hung_up and not state.damage.broken and _trains(state):
        t.send(_witnesses(state), HeartbeatRequest(epoch=state.settings.epoch))
    stands = not state.damage.broken and _stands(state, SLOW_STALL, SLOW_STEPS)
    suspects = state.members if state.damage.broken or stands else state.membership.of(state.vigil.hung_up)
    inside = frozenset(state.world.members) - frozenset(state.damage.lost) if suspects else frozenset[str]()
    for worker in suspects:  # there may be thousands
        if worker.dismissed or worker.name not in inside:
            continue
        if worker.eviction is not None and worker.eviction.returns:
            continue
        verdict = _confirmed(state, worker)
        if verdict is not None:
            how, since, reason = verdict
            t.gone(WorkerGone(worker.name, reason, how=how, after=t.now - since))
        elif stands and _silent(state, worker):
            # Whoever is well leaves its collectives and says so: the one that does not is the dead one.
            t.signal(WorldStands(f"{worker.name} is silent, and no step was completed for {_still(state):.1f} s"))
    if _hangs(state):
        _write(t, replace(t.state.vigil, hangs=state.vigil.hangs + 1))
        t.signal(WorldStands(f"all members compute, and none has completed a step for {_still(state):.1f} s"))
    if state.lifecycle.phase is RunPhase.FINISHING and t.now > state.lifecycle.finishing + _finishing_seconds(state):
        late = ", ".join(worker.name for worker in state.members if not worker.finished)
        after = t.now - state.lifecycle.finishing
        t.signal(WorldStands(f"{late} did not finish within {after:.0f} s after the last step was trained"))


def watch_joiners(t: Transition, _: Tick) -> None:
    """Lose joiners that are silent while training stands at the cutover for them: a lost standby is harmless."""
    state, pending, held = t.state, t.state.world.pending, t.state.barriers.cutover
    if pending is None or pending.phase is not ReconfigurationPhase.STREAM or held is None or state.step < held.step:
        return
    patience = max(SLOW_STALL, 2 * _silence(state))
    for worker in state.membership.of(pending.involved):
        silence = t.now - worker.seen
        if worker.name not in state.world.names and silence > patience:
            reason = f"silent for {silence:.1f} s, and training stands at step {held.step} for it"
            t.gone(WorkerGone(worker.name, reason, how="silence", after=silence))


def _follow(t: Transition) -> None:
    """Note the last step, and forget suspicions of workers that have been heard of since, or are gone."""
    state, vigil = t.state, t.state.vigil
    validating = state.validating
    at, validated = (state.generation, state.step), validating[0] if validating is not None else -1
    if not _trains(state) or t.now > vigil.looked + QUICK_STALL:  # or stood still itself
        vigil = replace(vigil, due=t.now, moved=t.now)
    if (vigil.at, vigil.validated) != (at, validated):
        vigil = replace(vigil, at=at, validated=validated, moved=t.now)
    workers = state.membership.workers
    held = {
        name: (since, noted)
        for name, (since, noted) in vigil.hung_up.items()
        if name in workers and workers[name].seen <= noted
    }
    if len(held) != len(vigil.hung_up):
        vigil = replace(vigil, hung_up=held)
    _write(t, replace(vigil, looked=t.now))


def _trains(state: RunState) -> bool:
    """Return whether steps are due: no world has yet to be entered, and training has not come to a barrier."""
    barriers, attempt = state.barriers, state.world.attempt
    standing = (barriers.cutover, barriers.checkpoint, barriers.agreed_checkpoint)
    if state.lifecycle.phase is not RunPhase.TRAINING or (attempt is not None and attempt.committed):
        return False
    return all(barrier is None or barrier.step != state.step for barrier in standing)


def _still(state: RunState) -> float:
    """Return the seconds since the last step."""
    return state.now - state.vigil.moved


def _stands(state: RunState, seconds: float, steps: float) -> bool:
    """Return whether training stands still for longer than so many seconds, and so many steps."""
    return _still(state) > max(seconds, steps * state.step_seconds)


def _hangs(state: RunState) -> bool:
    """Return whether a card or a collective hangs: control threads know nothing of it, but no step comes of it.

    In a world's first step layers may be compiled, so there must have been one. Who hangs is seen when all are to leave
    the world. If all do, then steps may only have become slow, and the next time it takes twice as long.
    """
    longest = max(HUNG_STALL, state.settings.config.job.lost_after) * 2**state.vigil.hangs
    if state.damage.broken or not state.step_seconds or not _stands(state, longest, HUNG_STEPS):
        return False
    return all(worker.computing for worker in state.members)


def _finishing_seconds(state: RunState) -> float:
    """Return the seconds that members may take to finish after the first of them.

    Each has the last checkpoint written by then, if one is wanted, and that may take some longer than others.
    """
    return max(state.settings.config.job.prepare_timeout, 2 * (state.barriers.save_seconds or 0.0))


def _witnesses(state: RunState) -> list[str]:
    """Return the members of the live world that can say whether training stands still.

    They are those whose connections are not closed.
    """
    return list(islice((name for name in state.world.members if name not in state.vigil.hung_up), WITNESSES))


def _stands_for(state: RunState, worker: Worker) -> bool:
    """Return whether training stands still as a worker's connection is closed.

    Witnesses say so; else that it does not come back does.
    """
    _, noted = state.vigil.hung_up[worker.name]
    said = [
        witness.since_step
        for witness in state.membership.of(_witnesses(state))
        if witness.since_step is not None and witness.step_at > noted and witness.validating is None
    ]
    if not said:
        return _silent(state, worker) and _stands(state, QUICK_STALL, STEPS)
    enough = max(WITNESSED_STALL, STEPS * state.step_seconds)
    return min(said) > enough and state.now - state.vigil.due > enough


def _silent(state: RunState, worker: Worker) -> bool:
    return state.now - worker.seen > _silence(state)


def _silence(state: RunState) -> float:
    """Return for how long a worker may not be heard of; in a large run heartbeats are further apart."""
    job = state.settings.config.job
    return max(SILENT, min(SILENT_BEATS * state.membership.beat_seconds(job), job.lost_after))


def _confirmed(state: RunState, worker: Worker) -> tuple[str, float, str] | None:
    """Return how, since when and why a worker is taken for dead; None: it is not."""
    damage, attempt = state.damage, state.world.attempt
    if worker.name in damage.parked and damage.broken:
        since, _ = state.vigil.hung_up.get(worker.name, (math.inf, 0.0))
        return ("hang-up", since, "its connection is closed, and its world is broken") if since < math.inf else None
    if worker.name in state.vigil.hung_up:
        since, _ = state.vigil.hung_up[worker.name]
        if damage.parked:
            witness = next(iter(damage.parked))
            return "hang-up", since, f"its connection is closed, and a collective has failed at {witness}"
        if damage.broken or _stands_for(state, worker):
            return "hang-up", since, "its connection is closed, and training stands still"
        if attempt is not None and attempt.committed and state.now - since > PARKING:
            return "hang-up", since, "its connection is closed, and it does not enter the committed world"
    if damage.broken and state.now > damage.since + PARKING and _silent(state, worker):
        return (
            "silence",
            worker.seen,
            f"silent for {state.now - worker.seen:.1f} s, and it does not leave a broken world",
        )
    # Its training thread may hang where no abort reaches it, while its control thread goes on.
    since = max(damage.since, worker.arrived)  # a coordinator that was started again tells it as it comes
    told = state.now - since
    if damage.broken and told > max(PARKING, state.settings.config.job.lost_after):
        return "stuck", since, f"it was told {told:.1f} s ago to leave a broken world, and has not left it"
    return None
