"""Directives: verdicts that come twice, or never."""

from __future__ import annotations

import threading

import pytest

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
    directives = Directives()
    directives.start_at(3)
    directives.propose(ProposeBoundary(epoch=1, boundary=0, step=7, purpose="checkpoint"))
    if confirmed:
        directives.confirm(ConfirmBoundary(epoch=1, boundary=0, step=7, purpose="checkpoint"))
    directives.propose(ProposeBoundary(epoch=1, boundary=1, step=6, purpose="cutover"))  # the new world's first
    directives.decide(commit(1))
    directives.start_at(5)
    assert not directives.begin(6), "held for the next resize"
    directives.withdraw(1)
    assert directives.begin(6)
    assert directives.begin(7), "the new world's other members know of no checkpoint there"


def test_a_repeated_commit_leaves_the_new_worlds_checkpoint() -> None:
    directives = Directives()
    directives.decide(commit(1))
    directives.start_at(5)
    directives.propose(ProposeBoundary(epoch=2, boundary=0, step=7, purpose="checkpoint"))
    directives.decide(commit(1))
    assert not directives.begin(7)


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
