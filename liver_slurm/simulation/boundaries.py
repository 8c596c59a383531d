"""Where training of a simulated run stops: the boundaries that its members have accepted, and those that are final."""

from __future__ import annotations

from collections.abc import Callable

from liver_slurm.protocol.messages import ConfirmBoundary, ProposeBoundary
from liver_slurm.simulation.clock import EventQueue
from liver_slurm.simulation.progress import Progress


class Boundaries:
    """The boundaries of the live world; all its members have the same ones."""

    def __init__(self, events: EventQueue, progress: Progress, arrived: Callable[[ConfirmBoundary], None]) -> None:
        """
        Args:
            events: notes what happens later.
            progress: the live world's.
            arrived: called when training has come to a final boundary, and stands there.
        """
        self._events, self._progress, self._arrived = events, progress, arrived
        self._held: dict[int, int] = {}
        """Step of each boundary at which training will stop, or stands, by number."""
        self._final: dict[int, ConfirmBoundary] = {}

    def __contains__(self, number: object) -> bool:
        return number in self._held

    def propose(self, order: ProposeBoundary) -> tuple[bool, int]:
        """Accept a boundary that lies ahead; returns whether it does, and the steps that are completed or begun."""
        begun = self._progress.begun()
        accepted = order.step > begun
        if accepted:
            self._held[order.boundary] = order.step
            self._follow()
        return accepted, begun

    def confirm(self, order: ConfirmBoundary) -> None:
        """Make a boundary final; the first of many equal orders counts."""
        if order.boundary not in self._final:
            self._final[order.boundary] = order
            self._held[order.boundary] = order.step
            self._follow()

    def withdraw(self, number: int) -> None:
        """Forget a boundary; training that stands there goes on."""
        self._final.pop(number, None)
        if self._held.pop(number, None) is not None:
            self._follow()

    def withdraw_for(self, generation: int) -> None:
        """Forget the cutover to a target world that is given up."""
        for number in [number for number, one in self._final.items() if one.generation == generation]:
            self.withdraw(number)

    def forget(self) -> None:
        """Forget all: they were those of a world that trains no more."""
        self._held.clear()
        self._final.clear()

    def expect(self) -> None:
        """Note when training will come to final boundaries."""
        for number, order in self._final.items():
            self._events.at(self._progress.time_of(order.step), lambda number=number: self._arrive(number))  # type: ignore[misc]

    def _follow(self) -> None:
        """Train on to the next boundary, or stand at it."""
        ahead = min(self._held.values(), default=None)
        if ahead is None or self._progress.completed() < ahead:
            self._progress.go_on()
            if ahead is not None:
                self._progress.stop_at(ahead)
        self.expect()

    def _arrive(self, number: int) -> None:
        order = self._final.get(number)
        if order is not None and self._progress.completed() >= order.step:
            del self._final[number]
            self._progress.stand()
            self._arrived(order)
