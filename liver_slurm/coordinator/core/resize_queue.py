"""Resize queue: the explicit requests to come, and making training wait for a scheduled one."""

from __future__ import annotations

from liver_slurm.base.frozen import replace
from liver_slurm.coordinator.core import step_barrier
from liver_slurm.coordinator.core.parts import ResizeQueue
from liver_slurm.coordinator.core.records import RequestClosed, RequestTaken
from liver_slurm.coordinator.core.signals import Registered
from liver_slurm.coordinator.core.state import RunState
from liver_slurm.coordinator.core.transition import Transition, Writer
from liver_slurm.policy.types import ResizeGoal
from liver_slurm.rundir import events

TRIES = 3
"""After so many failed reconfigurations an explicit request is given up."""

_write = Writer(ResizeQueue, __name__)


def take(t: Transition, goal: ResizeGoal) -> None:
    """Put an accepted request on the list: those for now before those that are scheduled."""
    layout = str(goal.layout) if goal.layout else ""
    t.journal(
        RequestTaken(
            number=goal.number, layout=layout, workers=goal.workers, at_step=goal.at_step, give_back=goal.give_back
        )
    )
    if t.state.steady:
        hold(t)
    t.request_replan()


def close(t: Transition, number: int, *, fulfilled: bool) -> None:
    """Take a request off the list."""
    t.journal(RequestClosed(number=number, fulfilled=fulfilled))


def give_up(t: Transition, goal: ResizeGoal, reason: str) -> None:
    """Give up a request that cannot be fulfilled, and let training go on."""
    let_go(t, goal.number)
    close(t, goal.number, fulfilled=False)
    wanted = str(goal.layout or f"{goal.workers} workers")
    t.emit(events.ResizeGivenUp(request=goal.number, wanted=wanted, reason=reason))
    t.request_replan()


def failed(t: Transition, number: int) -> None:
    """Count a failed reconfiguration for a request, and give it up after :data:`TRIES` of them."""
    goals = [
        replace(goal, failures=goal.failures + 1) if goal.number == number else goal for goal in t.state.resizes.goals
    ]
    _write(t, replace(t.state.resizes, goals=tuple(goals)))
    for goal in goals:
        if goal.failures >= TRIES:
            give_up(t, goal, f"{goal.failures} reconfigurations for it were aborted")


# ---- making training wait ------------------------------------------------------------------------------------------


def hold(t: Transition, *, told: bool = True) -> None:
    """Make training wait at the next scheduled request's step, however far the preparation is by then.

    Args:
        t: the transition.
        told: the live world's members know that they are its members. Until then none has begun its first step, and
            each can still be stopped before it.
    """
    state, live = t.state, t.state.world.live
    held = state.barriers.cutover is not None or state.damage.broken
    if live is None or held or not state.resizes.goals or state.interruption.reason:
        return  # where the nodes are being taken, the last checkpoint comes first
    goal, nearest = state.resizes.goals[0], state.step + 1 if told else live.step
    if goal.at_step >= nearest and not state.over:
        step_barrier.propose(t, "cutover", goal.at_step, request=goal.number)


def hold_at_start(t: Transition, news: Registered) -> None:
    """Hold a world that is not entered yet at its first step, if a resize is scheduled there.

    A restarted coordinator does so when a member comes: those that heard the last coordinator's proposal stand there,
    so all must.
    """
    state, attempt = t.state, t.state.world.attempt
    if not news.first or attempt is None or not attempt.committed:
        return
    if state.barriers.cutover is not None:
        step_barrier.repeat(t, [news.name])
    elif not attempt.entered:
        hold(t, told=False)


def stands_at_start(state: RunState) -> bool:
    """Return whether training is held at the very step that the live world begins with.

    There is no forward pass to report.
    """
    held, live = state.barriers.cutover, state.world.live
    return held is not None and live is not None and held.step == live.step


def let_go(t: Transition, number: int) -> None:
    """Let training go on beyond a request's step, or wait there for the next request."""
    held = t.state.barriers.cutover
    if held is None or held.request != number or held.confirmed:
        return
    others = t.state.resizes.without(number)
    if others and others[0].at_step == held.step:
        step_barrier.serve(t, others[0].number)
    else:
        step_barrier.withdraw(t, "cutover")


def next_at(state: RunState, request: int, step: int) -> int:
    """Return the request that is due at ``step`` too, once ``request`` is fulfilled there; -1: none is."""
    others = state.resizes.without(request)
    return others[0].number if others and others[0].at_step == step else -1


def seconds_until(state: RunState, step: int) -> float:
    """Estimate the seconds until training reaches ``step``; 0.0 while no step time is known."""
    ahead = max(0, step - state.step)
    validating = state.validating if ahead else None
    return ahead * state.step_seconds + (validating[1] if validating is not None else 0.0)


def at_step(state: RunState, request: int) -> int:
    """Return the step that a waiting request is scheduled for; -1: as soon as possible, or it does not wait."""
    goal = state.resizes.goal(request)
    return goal.at_step if goal is not None else -1
