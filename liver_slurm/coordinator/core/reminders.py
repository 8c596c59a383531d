"""Reminders: a worker whose heartbeat differs from the state is told once more what it has missed.

Any message may be lost, so nothing depends on one: a heartbeat says how far the worker is, the state says how far it
should be, and each difference has one order that ends it. A worker answers an order that comes again with the answer
that it gave, so answers that were lost come again, too. A reminder that crosses its answer does no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from liver_slurm.coordinator.core import eviction, membership, orders, reconfiguration, resize_queue, step_barrier
from liver_slurm.coordinator.core.barriers import StepBarrier
from liver_slurm.coordinator.core.signals import Heard, Registered
from liver_slurm.coordinator.core.state import RunState
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.coordinator.core.workers import Worker
from liver_slurm.coordinator.core.worlds import Attempt, ReconfigurationPhase
from liver_slurm.protocol.messages import Finished, Heartbeat, Notice, WorldEntered

PATIENCE = 5.0
"""Seconds after which a worker that has not followed an order is told again."""


# ---- a worker registers --------------------------------------------------------------------------------------------


def tell_commit(t: Transition, news: Registered) -> None:
    """Tell a worker of the last commit, if it may have missed it while its coordinator was away."""
    worker, live = t.state.membership.workers[news.name], t.state.world.live
    if live is None or worker.generation == live.generation or worker.name in t.state.damage.lost:
        return
    if worker.generation >= 0 or worker.name in live.names:
        orders.tell_commit(t, [worker.name])


def tell_left_attempt(t: Transition, news: Registered) -> None:
    """Tell a worker to abort the attempt that the last coordinator left."""
    left = t.state.world.left_attempt
    if news.first and left is not None and news.name in left[1]:
        orders.tell_abort(t, [news.name], left[0], "the coordinator was restarted")


# ---- a worker is heard of ------------------------------------------------------------------------------------------


def heard(t: Transition, news: Heard) -> None:
    """Compare a heartbeat with the state; the worker is registered, and is not about to leave."""
    beat, worker = news.beat, t.state.membership.get(news.beat.worker)
    if worker is None or t.state.over:
        return
    if beat.notice is not None and _is_news(worker, beat.notice.as_of(t.now)):
        eviction.notice(t, beat.notice)
    if beat.finished and not worker.finished:
        membership.finished(t, Finished(worker=beat.worker, step=beat.step, reason=beat.finished_why))
    if t.state.over:
        return
    _entering(t, beat)
    if beat.targets is None:
        return
    if why := _why_outside(t.state, worker, beat.targets):
        _have_leave(t, worker.name, why)
    else:
        _targets(t, beat, beat.targets)
        _barriers(t, beat)


def _is_news(worker: Worker, notice: Notice) -> bool:
    """Return whether a notice says something that is not known, by itself or through the scheduler."""
    if notice.withdrawn:
        return worker.signalled is not None and worker.signalled.returns and worker.signalled.at <= notice.time
    return worker.signalled is None and worker.announced is None and not worker.dismissed


def _entering(t: Transition, beat: Heartbeat) -> None:
    """Help a member on that has missed the commit, or whose word that it has entered was lost."""
    live, attempt, name = t.state.world.live, t.state.world.attempt, beat.worker
    if (
        live is None
        or attempt is None
        or not attempt.committed
        or name not in attempt.joined
        or name in attempt.entered
    ):
        return
    in_it = beat.generation == live.generation
    # Held at its first step for the next resize, a world has no forward pass to report: to be in it is enough. Neither
    # need a worker of an earlier version report it, which does not say so again.
    if in_it and (resize_queue.stands_at_start(t.state) or (beat.targets is None and beat.step > live.step)):
        reconfiguration.entered(t, WorldEntered(worker=name, generation=live.generation, step=live.step, time=t.now))
    elif t.now > attempt.committed_at + PATIENCE and not (in_it and beat.targets is None):
        orders.tell_commit(t, [name])


# ---- worlds that are over -------------------------------------------------------------------------------------------


def _why_outside(state: RunState, worker: Worker, targets: Iterable[int]) -> str:
    """Say which world that went on without it a worker stands in, or before; empty: none.

    Whoever leaves a world may take as long for it as members of the next one may to enter that.
    """
    world = state.world
    if worker.name in world.names:
        return ""
    for generation in targets:
        lost = generation < world.lost_below or state.damage.lost_out_of(worker.name, generation) >= 0
        if generation in world.committed and lost:
            return f"it was lost out of generation {generation}"
    if worker.outside_since and state.now >= worker.outside_since + state.settings.config.job.prepare_timeout:
        return f"it stands in generation {worker.generation}, which is over"
    return ""


def _have_leave(t: Transition, name: str, why: str) -> None:
    """Have a worker leave, as nothing that comes would end its wait; each of its next heartbeats is answered so."""
    pending = t.state.world.pending
    if pending is not None and name in pending.voters:
        reconfiguration.abort(t, f"{name} cannot join: {why}")
    membership.dismiss(t, name, why)


# ---- target worlds -------------------------------------------------------------------------------------------------


def _targets(t: Transition, beat: Heartbeat, targets: Mapping[int, str]) -> None:
    """Say again what has become of target worlds, and what the present one waits for."""
    world = t.state.world
    pending = world.pending
    awaited = pending.target.generation if pending is not None and beat.worker in pending.voters else -1
    for generation in targets:
        if generation == awaited:
            continue
        if generation == world.generation:
            if beat.worker not in world.names:  # else see _entering
                orders.tell_commit(t, [beat.worker])
        elif generation in world.committed:
            orders.tell_left_behind(t, beat.worker, generation)
        else:
            orders.tell_abort(t, [beat.worker], generation, "it was given up before")
    if pending is not None and awaited >= 0:
        _awaited(t, beat, pending, targets.get(awaited, ""))


def _awaited(t: Transition, beat: Heartbeat, pending: Attempt, stage: str) -> None:
    """Say again what an attempt waits for, unless the worker is at it."""
    held, name = t.state.barriers.cutover, beat.worker
    if pending.phase is ReconfigurationPhase.PREPARE:
        if name not in pending.prepared and stage != "preparing" and t.now > pending.started + PATIENCE:
            orders.tell_prepare(t, [name], pending)
    elif held is not None and name not in pending.streamed and stage != "streaming":
        known = beat.boundaries.get(held.number)
        if stage == "voted" or known is None or not known[1]:
            begin = reconfiguration.streams_from(pending, held.step)
            step_barrier.tell_final(t, [name], held, begin)


# ---- barriers ----------------------------------------------------------------------------------------------------


def _barriers(t: Transition, beat: Heartbeat) -> None:
    """Say again where the worker is to stop, and where not."""
    barriers = t.state.barriers
    known = {barrier.number: barrier for barrier in barriers.open}
    for number in beat.boundaries:
        if number not in known:
            step_barrier.tell_withdrawn(t, [beat.worker], number)
    for barrier in known.values():
        if beat.worker not in barrier.voters:
            continue
        if not barrier.confirmed:
            _proposed(t, beat, barrier)
        elif barrier.purpose == "checkpoint" and beat.step <= barrier.step:
            at = beat.boundaries.get(barrier.number)
            # One that it does not hold at that step, it has taken.
            if beat.step < barrier.step if at is None else not at[1]:
                step_barrier.tell_final(t, [beat.worker], barrier)


def _proposed(t: Transition, beat: Heartbeat, barrier: StepBarrier) -> None:
    """Ask a voter again that has not answered, or does not hold what it has accepted."""
    step, _ = beat.boundaries.get(barrier.number, (-1, False))
    if step != barrier.step or beat.worker not in barrier.accepted:
        step_barrier.tell_proposed(t, [beat.worker], barrier)
