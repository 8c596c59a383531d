"""Directives: verdicts that come twice, or never."""

from __future__ import annotations

import threading

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
