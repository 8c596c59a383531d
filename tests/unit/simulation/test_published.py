"""What others chose on their traces, with the costs of this simulation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulation_lab import COSTS, elastic_job, setting, trace

from liver_slurm.simulation.capacity import Capacity, capacity
from liver_slurm.simulation.cases import compared_cases
from liver_slurm.simulation.published import follow
from liver_slurm.simulation.trace import Published, Trace

MADE = trace(1000.0, ("a", 100.0, 600.0))
"""Of two workers, beside two that are guaranteed."""
GROWS = Published("theirs", ((0.0, 2, 1), (100.0, 4, 1), (600.0, 2, 1)))


def of(made: Trace, notice: float = 60.0) -> Capacity:
    return capacity(setting(made, notice), elastic_job(poll=4.0), COSTS)


def test_a_choice_waits_for_its_nodes_and_goes_with_the_notice() -> None:
    """Chosen at 100, ready and prepared at 132.2, 2 s for the change; at the notice of 540 what is chosen for 600."""
    outcome = follow(GROWS, of(MADE))
    assert outcome.account.steps == pytest.approx(132.2 + 2 * (540 - 134.2) + (1000 - 542))
    assert (outcome.changes, outcome.account.paused_s) == (2, pytest.approx(4.0))


def test_a_sudden_loss_costs_more() -> None:
    account = follow(GROWS, of(MADE, notice=0.0)).account
    assert account.paused_s == pytest.approx(2.0 + 1.0 + 4.0 + 2.0)
    assert account.lost_s == pytest.approx(0.25)


def test_a_choice_is_followed_where_it_is_slower() -> None:
    """It gives a node up 200 s before it goes."""
    cautious = Published("theirs", ((0.0, 2, 1), (100.0, 4, 1), (400.0, 2, 1)))
    account = follow(cautious, of(MADE)).account
    assert account.steps == pytest.approx(132.2 + 2 * (400 - 134.2) + (1000 - 402))


def test_it_stands_where_none_of_its_worlds_fits() -> None:
    account = follow(Published("theirs", ((0.0, 4, 1),)), of(MADE)).account
    assert account.paused_s == pytest.approx(134.2 + 460.0)


def test_all_of_a_trace_are_followed() -> None:
    made = replace(MADE, published=(GROWS, replace(GROWS, name="others")))
    cases = compared_cases(elastic_job(), setting(made), COSTS)
    assert [case.policy for case in cases][-3:] == ["theirs", "others", "foresight"]
    assert cases[-3].tokens < cases[-1].tokens


def test_a_choice_that_the_model_cannot_have() -> None:
    deep = replace(MADE, published=(Published("theirs", ((0.0, 1, 99),)),))
    case = compared_cases(elastic_job(), setting(deep), COSTS)[-2]
    assert case.tokens == 0.0
    assert case.end == "it chose tp1pp99dp1, and pp99 is more than num_layers 8"
