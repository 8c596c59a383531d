"""Where training stops."""

from __future__ import annotations

from typing import Any

from liver_slurm.protocol.messages import ConfirmBoundary, ProposeBoundary
from liver_slurm.simulation.account import Account
from liver_slurm.simulation.boundaries import Boundaries
from liver_slurm.simulation.clock import EventQueue
from liver_slurm.simulation.progress import Progress


class Lab:
    """Training of one step a second from time 100."""

    def __init__(self) -> None:
        self.events = EventQueue(100.0)
        self.progress = Progress(Account(), self.events.now, 0.0)
        self.progress.enter(0, 1.0, 2)
        self.came: list[tuple[float, int]] = []
        self.boundaries = Boundaries(
            self.events, self.progress, lambda order: self.came.append((self.events.now(), order.boundary))
        )

    def propose(self, number: int, step: int) -> tuple[bool, int]:
        return self.boundaries.propose(ProposeBoundary(epoch=1, boundary=number, step=step, purpose="cutover"))

    def confirm(self, number: int, step: int, purpose: Any = "cutover", generation: int = 1) -> None:
        self.boundaries.confirm(
            ConfirmBoundary(epoch=1, boundary=number, step=step, purpose=purpose, generation=generation)
        )

    def steps_at(self, time: float) -> int:
        self.events.run_until(time)
        return self.progress.completed()


def test_training_stops_where_it_was_agreed() -> None:
    lab = Lab()
    assert lab.steps_at(103.5) == 3
    assert lab.propose(1, 3) == (False, 3), "that step is under way"
    assert lab.propose(1, 5) == (True, 3)
    lab.confirm(1, 5)
    assert lab.steps_at(120.0) == 5
    assert lab.came == [(105.0, 1)]


def test_training_waits_at_a_boundary_that_is_not_final_yet() -> None:
    lab = Lab()
    lab.propose(1, 5)
    assert lab.steps_at(110.0) == 5
    assert lab.came == []
    lab.confirm(1, 5)
    lab.events.run_until(111.0)
    assert lab.came == [(110.0, 1)]


def test_what_is_withdrawn_holds_nobody() -> None:
    lab = Lab()
    lab.propose(1, 5)
    assert lab.steps_at(110.0) == 5
    lab.boundaries.withdraw(1)
    assert lab.steps_at(112.5) == 7
    lab.propose(2, 9)
    lab.confirm(2, 9, generation=4)
    lab.boundaries.withdraw_for(4)
    assert lab.steps_at(120.5) == 15
    assert lab.came == []


def test_the_nearer_of_two_comes_first() -> None:
    lab = Lab()
    lab.propose(1, 9)
    lab.confirm(1, 9)
    lab.propose(2, 4)
    lab.confirm(2, 4, purpose="checkpoint")
    assert lab.steps_at(106.0) == 4
    assert (lab.came, 2 in lab.boundaries) == ([(104.0, 2)], True)
    lab.boundaries.withdraw(2)
    assert lab.steps_at(120.0) == 9
    assert lab.came == [(104.0, 2), (111.0, 1)]
