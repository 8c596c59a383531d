"""Explicit resize requests: the list of those to come, and making training wait for a scheduled one."""

from __future__ import annotations

from dataclasses import replace

from liver_slurm.coordinator.core import step_barrier as boundaries
from liver_slurm.coordinator.core.records import RequestClosed
from liver_slurm.coordinator.core.state import RunState
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.policy.types import ResizeGoal
from liver_slurm.rundir import events


def hold(turn: Transition, *, told: bool = True) -> None:
    """Make training wait at the next scheduled request's step, however far the preparation is by then.

    Args:
        told: the live world's members know that they are its members. Until then none has begun its first step, and
            each can still be stopped before it.
    """
    state = turn.state
    if state.live is None or state.cutover is not None or not state.requests:
        return
    goal, nearest = state.requests[0], state.step + 1 if told else state.live.step
    if goal.at_step >= nearest and not state.phase.over:
        boundaries.propose(turn, "cutover", goal.at_step, request=goal.number)


def hold_at_start(turn: Transition, worker: str) -> None:
    """A member comes to a restarted coordinator: no member of a world that is not entered yet may begin its first step
    if a resize is scheduled there; those that heard the last coordinator's word of it stand, so all must."""
    state = turn.state
    if state.attempt is None or not state.attempt.committed:
        return
    if state.cutover is not None:
        boundaries.say_again(turn, state.cutover, worker)
    elif not state.attempt.entered:
        hold(turn, told=False)


def stands_at_start(state: RunState) -> bool:
    """Training is held at the very step that the live world begins with: there is no forward pass to report."""
    held = state.cutover
    return held is not None and state.live is not None and held.step == state.live.step


def close(turn: Transition, number: int, *, fulfilled: bool) -> None:
    """Take a request off the list."""
    for goal in turn.state.requests:
        if goal.number == number and fulfilled:
            turn.update(pinned=goal)
    turn.update(requests=tuple(goal for goal in turn.state.requests if goal.number != number))
    turn.journal(RequestClosed(number=number, fulfilled=fulfilled))


def let_go(turn: Transition, number: int) -> None:
    """Nothing is to be done at a request's step after all: let training go on, or wait for the next request there."""
    held = turn.state.cutover
    if held is None or held.request != number or held.confirmed:
        return
    others = [goal for goal in turn.state.requests if goal.number != number]
    if others and others[0].at_step == held.step:
        turn.update(cutover=replace(held, request=others[0].number, reached=0.0))
    else:
        boundaries.withdraw(turn, "cutover")


def give_up(turn: Transition, goal: ResizeGoal, reason: str) -> None:
    """An explicit request cannot be fulfilled: say so, and let training go on."""
    let_go(turn, goal.number)
    close(turn, goal.number, fulfilled=False)
    wanted = str(goal.layout or f"{goal.workers} workers")
    turn.emit(events.ResizeGivenUp(request=goal.number, wanted=wanted, reason=reason))
    turn.stir()


def seconds_until(turn: Transition, step: int) -> float:
    """Estimated time until training reaches ``step``; 0.0 while no step time is known."""
    members = turn.state.live.members if turn.state.live else ()
    seconds = [turn.state.workers[member].step_seconds for member in members if member in turn.state.workers]
    return max(0, step - turn.state.step) * max(seconds, default=0.0)


def at_step(turn: Transition, request: int) -> int:
    """The step that a pending request is scheduled for; -1: as soon as possible, or not pending."""
    return next((goal.at_step for goal in turn.state.requests if goal.number == request), -1)
