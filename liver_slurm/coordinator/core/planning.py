"""Planning: what a run does next by itself, at the end of each transition: start, recover, save, ask the policy."""

from __future__ import annotations

import math

import msgspec

from liver_slurm.base.frozen import replace
from liver_slurm.config.layouts import feasible_layouts
from liver_slurm.coordinator.core import (
    failure_recovery,
    guaranteed_job,
    history,
    lifecycle,
    node_release,
    reconfiguration,
    resize_queue,
    standby_scaling,
    status,
    step_barrier,
)
from liver_slurm.coordinator.core.signals import WorkersLost
from liver_slurm.coordinator.core.state import Planning, RunPhase, RunState
from liver_slurm.coordinator.core.transition import Transition, Writer
from liver_slurm.parallel.layout import Layout
from liver_slurm.policy import api, engine
from liver_slurm.policy.cost_model import choose
from liver_slurm.policy.rank_assignment import rank_order
from liver_slurm.policy.standby_scaling import room
from liver_slurm.policy.types import ResizeGoal
from liver_slurm.rundir import events
from liver_slurm.rundir.worker_names import natural_key, place_of

AHEAD = 10.0
"""Seconds before a scheduled resize that its preparation begins."""

MANY = 64
"""Members of a live world from which on an attempt in vain takes longer than it takes to hear whom else it concerns."""
QUIET, LONGEST = 0.0004, 0.25
"""Seconds without a further notice, for each member, before a world without those that leave is prepared; and the most
that the first of them waits."""

_write = Writer(Planning, __name__)


def advance(t: Transition) -> None:
    """Do what the state calls for."""
    phase = t.state.phase
    if phase is RunPhase.STARTING:
        _start(t)
    elif phase in (RunPhase.RECOVERING, RunPhase.FINISHING):
        _await_members(t)
    if t.state.steady and t.state.damage.broken:
        failure_recovery.advance(t, snapshot(t.state, None))
    elif t.state.steady:
        step_barrier.propose_checkpoint(t)
        _watch_hold(t)
        if not t.state.interruption.reason:  # a world without the guaranteed workers would have no coordinator
            _plan(t)


def _planned(t: Transition) -> None:
    """Note that the policy is being asked, or need not be."""
    t.replanned()
    _write(t, replace(t.state.planning, look_again=None))


def workers_lost(t: Transition, news: WorkersLost) -> None:
    """End the run if it has lost a worker that training waits for to begin."""
    awaited = [one for one in news.workers if one.worker.role == "live"]
    if awaited and t.state.phase is RunPhase.STARTING:
        name, reason = awaited[0].worker.name, awaited[0].reason
        log = f"{t.state.settings.run_dir}/logs/{place_of(name)}.log"
        lifecycle.end(t, RunPhase.FAILED, f"{name} was lost before training began: {reason}; see {log}")


# ---- before training -----------------------------------------------------------------------------------------------


def _start(t: Transition) -> None:
    """Form the first world, of the run or since its restart, as soon as all guaranteed workers are warm."""
    state, wanted = t.state, t.state.settings.live_workers
    guaranteed = state.membership.with_role("live")
    leaving = [worker for worker in guaranteed if worker.eviction is not None]
    warm = [worker.name for worker in guaranteed if worker.warm]
    if leaving:
        names = ", ".join(sorted(worker.name for worker in leaving))
        lifecycle.end(t, RunPhase.FAILED, f"{names} will go away before training began")
    elif len(warm) >= wanted:
        chosen = initial_layout(state, len(warm))
        if isinstance(chosen, str):
            lifecycle.end(t, RunPhase.FAILED, chosen)
            return
        layout, reason = chosen
        members = tuple(sorted(warm, key=natural_key)[: layout.size])
        _planned(t)
        reconfiguration.begin(t, layout, members, "start", reason)
    elif t.now > state.lifecycle.started + state.settings.config.job.start_timeout:
        failure = f"only {len(warm)} of {wanted} guaranteed workers were ready in time; see their logs"
        lifecycle.end(t, RunPhase.FAILED, failure)


