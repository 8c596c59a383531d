"""Directives: the mailbox in which the control thread puts what the coordinator wants, and training looks it up.

In steady state a look is one uncontended lock; training never waits for the control thread unless a boundary is due.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

from liver_slurm.protocol.messages import Abort, Commit, ConfirmBoundary, ProposeBoundary


@dataclass(frozen=True)
class Train:
    """Train the next step: nothing is due."""


@dataclass(frozen=True)
class Leave:
    """Exit."""

    reason: str


@dataclass(frozen=True)
class Enter:
    """Start in a committed world without a source, with ``step`` steps completed."""

    generation: int
    step: int


@dataclass(frozen=True)
class Due:
    """Stop at a confirmed boundary, and do what it is for."""

    purpose: Literal["cutover", "checkpoint"]
    generation: int
    step: int


@dataclass
class _Boundary:
    step: int
    purpose: Literal["cutover", "checkpoint"]
    generation: int
    confirmed: bool = False


class Directives:
    """Step boundaries, verdicts and the order to leave, guarded by one condition variable."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._boundaries: dict[int, _Boundary] = {}
        self._verdicts: dict[int, Commit | Abort] = {}
        self._leave: str | None = None
        self._alone = False
        self._begun = -1
        self._committed = -1

    # ---- called by the control thread

    def propose(self, message: ProposeBoundary) -> tuple[bool, int]:
        """Record a proposed boundary, in place of an earlier one of the same number.

        Returns:
            whether this worker can still stop there, and the step that it is in.
        """
        with self._changed:
            accepted = message.step > self._begun
            if accepted:
                self._boundaries[message.boundary] = _Boundary(message.step, message.purpose, message.generation)
            else:
                self._boundaries.pop(message.boundary, None)
            self._changed.notify_all()
            return accepted, self._begun

    def confirm(self, message: ConfirmBoundary) -> None:
        """Make a boundary final; a worker that is in no world first hears of it here."""
        with self._changed:
            self._boundaries[message.boundary] = _Boundary(
                message.step, message.purpose, message.generation, confirmed=True
            )
            self._changed.notify_all()

    def withdraw(self, boundary: int) -> None:
        """Forget a boundary; a worker that waits there trains on."""
        with self._changed:
            self._boundaries.pop(boundary, None)
            self._changed.notify_all()

    def decide(self, message: Commit) -> bool:
        """Record that a target world is committed; False: that is known already, and the message changes nothing.

        The checkpoints that the world before has not come to end with it: joiners know nothing of them.
        """
        with self._changed:
            if message.generation <= self._committed:
                return False
            self._committed = message.generation
            self._verdicts[message.generation] = message
            self._boundaries = {
                number: each for number, each in self._boundaries.items() if each.purpose != "checkpoint"
            }
            self._changed.notify_all()
            return True

    def abort(self, message: Abort, waited_for: bool) -> None:
        """Record that a target world is given up.

        Args:
            waited_for: training waits for the verdict on it.
        """
        with self._changed:
            self._boundaries = {
                number: each
                for number, each in self._boundaries.items()
                if each.purpose != "cutover" or each.generation != message.generation
            }
            if waited_for:
                self._verdicts[message.generation] = message
            self._changed.notify_all()

    def leave(self, reason: str) -> None:
        """Order the worker to exit."""
        with self._changed:
            self._leave = reason
            self._changed.notify_all()

    def alone(self) -> None:
        """Go on without a coordinator: what it has not confirmed or committed by now, it never will."""
        with self._changed:
            self._alone = True
            self._boundaries = {number: each for number, each in self._boundaries.items() if each.confirmed}
            self._changed.notify_all()

    # ---- called by the training thread

    def at_boundary(self, step: int) -> Train | Leave | Due:
        """What to do with ``step`` steps completed; waits while a boundary there is proposed and not yet final."""
        with self._changed:
            while True:
                if self._leave is not None:
                    return Leave(self._leave)
                due = self._due(step)
                if due is None:
                    self._begun = step
                    return Train()
                if due.confirmed:
                    return self._take(due)
                self._changed.wait()

    def idle(self) -> Leave | Enter | Due:
        """What to do while in no world; waits for a world to join, or for the order to leave."""
        with self._changed:
            while True:
                if self._leave is not None:
                    return Leave(self._leave)
                for boundary in self._boundaries.values():
                    if boundary.confirmed and boundary.purpose == "cutover":
                        return self._take(boundary)
                for generation, verdict in list(self._verdicts.items()):
                    del self._verdicts[generation]
                    if isinstance(verdict, Commit):
                        return Enter(generation, verdict.step)
                self._changed.wait()

    def verdict(self, generation: int) -> Commit | Abort | Leave:
        """Wait for the coordinator's verdict on a target world; without a coordinator it is an abort."""
        with self._changed:
            while True:
                if generation in self._verdicts:
                    return self._verdicts.pop(generation)
                if self._leave is not None:
                    return Leave(self._leave)
                if self._alone:
                    return Abort(epoch=-1, generation=generation, reason="the coordinator has gone")
                self._changed.wait()

    def after_last_step(self) -> Leave:
        """Wait for the order to leave, once training is over."""
        with self._changed:
            while self._leave is None:
                self._changed.wait()
            return Leave(self._leave)

    def start_at(self, step: int) -> None:
        """Record that training (re)starts with ``step`` steps completed."""
        with self._changed:
            self._begun = step - 1

    def begin(self, step: int) -> bool:
        """Pass the boundary after ``step`` steps without waiting; False: something is due or proposed there."""
        with self._changed:
            if self._due(step) is not None:
                return False
            self._begun = step
            return True

    def _due(self, step: int) -> _Boundary | None:
        return next((boundary for boundary in self._boundaries.values() if boundary.step == step), None)

    def _take(self, boundary: _Boundary) -> Due:
        self._boundaries = {number: each for number, each in self._boundaries.items() if each is not boundary}
        return Due(boundary.purpose, boundary.generation, boundary.step)
