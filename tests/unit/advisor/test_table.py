"""The table of decisions: what it refuses, and views of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from liver_slurm.advisor.table import DecisionTable
from liver_slurm.base.errors import BadInput


def table(**changed: Any) -> DecisionTable:
    known: dict[str, Any] = {
        "covariates": np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]),
        "actions": np.array([0, 1, 0]),
        "outcomes": np.array([[1.0, 2.0], [3.0, np.nan], [np.nan, np.nan]]),
        "seen": np.array([[True, True], [True, False], [False, False]]),
    }
    return DecisionTable(**(known | changed))


def test_what_was_not_seen_is_blank() -> None:
    assert (table().outcomes == [[1.0, 2.0], [3.0, 0.0], [0.0, 0.0]]).all()
    assert (table().complete == [True, False, False]).all()


def test_the_history_of_a_stage_is_what_came_before_it() -> None:
    assert (table().history(0) == table().covariates).all()
    assert (table().history(1)[:, 2] == [1.0, 3.0, 0.0]).all()


def test_without_groups_and_probabilities_each_decision_is_its_own_and_nothing_was_logged() -> None:
    one = table()
    assert (one.groups == [0, 1, 2]).all()
    assert np.isnan(one.logged).all()
    assert (one.arms, one.stages, len(one)) == (2, 2, 3)


def test_other_views() -> None:
    one = table()
    assert (one.until(0).outcomes == [[1.0], [3.0], [0.0]]).all()
    assert (one.last_only().seen == [[True], [False], [False]]).all()
    assert (one.rows(np.array([2, 0])).groups == [2, 0]).all()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seen": np.array([[True, True], [False, True], [False, False]])}, "decision 1: an outcome was seen though"),
        ({"covariates": np.array([[0.0, 1.0], [np.nan, 3.0], [4.0, 5.0]])}, "decision 1: covariate 0 is nan"),
        ({"outcomes": np.array([[1.0, np.inf], [3.0, 0.0], [0.0, 0.0]])}, "decision 0: a seen outcome is not finite"),
        ({"actions": np.array([0, 1])}, "actions do not fit 3 decisions"),
        ({"actions": np.array([0, -1, 0])}, "actions must be from 0 to 1"),
        ({"actions": np.array([0, 2, 0]), "logged": np.full((3, 2), 0.5)}, "actions must be from 0 to 1"),
        ({"groups": np.array(["a", "b"])}, "groups do not fit"),
        ({"logged": np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])}, "decision 1: its logged probability is 0"),
        ({"seen": np.ones((3, 3), dtype=bool)}, "seen do not fit"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        table(**changed)
    assert "\n" not in str(refused.value)
