"""Where the state of the world after a broken one comes from, by what its survivors hold."""

from __future__ import annotations

from typing import Any

import pytest

from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy.recovery_source import Source, choose_source
from liver_slurm.protocol.messages import Parked
from liver_slurm.reshard.snapshots import Kept

LIVE = World(0, Layout.parse("tp1pp1dp2"), ("live-0", "live-1"), 3)


def chosen(*, lost: str = "live-1", distributed: bool = True, **said: Any) -> Source:
    """What follows once ``lost`` is gone and live-0 has said this."""
    parked = Parked(**{"worker": "live-0", "generation": 0, "step": 7, **said})
    return choose_source(LIVE, frozenset({lost}), [parked], distributed)


@pytest.mark.parametrize(
    ("said", "kind", "why"),
    [
        ({"distributed": False}, "survivors", "replicas among 1 survivors hold all state"),
        ({"distributed": False, "reached": "torn"}, "checkpoint", "live-0 was interrupted inside an update"),
        ({}, "checkpoint", "the distributed optimizer's shards of live-1 have neither a replica nor a mirror"),
        ({"mirrors": {"live-1": (7, False)}}, "mirrors", "live-0 mirrors live-1, which no proof was made of yet"),
        ({"mirrors": {"live-1": (6, True)}, "verified": {"live-1": 5}}, "mirrors", "verified at step 5 and used at 7"),
        ({"mirrors": {"live-1": (6, False)}}, "checkpoint", "neither a replica nor a mirror at step 7"),
    ],
)
def test_the_newest_state_that_can_be_had(said: dict[str, Any], kind: str, why: str) -> None:
    source = chosen(**said)
    assert (source.kind, source.step) == (kind, 7)
    assert why in source.reason


def test_who_has_not_made_the_last_update_makes_it_now() -> None:
    parked = [
        Parked(worker="live-0", generation=0, step=7),
        Parked(worker="live-1", generation=0, step=6, reached="gradients"),
    ]
    source = choose_source(LIVE, frozenset(), parked, distributed=True)
    assert (source.kind, source.step, source.redone, source.scribe) == ("survivors", 7, ("live-1",), "live-0")


def test_where_nobody_is_left_a_checkpoint_is_all_there_is() -> None:
    source = choose_source(LIVE, frozenset(LIVE.members), [], distributed=True)
    assert (source.kind, source.step) == ("checkpoint", 3)


FOUR = World(0, Layout(1, 1, 4), ("live-0", "live-1", "live-2", "live-3"), 0)


def parked(name: str, step: int, reached: Any = "nothing", **held: Any) -> Parked:
    return Parked(worker=name, generation=0, step=step, reached=reached, error="closed by peer", **held)


def of_four(lost: set[str], *survivors: Parked, stood_at: int = -1) -> Source:
    return choose_source(FOUR, frozenset(lost), survivors, True, stood_at)


def test_a_step_that_was_moved_is_not_gone_back_from() -> None:
    keepers = (
        parked("live-1", 12, "gradients", mirrors={"live-3": (12, True)}),
        parked("live-2", 12, "gradients", mirrors={"live-0": (12, True)}),
    )
    assert of_four({"live-3"}, parked("live-0", 13), *keepers).step == 13
    for moved, step in ((-1, 12), (13, 13)):
        source = of_four({"live-3", "live-0"}, *keepers, stood_at=moved)
        assert (source.kind, source.step, source.scribe) == ("mirrors", step, "live-1")


def test_who_may_have_gone_back_has_the_last_update_no_more() -> None:
    """The one whose update was interrupted is dead by now; the others have their snapshots of step 6, or are there."""
    others = (
        parked("live-1", 9, mirrors={"live-0": (9, False)}, own=[6], kept=[Kept(("live-0",), (6,))]),
        parked("live-2", 9, mirrors={"live-3": (9, False)}, own=[6], kept=[Kept(("live-3",), (6,))]),
    )
    torn = parked("live-0", 9, "torn", own=[6])
    for source in (of_four({"live-3"}, torn, *others), of_four({"live-3", "live-0"}, *others, stood_at=6)):
        assert (source.kind, source.step, source.back) == ("mirrors", 6, True)


def test_who_stands_at_another_step_was_not_interrupted_inside_an_update() -> None:
    source = of_four({"live-3"}, *(parked(f"live-{rank}", 149, own=[100]) for rank in range(3)), stood_at=100)
    assert source.reason.startswith("live-0, live-1, live-2 cannot come to step 100")
    torn = of_four({"live-3"}, parked("live-0", 9, "torn"), parked("live-1", 9, "torn"), parked("live-2", 9))
    assert torn.reason.startswith("live-0, live-1 were interrupted inside an update")
