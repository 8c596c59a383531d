"""From where the state of the world after a broken one comes; most of it is told by the coordinator's tests."""

from __future__ import annotations

from typing import Any

from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy.recovery_source import Source, choose_source
from liver_slurm.protocol.messages import Parked
from liver_slurm.reshard.snapshots import Kept

LIVE = World(0, Layout(1, 1, 4), ("live-0", "live-1", "live-2", "live-3"), 0)


def parked(name: str, step: int, reached: Any = "nothing", **held: Any) -> Parked:
    return Parked(worker=name, generation=0, step=step, reached=reached, error="closed by peer", **held)


def chosen(lost: set[str], *survivors: Parked, stood_at: int = -1) -> Source:
    return choose_source(LIVE, frozenset(lost), survivors, True, stood_at)


def test_a_step_that_was_moved_is_not_gone_back_from() -> None:
    keepers = (
        parked("live-1", 12, "gradients", mirrors={"live-3": (12, True)}),
        parked("live-2", 12, "gradients", mirrors={"live-0": (12, True)}),
    )
    assert chosen({"live-3"}, parked("live-0", 13), *keepers).step == 13
    for moved, step in ((-1, 12), (13, 13)):
        source = chosen({"live-3", "live-0"}, *keepers, stood_at=moved)
        assert (source.kind, source.step, source.scribe) == ("mirrors", step, "live-1")


def test_who_may_have_gone_back_has_the_last_update_no_more() -> None:
    """The one whose update was interrupted is dead by now; the others have their snapshots of step 6, or are there."""
    others = (
        parked("live-1", 9, mirrors={"live-0": (9, False)}, own=[6], kept=[Kept(("live-0",), (6,))]),
        parked("live-2", 9, mirrors={"live-3": (9, False)}, own=[6], kept=[Kept(("live-3",), (6,))]),
    )
    torn = parked("live-0", 9, "torn", own=[6])
    for source in (chosen({"live-3"}, torn, *others), chosen({"live-3", "live-0"}, *others, stood_at=6)):
        assert (source.kind, source.step, source.back) == ("mirrors", 6, True)
