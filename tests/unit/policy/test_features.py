"""Features of an offer: the same names always, and finite numbers or nothing."""

from __future__ import annotations

import math
from dataclasses import replace

from coordinator_lab import job
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy.api import Change, Snapshot
from liver_slurm.policy.features import DAY, MEANINGS, features
from liver_slurm.policy.survival import Life
from liver_slurm.policy.types import Measured

NOW = 20_000 * DAY + 6 * 3600.0
CHANGE = Change(Layout(1, 1, 4), ("l0", "l1", "s0", "s1"), "capacity")


def seen(**more: object) -> Snapshot:
    fields: dict[str, object] = {
        "now": NOW, "live": World(1, Layout(1, 1, 2), ("l0", "l1"), 10), "leaving": frozenset(), "ready": ("s0", "s1"),
        "guaranteed": frozenset({"l0", "l1"}), "last_arrival": NOW - 5.0, "step_seconds": 2.0, "steps_left": 500,
        "arrived": {"s0": NOW - 60.0, "s1": NOW - 5.0}, "job_of": {"s0": "7", "s1": "8"}, "unsaved_steps": 30,
    }  # fmt: skip
    return Snapshot(**{**fields, **more})  # type: ignore[arg-type]


def test_what_is_known_of_an_offer() -> None:
    made = job()
    config = replace(made, standby=replace(made.standby, grace=60.0))
    lives = (Life("5", "p", NOW - 900.0, NOW - 600.0, True), Life("7", "p", NOW - 60.0))
    measured = (Measured(1, 2, 30.0, 3.0), Measured(2, -2, 5.0, 1.0))
    found = features(
        seen(lives=lives, measured=measured, limit=NOW + 99.0, room=3, live_since=NOW - 9.0), CHANGE, config
    )
    assert tuple(found) == tuple(MEANINGS)
    assert None not in found.values()
    assert (found["workers"], found["offered_workers"], found["offered_jobs"], found["room"]) == (2.0, 2.0, 2.0, 3.0)
    assert (found["taken_1h"], found["offers_1h"], found["assumed"]) == (1.0, 2.0, 0.0)
    assert found["log_life_s"] == math.log1p(300.0)
    assert (found["log_youngest_s"], found["log_oldest_s"]) == (math.log1p(5.0), math.log1p(60.0))
    assert (found["log_unsaved_s"], found["log_limit_s"]) == (math.log1p(60.0), math.log1p(99.0))
    assert found["serve_ratio"] == 0.5
    assert found["speedup"] is not None
    assert found["speedup"] > 0.0
    assert (round(found["hour_sin"] or 0.0, 6), found["weekend"]) == (1.0, 0.0), (
        "it is six in the morning of a Thursday"
    )
    assert features(seen(now=NOW + 2 * DAY), CHANGE, config)["weekend"] == 1.0


def test_what_is_not_known_is_nothing() -> None:
    found = features(seen(step_seconds=0.0, steps_left=0), CHANGE, job())
    unknown = {name for name, value in found.items() if value is None}
    assert {"log_step_s", "saved_s", "log_grace_s", "log_limit_s", "log_life_s", "room"} <= unknown


@given(
    step_s=st.floats(0.0, 1e6),
    left=st.integers(0, 10**12),
    ages=st.lists(st.floats(-10.0, 1e9), min_size=2, max_size=2),
    limit=st.none() | st.floats(-1e9, 1e12),
    lives=st.lists(st.tuples(st.floats(0.0, NOW), st.floats(0.0, 1e6), st.booleans()), max_size=5),
)
def test_features_are_finite(
    step_s: float, left: int, ages: list[float], limit: float | None, lives: list[tuple[float, float, bool]]
) -> None:
    snapshot = seen(
        step_seconds=step_s,
        steps_left=left,
        arrived={"s0": NOW - ages[0], "s1": NOW - ages[1]},
        limit=limit,
        lives=tuple(Life(str(n), "p", began, began + for_, taken) for n, (began, for_, taken) in enumerate(lives)),
    )
    found = features(snapshot, CHANGE, job())
    assert tuple(found) == tuple(MEANINGS)
    assert all(value is None or math.isfinite(value) for value in found.values())
