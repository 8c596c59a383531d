"""What a run does next by itself, at the end of each turn: form world 0, recover, ask the policy, save."""

from __future__ import annotations

from dataclasses import replace

from liver_slurm.config.layouts import feasible_layouts
from liver_slurm.coordinator.core import handover, node_release, reconfiguration, resize_queue
from liver_slurm.coordinator.core import step_barrier as boundaries
from liver_slurm.coordinator.core.lifecycle import end
from liver_slurm.coordinator.core.state import Phase, RunState
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.parallel.layout import Layout
from liver_slurm.policy import api, engine
from liver_slurm.policy.cost_model import choose
from liver_slurm.policy.rank_assignment import rank_order
from liver_slurm.policy.types import ResizeGoal
from liver_slurm.rundir import events
from liver_slurm.rundir.worker_names import natural_key

AHEAD = 10.0
"""Seconds before a scheduled resize that its preparation begins."""


def advance(turn: Transition) -> None:
    """Do what the state calls for."""
    phase = turn.state.phase
    if phase is Phase.STARTING and turn.state.attempt is None:
        _start(turn)
    elif phase is Phase.RECOVERING:
        _recover(turn)
    if turn.state.phase is Phase.STEADY:
        _checkpoint(turn)
        _watch_hold(turn)
        if not turn.state.interrupted:  # a world without the live job's workers would have no coordinator
            _plan(turn)


# ---- before training -----------------------------------------------------------------------------------------------


def _start(turn: Transition) -> None:
    """The first world, of the run or since it began anew, is formed as soon as all live workers are warm."""
    state, wanted = turn.state, turn.state.settings.live_workers
    live = [worker for worker in state.workers.values() if worker.role == "live"]
    leaving = [worker for worker in live if worker.departure is not None]
    warm = [worker.name for worker in live if worker.warm]
    if leaving:
        names = ", ".join(sorted(worker.name for worker in leaving))
        end(turn, Phase.FAILED, 1, f"{names} will go away before training began")
    elif len(warm) >= wanted:
        chosen = initial_layout(state, len(warm))
        if isinstance(chosen, str):
            end(turn, Phase.FAILED, 1, chosen)
            return
        layout, reason = chosen
        members = tuple(sorted(warm, key=natural_key)[: layout.size])
        reconfiguration.begin(turn, layout, members, "start", reason)
    elif turn.now > state.started + state.settings.config.job.start_timeout:
        end(turn, Phase.FAILED, 1, f"only {len(warm)} of {wanted} live workers were ready in time; see their logs")


def initial_layout(state: RunState, workers: int) -> tuple[Layout, str] | str:
    """World 0's layout and why, or why there is none."""
    config = state.settings.config
    if config.elastic.initial is not None:
        layout = Layout.parse(config.elastic.initial)
        if layout.size > workers:
            return f"elastic.initial {layout} needs {layout.size} workers; the live job has {workers}"
        return layout, f"{layout} is elastic.initial"
    layouts = feasible_layouts(config, workers)
    if not layouts:
        return f"elastic.layouts has none for the {workers} live workers; add one, or set elastic.initial"
    return choose(layouts, config, None, lambda layout: ())


def _recover(turn: Transition) -> None:
    """Go on when every member of the committed world has registered with this coordinator."""
    state, live = turn.state, turn.state.live
    assert live is not None, "a run without a committed world starts, it does not recover"
    missing = [member for member in live.members if member not in state.workers]
    if missing:
        if turn.now > state.started + state.settings.config.job.lost_after:
            end(
                turn,
                Phase.FAILED,
                1,
                f"{', '.join(missing)} of the live world did not come back to the restarted coordinator; continue "
                f"from the newest checkpoint: liver-slurm submit --resume {state.settings.run_dir}",
            )
        return
    turn.emit(events.Recovered(layout=str(live.layout), members=live.members, step=state.step))
    phase = Phase.CUTOVER if state.attempt is not None else Phase.STEADY
    turn.update(phase=phase, reason="recovered from the journal")
    if phase is Phase.STEADY:
        resize_queue.hold(turn)
    turn.stir()


# ---- steady --------------------------------------------------------------------------------------------------------


def _checkpoint(turn: Transition) -> None:
    """Propose a wanted checkpoint's step, unless training is about to stop for a resize anyway."""
    state = turn.state
    if not state.checkpoint_wanted or state.checkpoint is not None:
        return
    at = boundaries.next_step(turn)
    if state.cutover is not None and at >= state.cutover.step:
        return
    turn.update(checkpoint_wanted=False)
    if at <= state.settings.config.train.steps:
        boundaries.propose(turn, "checkpoint", at)


