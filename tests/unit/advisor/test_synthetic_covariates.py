"""The design on real covariates: as many decisions are missing as asked for, and effects are the true ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from liver_slurm.advisor.synthetic_covariates import drawn_on, read
from liver_slurm.base.errors import BadInput

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(20_000, 6))
ACTIONS = (RANDOM.random(20_000) < 0.3).astype(np.int64)


def test_a_file_is_read_by_its_columns(tmp_path: Path) -> None:
    file = tmp_path / "like-ihdp.csv"
    rows = np.column_stack([ACTIONS[:50], np.full((50, 4), 1e6), X[:50] * 3.0 + 1.0])
    np.savetxt(file, rows, delimiter=",")
    x, actions = read(file)
    assert (actions == ACTIONS[:50]).all()
    assert x.shape == (50, 6), "outcomes and means are not among the covariates"
    assert x.mean(axis=0) == pytest.approx(np.zeros(6), abs=1e-9)
    assert x.std(axis=0) == pytest.approx(np.ones(6))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("a,b,c\n", "not a table of numbers"),
        ("1,2,3\n0,2,3\n", "expected treatment"),
        ("7,2,3,4,5,6,7\n", "expected treatment"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "other.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadInput, match=said) as refused:
        read(file)
    assert str(refused.value).startswith(str(file))


@pytest.mark.parametrize("missing", [0.2, 0.35, 0.5])
def test_as_many_are_missing_as_asked_for(missing: float) -> None:
    table, effects = drawn_on(X, ACTIONS, np.random.default_rng(1), carried=0.6, missing=missing)
    assert 1.0 - table.complete.mean() == pytest.approx(missing, abs=0.02)
    assert effects.shape == (20_000,)


def test_the_effects_are_those_of_the_outcomes_expected() -> None:
    """Actions here do not depend on covariates, so with nothing missing the difference of means is the effect."""
    table, effects = drawn_on(X, ACTIONS, np.random.default_rng(2), carried=0.6, missing=0.0)
    last = table.outcomes[:, -1]
    assert table.complete.mean() > 0.99
    difference = last[table.complete & (ACTIONS == 1)].mean() - last[table.complete & (ACTIONS == 0)].mean()
    assert difference == pytest.approx(effects.mean(), abs=0.2)
