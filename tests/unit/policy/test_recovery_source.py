"""Where the state of the world after a broken one comes from, by what its survivors hold."""

from __future__ import annotations

from typing import Any

import pytest

from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy.recovery_source import Source, choose_source
from liver_slurm.protocol.messages import Parked

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
