"""Directives: the mailbox in which the control thread puts what the coordinator wants, and training looks it up.

In steady state a look is one uncontended lock; training never waits for the control thread unless a boundary is due.

Messages may come late, twice or in another order than they were sent. So a boundary that was taken or withdrawn never
comes back, its step only moves ahead, and what is final stays so; a checkpoint counts in the world that agreed on it.
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


KEPT = 64
"""Numbers of boundaries that are over and remembered one by one; any number further below the newest is over, too."""


@dataclass(frozen=True)
class Halted:
    """Train no more in this world: it is broken."""


@dataclass
class _Boundary:
    step: int
    purpose: Literal["cutover", "checkpoint"]
    generation: int
    confirmed: bool = False


class Directives:
    """Step boundaries, verdicts and the order to leave, guarded by one condition variable."""

    def __init__(self, changed: threading.Condition | None = None) -> None:
        """
        Args:
            changed: what the training thread waits on; default: a new one.
        """
        self._changed = changed or threading.Condition()
        self._boundaries: dict[int, _Boundary] = {}
        self._over: set[int] = set()
        self._verdicts: dict[int, Commit | Abort] = {}
        self._leave: str | None = None
        self.refused = False
        """The coordinator has turned this worker away."""
        self._alone = False
        self._begun = -1
        self._committed = -1
        self._generation = self._halted = -1

    # ---- called by the control thread

    def propose(self, message: ProposeBoundary) -> tuple[bool, int] | None:
        """Record a proposed boundary, in place of an earlier one of the same number.

        Returns:
            whether this worker can still stop there, and the step that it is in; None: the proposal is an old one.
        """
        with self._changed:
            known = self._boundaries.get(message.boundary)
            if self._is_old(message.boundary, message.purpose, message.generation):
                return None
            if known is not None and known.confirmed:
                return (True, self._begun) if known.step == message.step else None
            if known is not None and known.step > message.step:
                # An old proposal, or that of a coordinator that has not seen the step move ahead.
                return False, known.step - 1
            accepted = message.step > self._begun
            if accepted:
                self._boundaries[message.boundary] = _Boundary(message.step, message.purpose, message.generation)
            else:
                self._boundaries.pop(message.boundary, None)
            self._changed.notify_all()
            return accepted, self._begun

    def awaits(self, message: ConfirmBoundary) -> bool:
        """Return whether it is news that this boundary is final."""
        with self._changed:
            known = self._boundaries.get(message.boundary)
            old = self._is_old(message.boundary, message.purpose, message.generation)
            return not old and (known is None or not known.confirmed)

    def confirm(self, message: ConfirmBoundary) -> None:
        """Make a boundary final; a worker that is in no world first hears of it here."""
        with self._changed:
            if self._is_old(message.boundary, message.purpose, message.generation):
                return
            self._boundaries[message.boundary] = _Boundary(
                message.step, message.purpose, message.generation, confirmed=True
            )
            self._changed.notify_all()

    def withdraw(self, boundary: int) -> None:
        """Forget a boundary; a worker that waits there trains on."""
        with self._changed:
            self._forget(boundary)
            self._changed.notify_all()

    def held(self) -> dict[int, tuple[int, bool]]:
        """Step of each boundary that this worker will stop at, by number, and whether that is final."""
        with self._changed:
            return {number: (each.step, each.confirmed) for number, each in self._boundaries.items()}

    def _is_old(self, number: int, purpose: str, generation: int) -> bool:
        """Return whether a boundary is over, or of another world than that which this worker was last told to enter."""
        if number in self._over or number < max(self._over, default=0) - KEPT:
            return True
        if purpose == "checkpoint":
            return 0 <= generation != self._committed
        return 0 <= generation <= self._committed

    def _forget(self, number: int) -> None:
        self._boundaries.pop(number, None)
        self._over.add(number)
        if len(self._over) > 2 * KEPT:
            self._over = {other for other in self._over if other >= max(self._over) - KEPT}

    def decide(self, message: Commit) -> bool:
        """Record that a target world is committed; False: that is known already, and the message changes nothing.

        The checkpoints that the world before has not come to end with it: joiners know nothing of them. So does the
        boundary of this very cutover, if word of it came again.
        """
        with self._changed:
            if message.generation <= self._committed:
                return False
            self._committed = message.generation
            self._verdicts[message.generation] = message
            for number, each in list(self._boundaries.items()):
                if each.purpose == "checkpoint" or 0 <= each.generation <= message.generation:
                    self._forget(number)
            if message.held >= 0 and message.held not in self._over:
                self._boundaries[message.held] = _Boundary(message.step, "cutover", -1)
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

    def halt(self, generation: int) -> None:
        """Record that the world of a generation is broken; also called by the training thread.

        What was proposed or confirmed in it never comes: its members stand where they are.
        """
        with self._changed:
            if generation > self._halted:
                self._halted = generation
                for number in list(self._boundaries):
                    self._forget(number)
                self._changed.notify_all()

    def leave(self, reason: str) -> None:
        """Order the worker to exit."""
        with self._changed:
            self._leave = reason
            self._changed.notify_all()

    @property
    def leaving(self) -> bool:
        """Whether the worker was told to exit."""
        return self._leave is not None

    def alone(self) -> None:
        """Go on without a coordinator: what it has not confirmed or committed by now, it never will."""
        with self._changed:
            self._alone = True
            self._boundaries = {number: each for number, each in self._boundaries.items() if each.confirmed}
            self._changed.notify_all()

    # ---- called by the training thread

    def calls_at(self, step: int) -> bool:
        """Return whether training is to stop for something that is final, with ``step`` steps completed."""
        with self._changed:
            due = self._due(step)
            return self._leave is not None or self.halted or (due is not None and due.confirmed)

    def at_boundary(self, step: int, begins: bool = True) -> Train | Leave | Due | Halted:
        """Return what to do with ``step`` steps completed; waits while a boundary there is proposed and not yet final.

        Args:
            step: steps completed.
            begins: to train, if nothing is due, is to begin the next step, so that a boundary here comes too late.
        """
        with self._changed:
            while True:
                if self._leave is not None:
                    return Leave(self._leave)
                if self.halted:
                    return Halted()
                due = self._due(step)
                if due is None:
                    if begins:
                        self._begun = step
                    return Train()
                if due.confirmed:
                    return self._take(due)
                self._changed.wait()

    @property
    def halted(self) -> bool:
        """Whether the world that this worker trains in is broken."""
        return self._generation >= 0 and self._halted >= self._generation

    def idle(self, *, parked: bool = False) -> Leave | Enter | Due:
        """Return what to do while in no world; waits for a world to join, or for the order to leave.

        Args:
            parked: the worker is in a broken world, which without a coordinator is never followed by another.
        """
        with self._changed:
            while True:
                if self._leave is not None:
                    return Leave(self._leave)
                if parked and self._alone:
                    return Leave("the coordinator has gone")
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

    def after_last_step(self) -> Leave | Halted:
        """Wait for the order to leave, once training is over; without a coordinator nobody gives it."""
        with self._changed:
            while self._leave is None and not self.halted:
                if self._alone:
                    return Leave("the coordinator has gone")
                self._changed.wait()
            return Halted() if self._leave is None else Leave(self._leave)

    def start_at(self, step: int, generation: int) -> None:
        """Record that training (re)starts in the world of a generation, with ``step`` steps completed."""
        with self._changed:
            self._begun, self._generation = step - 1, generation

    def in_no_world(self) -> None:
        """Record that this worker is a standby again."""
        with self._changed:
            self._generation = -1

    def begin(self, commit: Commit) -> bool:
        """Pass the boundary at which a world begins, or stop there: as the commit says, like all other members.

        Returns:
            whether the worker goes on with the step that it is in.
        """
        with self._changed:
            if commit.held >= 0:
                return False
            self._begun = commit.step
            return True

    def _due(self, step: int) -> _Boundary | None:
        return next((boundary for boundary in self._boundaries.values() if boundary.step == step), None)

    def _take(self, boundary: _Boundary) -> Due:
        for number, each in list(self._boundaries.items()):
            if each is boundary:
                self._forget(number)
        return Due(boundary.purpose, boundary.generation, boundary.step)