def _watch_hold(turn: Transition) -> None:
    """Training that waits for a resize which cannot be prepared does not wait for ever."""
    state, held = turn.state, turn.state.cutover
    if held is None:
        return
    if state.step >= held.step and not held.reached:
        turn.update(cutover=replace(held, reached=turn.now))
        turn.stir()
    elif held.reached and turn.now > held.reached + state.settings.config.job.prepare_timeout:
        goal = next(goal for goal in state.requests if goal.number == held.request)
        resize_queue.give_up(turn, goal, f"training stood at step {held.step} for it too long: {state.reason}")


def _plan(turn: Transition) -> None:
    state = turn.state
    if not state.replan and (state.replan_at is None or turn.now < state.replan_at):
        return
    stopped = _stopped(state)
    if stopped:
        turn.update(reason=f"training stands: {', '.join(stopped)} suspended")
        return
    turn.update(replan=False, replan_at=None)
    resize_queue.hold(turn)
    due, look_again = _due(turn)
    seen = snapshot(turn.state, due)
    decision, reason = engine.decide(seen, state.settings.config)
    turn.update(reason=reason)
    if seen.leaving and isinstance(decision, api.Stay) and turn.state.checkpoint is None:
        turn.update(checkpoint_wanted=True)  # the live world is about to break: what it has reached is worth saving
    if isinstance(decision, api.Fulfilled):
        assert due is not None
        resize_queue.let_go(turn, due.number)
        resize_queue.close(turn, due.number, fulfilled=True)
        turn.stir()
    elif isinstance(decision, api.Wait):
        turn.update(replan_at=min(decision.until, look_again or decision.until))
    elif isinstance(decision, api.Change):
        request = due if decision.cause == "request" else None
        members = _ranked(turn.state, decision)
        cause = "successor" if handover.is_why(turn.state) and decision.cause == "notice" else decision.cause
        reconfiguration.begin(turn, decision.layout, members, cause, reason, request)
    else:
        turn.update(replan_at=look_again)


def _stopped(state: RunState) -> list[str]:
    """Members that were suspended before they could leave: no reconfiguration can have them take part."""
    members = state.live.members if state.live is not None else ()
    departures = {member: state.workers[member].departure for member in members if member in state.workers}
    return [
        member
        for member, departure in departures.items()
        if departure is not None and departure.returns and departure.deadline <= state.now
    ]


def _ranked(state: RunState, change: api.Change) -> tuple[str, ...]:
    """The next world's members in the order in which they keep most of their state."""
    assert state.live is not None
    hosts = {member: state.workers[member].host for member in change.members}
    members, _ = rank_order(state.live, change.layout, change.members, hosts, state.settings.config)
    return members


def _due(turn: Transition) -> tuple[ResizeGoal | None, float | None]:
    """The request whose turn it is; or when to look at the next one again."""
    if not turn.state.requests:
        return None, None
    goal = turn.state.requests[0]
    if goal.at_step < 0:
        return goal, None
    ahead = resize_queue.seconds_until(turn, goal.at_step)
    if ahead <= AHEAD:
        return goal, None
    return None, turn.now + min(ahead - AHEAD, AHEAD)


def snapshot(state: RunState, due: ResizeGoal | None) -> api.Snapshot:
    """What the policy may look at."""
    live = state.live
    assert live is not None
    members = frozenset(live.members)
    apart = members | handover.kept_out(state)
    idle = [worker for worker in state.workers.values() if worker.name not in apart]
    ready = sorted(
        (worker for worker in idle if worker.warm and worker.departure is None and not worker.dismissed),
        key=lambda worker: (worker.arrived, natural_key(worker.name)),
    )
    return api.Snapshot(
        now=state.now,
        live=live,
        leaving=frozenset(
            member for member in live.members if member in state.workers and state.workers[member].departure is not None
        ),
        ready=tuple(worker.name for worker in ready),
        guaranteed=frozenset(worker.name for worker in state.workers.values() if worker.role == "live"),
        last_arrival=state.last_arrival,
        due=due,
        go_first=frozenset(node_release.go_first(state, due or state.pinned)[0]),
        pinned=state.pinned,
        automatic=state.settings.automatic,
        backoff=state.backoff,
        arrived={worker.name: worker.arrived for worker in ready},
        unit_of={worker.name: worker.job_id for worker in ready},
        live_since=state.live_since,
        step_seconds=max(
            (state.workers[name].step_seconds for name in live.members if name in state.workers), default=0.0
        ),
        steps_left=max(0, state.settings.config.train.steps - state.step),
        measured=state.measured,
        lives=state.lives,
    )