def initial_layout(state: RunState, workers: int) -> tuple[Layout, str] | str:
    """Choose world 0's layout and say why, or say why there is none."""
    config = state.settings.config
    if config.elastic.initial is not None:
        layout = Layout.parse(config.elastic.initial)
        if layout.size > workers:
            return f"elastic.initial {layout} needs {layout.size} workers; the guaranteed job has {workers}"
        return layout, f"{layout} is elastic.initial"
    layouts = feasible_layouts(config, workers)
    if not layouts:
        return f"elastic.layouts has none for the {workers} guaranteed workers; add one, or set elastic.initial"
    return choose(layouts, config, None, lambda layout: ())


def _await_members(t: Transition) -> None:
    """Go on when every member of the committed world has registered with this coordinator."""
    state, live = t.state, t.state.world.live
    assert live is not None, "a run without a committed world starts, it does not recover"
    left = tuple(member for member in live.members if member not in state.damage.lost)
    missing = state.membership.missing(left)
    if missing:
        failure_recovery.give_up_absent(t, missing)
        return
    if state.phase is RunPhase.FINISHING:
        return
    t.emit(events.Recovered(layout=str(live.layout), members=left, step=state.step))
    lifecycle.recovered(t)
    t.explain("recovered from the journal")
    if t.state.steady:
        resize_queue.hold(t)
    t.request_replan()


# ---- steady --------------------------------------------------------------------------------------------------------


def _watch_hold(t: Transition) -> None:
    """Give a scheduled resize up if training has waited for it too long."""
    state, held = t.state, t.state.barriers.cutover
    if held is None:
        return
    if state.step >= held.step and not held.reached:
        step_barrier.reached(t)
        t.request_replan()
    elif held.reached and t.now > held.reached + state.settings.config.job.prepare_timeout:
        goal = state.resizes.goal(held.request)
        assert goal is not None, "training is held for a request that waits"
        resize_queue.give_up(t, goal, f"training stood at step {held.step} for it too long: {state.reason}")


def _plan(t: Transition) -> None:
    """Ask the policy, if something has changed or its time has come, and do what it says."""
    state, again = t.state, t.state.planning.look_again
    if not state.replan and (again is None or t.now < again):
        return
    stopped = _stopped(state)
    if stopped:
        t.explain(f"training stands: {', '.join(stopped)} suspended")
        return
    quiet = _quiet_at(state)
    if quiet > t.now:
        _write(t, replace(state.planning, look_again=quiet))
        return
    _planned(t)
    resize_queue.hold(t)
    due, look_again = _due(t.state)
    seen = snapshot(t.state, due)
    decision, reason = engine.decide(seen, state.settings.config)
    t.explain(reason)
    _tell(t, seen, decision, reason)
    if seen.leaving and isinstance(decision, api.Stay) and t.state.barriers.checkpoint is None:
        step_barrier.want_checkpoint(t)  # the live world is about to break: what it has reached is worth saving
    if isinstance(decision, api.Fulfilled):
        assert due is not None
        resize_queue.let_go(t, due.number)
        resize_queue.close(t, due.number, fulfilled=True)
        t.request_replan()
    elif isinstance(decision, api.Wait):
        _write(t, replace(t.state.planning, look_again=min(decision.until, look_again or decision.until)))
    elif isinstance(decision, api.Change):
        _change(t, decision, reason, due)
    elif isinstance(decision, api.Leave):
        standby_scaling.leave(t, decision.jobs, reason)
        _write(t, replace(t.state.planning, look_again=look_again))
    else:
        _write(t, replace(t.state.planning, look_again=look_again))


def _tell(t: Transition, seen: api.Snapshot, decision: api.Decision, reason: str) -> None:
    """Write a decision to the event log, unless it says what the last one says; one on an offer is always new."""
    chance = history.propensity(decision)
    said = status.decided(seen, decision, reason, t.state.settings.config)
    news = status.is_news(said, t.state.planning.told)
    if not news and chance is None:
        return
    offer = history.describe_offer(t.state, seen, decision)
    if not news and offer is None:
        return
    said = msgspec.structs.replace(said, offer=offer or msgspec.UNSET)
    t.emit(said)
    _write(t, replace(t.state.planning, told=said))
    if offer is not None and chance is not None:
        history.note_offer(t, offer.jobs, decision)


