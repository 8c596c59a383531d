"""The agenda: verdicts that are said twice, or never."""

from __future__ import annotations

import threading

from liver_slurm.protocol.messages import Abort, Commit, ConfirmBoundary, ProposeBoundary
from liver_slurm.worker.directives import Directives, Due, Enter, Leave, Train


def commit(generation: int, step: int = 5) -> Commit:
    return Commit(epoch=1, generation=generation, step=step)


def test_a_commit_counts_once() -> None:
    agenda = Directives()
    assert agenda.decide(commit(3))
    assert not agenda.decide(commit(3, step=6)), "while it waits to be read"
    assert agenda.verdict(3) == commit(3)
    assert not agenda.decide(commit(3)), "after it was read"
    assert not agenda.decide(commit(2)), "an older world"
    agenda.leave("done")
    assert agenda.idle() == Leave("done"), "nothing is left of what was said again"
    assert agenda.decide(commit(4))


def test_a_repeated_commit_does_not_wake_who_waits_in_no_world() -> None:
    agenda = Directives()
    agenda.decide(commit(0))
    assert agenda.idle() == Enter(0, 5)
    agenda.decide(commit(0))
    order: list[object] = []
    waiting = threading.Thread(target=lambda: order.append(agenda.idle()))
    waiting.start()
    agenda.leave("done")
    waiting.join(10)
    assert order == [Leave("done")]


def test_what_a_lost_coordinator_has_only_proposed_holds_nobody() -> None:
    agenda = Directives()
    agenda.propose(ProposeBoundary(epoch=1, boundary=0, step=3, purpose="cutover"))
    agenda.confirm(ConfirmBoundary(epoch=1, boundary=1, step=4, purpose="cutover", generation=1))
    agenda.alone()
    assert isinstance(agenda.at_boundary(3), Train)
    assert agenda.at_boundary(4) == Due("cutover", 1, 4)
    assert isinstance(agenda.verdict(1), Abort), "the old world goes on"


def test_a_commit_that_came_before_the_coordinator_was_lost_counts() -> None:
    agenda = Directives()
    agenda.decide(Commit(epoch=1, generation=1, step=3))
    agenda.alone()
    assert isinstance(agenda.verdict(1), Commit)
