"""Agreeing on a step at which all members of the live world stop, without a collective of theirs.

A boundary is proposed ahead of where training is now, so that the word arrives in time; one member that can no longer
stop there makes it be proposed again, further ahead, under the same number.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from liver_slurm.coordinator.core.records import BoundaryClosed, BoundaryProposed
from liver_slurm.coordinator.core.state import Boundary
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.protocol.messages import BoundaryVote, ConfirmBoundary, ProposeBoundary, WithdrawBoundary

REACTION = 0.15
"""Seconds that a proposal may take until every member has seen it; a generous figure for a network and a busy node."""

Slot = Literal["cutover", "checkpoint"]


def next_step(turn: Transition, at_least: int = 0) -> int:
    """The nearest step that every member of the live world can probably still stop at."""
    live, step, lead = turn.state.live, turn.state.step, 1
    if live is not None:
        for member in live.members:
            worker = turn.state.workers.get(member)
            if worker is None or worker.step_seconds <= 0:
                continue
            # Heartbeats are old news: count the steps that were made since.
            step = max(step, math.ceil(worker.step + (turn.now - worker.step_at) / worker.step_seconds))
            lead = max(lead, math.ceil(REACTION / worker.step_seconds))
    return max(step + lead, at_least)


def propose(turn: Transition, slot: Slot, step: int, *, generation: int = -1, request: int = -1) -> None:
    """Ask the live world's members to stop before beginning ``step`` + 1 steps."""
    live = turn.state.live
    assert live is not None
    number = turn.state.next_boundary
    boundary = Boundary(number, slot, step, frozenset(live.members), generation=generation, request=request)
    turn.update(next_boundary=number + 1, **{slot: boundary})
    turn.journal(BoundaryProposed(boundary=number))
    _send_proposal(turn, boundary)


def propose_again(turn: Transition, boundary: Boundary, step: int) -> None:
    """Replace a proposal that somebody could not meet."""
    boundary = replace(boundary, step=step, accepted=frozenset(), reached=0.0)
    turn.update(**{boundary.purpose: boundary})
    _send_proposal(turn, boundary)


def say_again(turn: Transition, boundary: Boundary, worker: str) -> None:
    """Send a proposal to a voter that may have missed it; its vote counts once."""
    if worker in boundary.voters and not boundary.confirmed:
        turn.send([worker], _proposal(turn, boundary))


def vote(turn: Transition, message: BoundaryVote) -> Boundary | None:
    """Take one vote in; the boundary if this vote was news, None if it changed nothing."""
    boundary = _find(turn, message.boundary)
    if boundary is None or boundary.confirmed or message.step != boundary.step:
        turn.reject("late")
        return None
    if message.worker not in boundary.voters:
        turn.reject("impossible")
        return None
    if not message.accepted:
        # Twice the usual lead: the usual one was too short just now.
        ahead = next_step(turn, at_least=message.current_step + 1)
        propose_again(turn, boundary, ahead + max(1, ahead - max(turn.state.step, message.current_step)))
        return _find(turn, message.boundary)
    if message.worker in boundary.accepted:
        turn.reject("duplicate")
        return None
    boundary = replace(boundary, accepted=boundary.accepted | {message.worker})
    turn.update(**{boundary.purpose: boundary})
    return boundary


def confirm(
    turn: Transition, boundary: Boundary, receivers: tuple[str, ...], generation: int = -1, begin: int = -1
) -> None:
    """All accepted: make it final. ``begin``: the step from which on state streams."""
    turn.update(**{boundary.purpose: replace(boundary, confirmed=True, generation=generation)})
    turn.journal(BoundaryClosed(boundary=boundary.number))
    message = ConfirmBoundary(
        epoch=turn.state.settings.epoch,
        boundary=boundary.number,
        step=boundary.step,
        purpose=boundary.purpose,
        generation=generation,
        begin=begin,
    )
    turn.send(receivers, message)


def withdraw(turn: Transition, slot: Slot) -> None:
    """Take back what is proposed or confirmed, if anything; members that wait there train on."""
    boundary: Boundary | None = getattr(turn.state, slot)
    if boundary is None:
        return
    turn.update(**{slot: None})
    turn.send(sorted(boundary.voters), WithdrawBoundary(epoch=turn.state.settings.epoch, boundary=boundary.number))
    if not boundary.confirmed:
        turn.journal(BoundaryClosed(boundary=boundary.number))


def _find(turn: Transition, number: int) -> Boundary | None:
    for boundary in (turn.state.cutover, turn.state.checkpoint):
        if boundary is not None and boundary.number == number:
            return boundary
    return None


def _send_proposal(turn: Transition, boundary: Boundary) -> None:
    turn.send(sorted(boundary.voters), _proposal(turn, boundary))


def _proposal(turn: Transition, boundary: Boundary) -> ProposeBoundary:
    return ProposeBoundary(
        epoch=turn.state.settings.epoch,
        boundary=boundary.number,
        step=boundary.step,
        purpose=boundary.purpose,
        generation=boundary.generation,
    )
