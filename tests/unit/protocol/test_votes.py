"""What votes for a commit say beside each other."""

from __future__ import annotations

import pytest

from liver_slurm.protocol.messages import Handover, Streamed
from liver_slurm.protocol.votes import disagreement

SAME = Handover(updates=7, step=8, data="5eed")


def said(*found: Handover) -> str:
    votes = [Streamed(worker=f"w{n}", generation=1, ok=True, found=each) for n, each in enumerate(found)]
    return disagreement({vote.worker: vote for vote in votes}, 8)


@pytest.mark.parametrize(
    "other",
    [SAME, Handover(), Handover(step=8), Handover(updates=7, data="5eed")],
    ids=["same", "none", "step", "rest"],
)
def test_what_is_the_same_or_not_said_is_no_disagreement(other: Handover) -> None:
    assert not said(SAME, SAME, other)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (Handover(updates=0, step=8, data="5eed"), "the optimizer's step of w1 is 0, and that of w0 is 7"),
        (
            Handover(updates=7, step=9, data="5eed"),
            "w1 would go on with the samples of step 9, and the cutover is at step 8",
        ),
        (
            Handover(updates=7, step=8, data="da7a"),
            "w1 and w0 have other samples: data.paths must be the same on all nodes",
        ),
    ],
)
def test_who_would_go_on_otherwise_is_named(other: Handover, reason: str) -> None:
    assert said(SAME, other, SAME) == reason
