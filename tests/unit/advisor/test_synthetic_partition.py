"""The toy partition: what must hold of it whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from liver_slurm.advisor.rules import always, never
from liver_slurm.advisor.synthetic_partition import HORIZON, REGIMES, away, goodput, home, log, simulate


def test_who_never_takes_gains_and_loses_nothing() -> None:
    runs = away(200, np.random.default_rng(0))
    assert (simulate(runs, REGIMES["volatile"], never, np.random.default_rng(1)) == 0.0).all()
    assert goodput(never, REGIMES["volatile"], runs) == 1.0


@pytest.mark.parametrize(("regime", "low", "high"), [("free", 1.3, 1.45), ("calm", 1.2, 1.3), ("volatile", 0.8, 0.95)])
def test_taking_always_pays_but_where_lives_are_short_and_losses_dear(regime: str, low: float, high: float) -> None:
    assert low < goodput(always, REGIMES[regime], away(2_000, np.random.default_rng(0))) < high


def test_rules_meet_the_same_luck() -> None:
    runs = home(500, np.random.default_rng(0))
    first, second = (simulate(runs, REGIMES["calm"], always, np.random.default_rng(1)) for _ in range(2))
    assert (first == second).all()
    taken = simulate(runs, REGIMES["calm"], never, np.random.default_rng(1), first=np.ones(500, dtype=bool))
    assert np.abs(taken[:, 0] - first[:, 0]).max() > 0
    assert (taken[:, 0] == first[:, 0]).mean() > 0.5, "until nodes come back, one offer that is taken is like all"


def test_outcomes_that_are_seen_grow_rarer_with_time() -> None:
    table = log(4_000, REGIMES["calm"], np.random.default_rng(0))
    shares = table.seen.mean(axis=0)
    assert 0.9 < shares[0] < 1.0
    assert 0.5 < shares[2] < shares[1] < 0.9
    assert table.actions.mean() == pytest.approx(0.7, abs=0.03)
    assert np.allclose(table.logged, [0.3, 0.7])
    assert np.abs(table.outcomes).max() <= HORIZON
