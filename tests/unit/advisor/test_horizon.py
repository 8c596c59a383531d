"""How far is looked: as far as something still comes of a decision, and no farther."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from liver_slurm.advisor.horizon import Chosen, choose
from liver_slurm.advisor.learners import linear_learners
from liver_slurm.advisor.table import DecisionTable
from liver_slurm.base.errors import BadInput

WINDOWS = (300.0, 1800.0, 7200.0)


def table(
    gains: tuple[float, float, float], noise: float = 30.0, n: int = 1500, complete: float = 0.8
) -> DecisionTable:
    """Taking has gained so much by the end of each window; noise grows with the window."""
    random = np.random.default_rng(0)
    x, actions = random.normal(size=(n, 2)), (random.random(n) < 0.6).astype(np.int64)
    steps = random.normal(size=(n, 3)) * np.array([1.0, 3.0, noise])
    outcomes = actions[:, None] * np.array(gains) + np.cumsum(steps, axis=1) + x[:, :1]
    seen = np.cumprod(random.random((n, 3)) < np.array([1.0, 0.9, complete]), axis=1).astype(bool)
    logged = np.tile([0.4, 0.6], (n, 1))
    return DecisionTable(x, actions, outcomes, seen, np.arange(n) % 60, logged)


def chosen(given: DecisionTable, wanted: float | None = None, life: float = 0.0) -> Chosen:
    return choose(given, WINDOWS, linear_learners(), 5, wanted=wanted, life_s=life)


@pytest.mark.parametrize(
    ("gains", "stage", "why"),
    [
        ((20.0, 20.0, 20.0), 0, "what taking adds from there to 2 h, "),
        ((-30.0, 50.0, 50.0), 1, "what taking adds from there to 2 h, "),
        ((-30.0, 50.0, 90.0), 2, "the farthest; nearer ones end before nodes go, or more"),
    ],
)
def test_the_nearest_window_behind_which_nothing_comes(gains: tuple[float, float, float], stage: int, why: str) -> None:
    found = chosen(table(gains))
    assert (found.stage, found.why.startswith(why)) == (stage, True), found.why
    for one, gain in zip(found.looked, gains, strict=True):
        assert one.effect is not None
        low, high = one.effect.interval(0.999)
        assert low < gain < high
    for behind, gain in zip(found.looked[0].behind, gains[1:], strict=True):
        low, high = behind.rest.interval(0.999)
        assert low < gain - gains[0] < high
    assert found.looked[2].behind == ()


def test_what_comes_to_some_and_is_taken_from_others_comes_nevertheless() -> None:
    """By two hours taking has gained 60 s for each standard deviation of a covariate: nothing in the mean."""
    even = table((20.0, 20.0, 20.0))
    later = 60.0 * even.covariates[:, 1] * even.actions
    found = chosen(replace(even, outcomes=even.outcomes + np.outer(later, [0.0, 0.0, 1.0])))
    assert found.stage == 2
    nearest = found.looked[0].behind[-1]
    low, high = nearest.rest.interval()
    assert low < 0.0 < high
    low, high = nearest.told.interval(0.999)
    assert low < 60.0 * 0.798 < high, "E|Z|"


def test_a_window_that_ends_before_nodes_go_is_too_near() -> None:
    assert [chosen(table((20.0, 20.0, 20.0)), life=life).stage for life in (90.0, 91.0, 540.0, 550.0)] == [0, 1, 1, 2]


def test_what_is_unsure_is_not_taken_for_nothing() -> None:
    assert chosen(table((20.0, 20.0, 20.0), noise=8000.0)).stage == 2


def test_what_was_seldom_seen_is_no_outcome() -> None:
    found = chosen(table((20.0, 50.0, 90.0), complete=0.03))
    assert found.stage == 1
    assert found.why.startswith("the farthest of those that were seen often enough")
    assert found.looked[2].effect is None


def test_a_wish_is_followed() -> None:
    assert chosen(table((20.0, 20.0, 20.0)), 7200.0).stage == 2
    with pytest.raises(BadInput, match="there is no window of 60 s; there are 300, 1800, 7200 s"):
        chosen(table((20.0, 20.0, 20.0)), 60.0)


def test_few_runs_say_nothing_of_effects() -> None:
    found = chosen(table((20.0, 20.0, 20.0), n=19))
    assert found.stage == 2
    assert all(one.effect is None for one in found.looked)
    assert found.why == "the farthest, as too few were seen to compare windows"
