"""Other ways to train on the same trace."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_lab import COSTS, elastic_job, setting, trace

from liver_slurm.simulation.account import Account
from liver_slurm.simulation.capacity import Capacity, capacity
from liver_slurm.simulation.cases import compared_cases, elastic_cases
from liver_slurm.simulation.costs import Costs
from liver_slurm.simulation.strategies import (
    checkpoint_restart,
    compare,
    data_parallel_only,
    foresight,
    guaranteed_only,
    restart_from_checkpoints,
    save_interval,
)
from liver_slurm.simulation.trace import Span, Trace, from_spans

MADE = trace(1000.0, ("a", 100.0, 600.0))


def of(made: Trace, notice: float = 60.0, costs: Costs = COSTS) -> Capacity:
    return capacity(setting(made, notice), elastic_job(poll=4.0), costs)


def figures(account: Account) -> tuple[float, float, float]:
    return account.steps, account.paused_s, account.lost_s


def test_guaranteed_nodes_only() -> None:
    assert figures(guaranteed_only(of(MADE)).account) == pytest.approx((1000.0, 0.0, 0.0))
    stalls = replace(COSTS, stall_s=6.0)
    assert guaranteed_only(of(MADE, costs=stalls)).account.steps == pytest.approx(1000.0 / 1.01)


def test_foresight_loses_nothing() -> None:
    outcome = foresight(of(MADE))
    assert figures(outcome.account) == pytest.approx((500.0 + 500.0 / 0.5, 0.0, 0.0))
    assert outcome.changes == 2


def test_checkpoint_and_restart_as_computed_by_hand() -> None:
    """A restart takes 60 s, a checkpoint for it 5 s; no loss is unannounced, so none is written on the way.

    102    the node is there, as a restart has the start in it: 5 + 60 s
    167    4 workers, until the notice at 540: 746 steps; 65 s
    605    2 workers until 1000: 395 s
    """
    outcome = checkpoint_restart(of(MADE))
    assert figures(outcome.account) == pytest.approx((102 + 746 + 395, 130, 0.0))
    assert outcome.changes == 2


def test_a_sudden_loss_goes_back_to_the_last_checkpoint_that_is_written() -> None:
    """Without a notice there is one loss, at 600. A checkpoint stalls training for 1.8 s: one each 60 s of training.

    102    60 s were trained, 1.8 s stood, 40.2 s trained; 65 s
    167    4 workers for 433 s: 7 checkpoints, and 0.4 s more. The last one was begun 2.2 s before, and takes 5 s:
           60.4 s are lost; 61 s
    661    339 s: 5 checkpoints, 330 s trained
    """
    outcome = checkpoint_restart(of(MADE, notice=0.0, costs=replace(COSTS, stall_s=1.8)))
    stalls = 1.8 * (1 + 7 + 5)
    assert figures(outcome.account) == pytest.approx((100.2 + 2 * 360 + 330, stalls + 65 + 61, 60.4))
    sooner = checkpoint_restart(of(MADE, notice=0.0, costs=replace(COSTS, stall_s=1.8, save_s=2.0))).account
    assert figures(sooner) == pytest.approx((100.2 + 2 * 420 + 330, stalls + 62 + 61, 3.4))


def test_nodes_that_come_at_once_take_one_restart() -> None:
    made = trace(1000.0, ("a", 100.0, 1000.0), ("b", 100.0, 1000.0))
    run = restart_from_checkpoints(of(made), grows=True)
    assert (run.changes, run.account.paused_s) == (1, pytest.approx(65.0))


def test_growing_only_where_it_must_restart_may_be_better() -> None:
    coming = trace(1000.0, ("a", 950.0, 1000.0))
    outcome = checkpoint_restart(of(coming))
    assert outcome.changes == 0, "a restart would not pay"


def test_data_parallelism_grows_and_shrinks() -> None:
    """Ready at 122, prepared at 132.2, 2 s for the change; at the notice 2 s again."""
    outcome = data_parallel_only(of(MADE))
    assert figures(outcome.account) == pytest.approx((132.2 + 2 * (540 - 134.2) + (1000 - 542), 4.0, 0.0))
    sudden = data_parallel_only(of(MADE, notice=0.0)).account
    assert sudden.paused_s == pytest.approx(2.0 + 1.0 + 4.0 + 2.0)
    assert sudden.lost_s == pytest.approx(0.25), "half a step"


def test_only_losses_ask_for_checkpoints() -> None:
    made = from_spans("t", 1000.0, [Span("a", 0, 300, sudden=True), Span("b", 0, 400), Span("c", 0, 1000)])
    costs = replace(COSTS, stall_s=2.0)
    assert save_interval(of(made, costs=costs)) == pytest.approx(math.sqrt(2 * 2 * 1000 / 1))
    assert save_interval(of(made, notice=0.0, costs=costs)) == pytest.approx(math.sqrt(2 * 2 * 1000 / 2))
    assert save_interval(of(made)) == 5.0, "one is written before the next one begins"
    assert save_interval(of(MADE, costs=costs)) == math.inf, "all are announced"


def test_losses_of_nodes_that_the_job_may_not_have_do_not_count() -> None:
    ours = [Span(name, 0, 1000) for name in "abc"]
    made = from_spans("t", 1000.0, [*ours, *(Span(f"x{number}", 0, 500, sudden=True) for number in range(8))])
    assert save_interval(of(made)) == math.inf


SPANS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2900), st.integers(1, 2900), st.booleans()), max_size=8)


@settings(deadline=None)
@given(SPANS, st.sampled_from([0.0, 3.0, 60.0]), st.sampled_from([0.0, 6.0]))
def test_all_time_is_accounted_for(spans: Any, notice: float, stall_s: float) -> None:
    made = from_spans(
        "t", 3000.0, [Span(f"n{number}", begin, begin + length, sudden) for number, begin, length, sudden in spans]
    )
    outcomes = compare(of(made, notice, replace(COSTS, stall_s=stall_s)))
    for outcome in outcomes:
        assert outcome.account.wall_s == pytest.approx(3000.0, abs=1e-3), outcome.policy
        assert min(figures(outcome.account)) >= 0.0
    bound = outcomes[-1].account.steps
    assert all(outcome.account.steps <= bound + 1e-6 for outcome in outcomes)


BUSY = trace(
    7200.0,
    ("a", 100.0, 2600.0),
    ("b", 300.0, 5000.0),
    ("c", 900.0, 1700.0),
    ("a", 3300.0, 7000.0),
    ("c", 3900.0, 6400.0),
)


@pytest.mark.parametrize("notice", [60.0, 0.0])
def test_the_obvious_order(notice: float) -> None:
    """Foresight is the bound; overlap is no worse than pause, and both are better than restarts and than no nodes."""
    made, config = setting(BUSY, notice), elastic_job()
    ours = elastic_cases(config, made, COSTS, ("greedy",))
    others = compared_cases(config, made, COSTS)
    tokens = {(case.policy, case.mode): case.tokens for case in (*ours, *others)}
    assert (
        tokens["foresight", "none"]
        > tokens["greedy", "overlap"]
        > tokens["greedy", "pause"]
        > tokens["checkpoint-restart", "restart"]
        > tokens["guaranteed-only", "none"]
    )
    assert others[-1].ettr == pytest.approx(1.0)
