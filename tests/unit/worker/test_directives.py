"""Directives: verdicts that come twice, or never."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from impatient import directives, passes

from liver_slurm.protocol.messages import Abort, Commit, ConfirmBoundary, ProposeBoundary
from liver_slurm.worker.directives import Directives, Due, Enter, Leave, Train


def commit(generation: int, step: int = 5) -> Commit:
    return Commit(epoch=1, generation=generation, step=step)


def test_a_commit_counts_once() -> None:
    directives = Directives()
    assert directives.decide(commit(3))
    assert not directives.decide(commit(3, step=6)), "while it waits to be read"
    assert directives.verdict(3) == commit(3)
    assert not directives.decide(commit(3)), "after it was read"
    assert not directives.decide(commit(2)), "an older world"
    directives.leave("done")
    assert directives.idle() == Leave("done"), "nothing is left of what was said again"
    assert directives.decide(commit(4))


def test_a_repeated_commit_does_not_wake_who_waits_in_no_world() -> None:
    directives = Directives()
    directives.decide(commit(0))
    assert directives.idle() == Enter(0, 5)
    directives.decide(commit(0))
    order: list[object] = []
    waiting = threading.Thread(target=lambda: order.append(directives.idle()))
    waiting.start()
    directives.leave("done")
    waiting.join(10)
    assert order == [Leave("done")]


@pytest.mark.parametrize("confirmed", [False, True])
def test_a_commit_ends_the_checkpoints_of_the_world_before(confirmed: bool) -> None:
    box = directives()
    box.start_at(3, 0)
    box.propose(ProposeBoundary(epoch=1, boundary=0, step=7, purpose="checkpoint"))
    if confirmed:
        box.confirm(ConfirmBoundary(epoch=1, boundary=0, step=7, purpose="checkpoint"))
    box.propose(ProposeBoundary(epoch=1, boundary=1, step=6, purpose="cutover"))  # the new world's first
    box.decide(commit(1))
    box.start_at(5, 0)
    assert not passes(box, 6), "held for the next resize"
    box.withdraw(1)
    assert passes(box, 6)
    assert passes(box, 7), "the new world's other members know of no checkpoint there"


def test_a_repeated_commit_leaves_the_new_worlds_checkpoint() -> None:
    box = directives()
    box.decide(commit(1))
    box.start_at(5, 0)
    box.propose(ProposeBoundary(epoch=2, boundary=0, step=7, purpose="checkpoint"))
    box.decide(commit(1))
    assert not passes(box, 7)


def test_what_a_lost_coordinator_has_only_proposed_holds_nobody() -> None:
    directives = Directives()
    directives.propose(ProposeBoundary(epoch=1, boundary=0, step=3, purpose="cutover"))
    directives.confirm(ConfirmBoundary(epoch=1, boundary=1, step=4, purpose="cutover", generation=1))
    directives.alone()
    assert isinstance(directives.at_boundary(3), Train)
    assert directives.at_boundary(4) == Due("cutover", 1, 4)
    assert isinstance(directives.verdict(1), Abort), "the old world goes on"


def test_a_commit_that_came_before_the_coordinator_was_lost_counts() -> None:
    directives = Directives()
    directives.decide(Commit(epoch=1, generation=1, step=3))
    directives.alone()
    assert isinstance(directives.verdict(1), Commit)


# ---- messages that come late, twice or in another order -------------------------------------------------------------


def propose(step: int, boundary: int = 4, generation: int = -1, purpose: Any = "cutover") -> ProposeBoundary:
    return ProposeBoundary(epoch=1, boundary=boundary, step=step, purpose=purpose, generation=generation)


def confirm(step: int, boundary: int = 4, generation: int = 1, purpose: Any = "cutover") -> ConfirmBoundary:
    return ConfirmBoundary(epoch=1, boundary=boundary, step=step, purpose=purpose, generation=generation)


def test_a_step_only_moves_ahead() -> None:
    box = directives()
    assert box.propose(propose(7)) == (True, -1)
    assert box.propose(propose(9)) == (True, -1)
    assert box.propose(propose(7)) == (False, 8), "the coordinator that asks has not seen it move: it must move on"
    assert box.held() == {4: (9, False)}


def test_what_is_final_stays_so() -> None:
    box = directives()
    box.propose(propose(7))
    assert box.awaits(confirm(7))
    box.confirm(confirm(7))
    assert not box.awaits(confirm(7))
    assert box.propose(propose(7)) == (True, -1), "the vote was lost"
    assert box.held() == {4: (7, True)}


@pytest.mark.parametrize("end", ["withdrawn", "taken"])
def test_a_boundary_that_is_over_never_comes_back(end: str) -> None:
    box = directives()
    if end == "taken":
        box.confirm(confirm(7))
        assert box.at_boundary(7) == Due("cutover", 1, 7)
    else:
        box.withdraw(4)
    assert box.propose(propose(9)) is None
    assert not box.awaits(confirm(9))
    box.confirm(confirm(9))
    assert box.held() == {}


def test_numbers_that_are_over_are_remembered_within_bounds() -> None:
    box = directives()
    for number in range(1000):
        box.withdraw(number)
    assert all(box.propose(propose(9, boundary=number)) is None for number in range(1000))
    assert len(box._over) < 200
    assert box.propose(propose(9, boundary=1000)) == (True, -1)


def test_a_checkpoint_counts_in_the_world_that_agreed_on_it() -> None:
    box = directives()
    box.decide(commit(1))
    box.confirm(confirm(7, generation=0, purpose="checkpoint"))
    assert box.held() == {}
    box.confirm(confirm(7, boundary=5, generation=1, purpose="checkpoint"))
    assert box.held() == {5: (7, True)}


def test_a_commit_ends_its_own_cutover_and_says_whether_the_world_stands() -> None:
    box = directives()
    box.confirm(confirm(5))
    box.decide(Commit(epoch=1, generation=1, step=5, held=6))
    assert box.held() == {6: (5, False)}
    assert not box.begin(Commit(epoch=1, generation=1, step=5, held=6))
    assert box.begin(commit(1))


def test_after_the_last_step_nobody_waits_for_a_coordinator_that_has_gone() -> None:
    box = directives()
    box.alone()
    assert box.after_last_step() == Leave("the coordinator has gone")


def test_a_boundary_at_the_step_of_a_validation() -> None:
    """It can be accepted while the validation goes on, calls once it is final, and is not passed by asking."""
    box = directives()
    box.start_at(10, 0)
    assert box.at_boundary(10, begins=False) == Train()
    proposal = ProposeBoundary(epoch=1, boundary=3, step=10, purpose="checkpoint", generation=-1)
    assert box.propose(proposal) == (True, 9)
    assert not box.calls_at(10), "others may not be able to stop there"
    box.confirm(ConfirmBoundary(epoch=1, boundary=3, step=10, purpose="checkpoint", generation=-1, begin=-1))
    assert box.calls_at(10)
    assert not box.calls_at(9)
    assert isinstance(box.at_boundary(10, begins=False), Due)
    assert not box.calls_at(10)
    assert box.at_boundary(10) == Train()
    assert box.propose(ProposeBoundary(epoch=1, boundary=4, step=10, purpose="checkpoint", generation=-1)) == (
        False,
        10,
    )
    box.leave("done")
    assert box.calls_at(10)
