"""Explicit resize requests: the list of those to come, and making training wait for a scheduled one."""

from __future__ import annotations

from liver_slurm.coordinator import boundary as boundaries
from liver_slurm.coordinator.records import RequestClosed
from liver_slurm.coordinator.state import ResizeGoal
from liver_slurm.coordinator.turn import Turn


def hold(turn: Turn) -> None:
    """Make training wait at the next scheduled request's step, however far the preparation is by then."""
    state = turn.state
    if state.live is None or state.cutover is not None or not state.requests:
        return
    goal = state.requests[0]
    if goal.at_step > state.live.step and goal.at_step > state.step and not state.phase.over:
        boundaries.propose(turn, "cutover", goal.at_step, request=goal.number)


def close(turn: Turn, number: int, *, fulfilled: bool) -> None:
    """Take a request off the list."""
    for goal in turn.state.requests:
        if goal.number == number and fulfilled:
            turn.update(pinned=goal)
    turn.update(requests=tuple(goal for goal in turn.state.requests if goal.number != number))
    turn.journal(RequestClosed(number=number, fulfilled=fulfilled))


def give_up(turn: Turn, goal: ResizeGoal, reason: str) -> None:
    """An explicit request cannot be fulfilled: say so, and let training go on."""
    held = turn.state.cutover
    if held is not None and held.request == goal.number and not held.confirmed:
        boundaries.withdraw(turn, "cutover")
    close(turn, goal.number, fulfilled=False)
    wanted = str(goal.layout or f"{goal.workers} workers")
    turn.emit("resize_given_up", request=goal.number, wanted=wanted, reason=reason)
    turn.stir()


def seconds_until(turn: Turn, step: int) -> float:
    """Estimated time until training reaches ``step``; 0.0 while no step time is known."""
    members = turn.state.live.members if turn.state.live else ()
    seconds = [turn.state.workers[member].step_seconds for member in members if member in turn.state.workers]
    return max(0, step - turn.state.step) * max(seconds, default=0.0)


def at_step(turn: Turn, request: int) -> int:
    """The step that a pending request is scheduled for; -1: as soon as possible, or not pending."""
    return next((goal.at_step for goal in turn.state.requests if goal.number == request), -1)