def _change(t: Transition, decision: api.Change, reason: str, due: ResizeGoal | None) -> None:
    """Begin the reconfiguration that the policy has decided on."""
    state, live = t.state, t.state.world.live
    assert live is not None
    hosts = {worker.name: worker.host for worker in state.membership.of(decision.members)}
    # In the order in which they keep most of their state.
    members, _ = rank_order(live, decision.layout, decision.members, hosts, state.settings.config)
    cause = "successor" if decision.cause == "notice" and guaranteed_job.announced(state) else decision.cause
    request = due if decision.cause == "request" else None
    reconfiguration.begin(t, decision.layout, members, cause, reason, request)


def _quiet_at(state: RunState) -> float:
    """Return when it will be quiet enough to prepare a world without those that leave; a time that is past: it is.

    A large job of production takes many of ours, which say so one after another. Each word that comes after an attempt
    has begun makes it begin anew, and in a large world that takes longer than to wait for the last word.
    """
    if len(state.world.members) < MANY:
        return -math.inf
    leaving = [worker.eviction for worker in state.members if worker.eviction is not None]
    if not leaving or min(one.deadline for one in leaving) - state.now < 2 * LONGEST:
        return -math.inf
    first, last = (pick(min(one.at, state.now) for one in leaving) for pick in (min, max))
    return min(last + QUIET * len(state.world.members), first + LONGEST)


def _stopped(state: RunState) -> list[str]:
    """Return members that were suspended before they could leave; they can take part in no reconfiguration."""
    evictions = [(worker.name, worker.eviction) for worker in state.members]
    return [
        name for name, notice in evictions if notice is not None and notice.returns and notice.deadline <= state.now
    ]


def _due(state: RunState) -> tuple[ResizeGoal | None, float | None]:
    """Return the request whose turn it is; or when to look at the next one again."""
    if not state.resizes.goals:
        return None, None
    goal = state.resizes.goals[0]
    if goal.at_step < 0:
        return goal, None
    ahead = resize_queue.seconds_until(state, goal.at_step)
    if ahead <= AHEAD:
        return goal, None
    return None, state.now + min(ahead - AHEAD, AHEAD)


def _first(state: RunState) -> Layout | None:
    """Return the first world's layout, if nothing else says which one is wanted."""
    if state.settings.automatic or state.resizes.size_ceiling is not None:
        return None
    chosen = initial_layout(state, state.settings.live_workers)
    return None if isinstance(chosen, str) else chosen[0]


def snapshot(state: RunState, due: ResizeGoal | None) -> api.Snapshot:
    """Build what the policy may look at."""
    live, history, capacity, step = state.world.live, state.history, state.standbys.capacity, state.step
    assert live is not None
    apart = frozenset(live.members) | guaranteed_job.kept_out(state)
    ready = sorted(
        (worker for worker in state.membership.available if worker.name not in apart),
        key=lambda worker: (worker.arrived, natural_key(worker.name)),
    )
    return api.Snapshot(
        now=state.now,
        live=live,
        leaving=frozenset(worker.name for worker in state.members if worker.eviction is not None),
        ready=tuple(worker.name for worker in ready),
        guaranteed=frozenset(worker.name for worker in state.membership.with_role("live")),
        last_arrival=state.membership.last_arrival,
        due=due,
        go_first=frozenset(node_release.go_first(state, due or state.resizes.size_ceiling)[0]),
        pinned=state.resizes.size_ceiling,
        automatic=state.settings.automatic,
        first=_first(state),
        backoff=state.world.backoff,
        arrived={worker.name: worker.arrived for worker in ready},
        job_of={worker.name: worker.job_id for worker in ready},
        live_since=history.steady_since,
        step_seconds=state.step_seconds,
        steps_left=max(0, state.settings.config.train.steps - step),
        measured=history.measured,
        lives=tuple(span for span in history.spans if not span.failed),
        run_id=state.settings.run_id,
        unsaved_steps=max(0, step - max(state.barriers.saved_step, state.settings.start_step)),
        limit=state.handover.job.end_time if state.handover.job is not None else None,
        room=room(capacity, state.settings.config) if capacity is not None else None,
    )
