"""The budget of questions to slurmctld."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.base.query_budget import MINUTE, QueryBudget


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_look_is_followed_by_a_gap_for_each_of_its_queries() -> None:
    clock = Clock()
    budget = QueryBudget(12, clock)
    assert budget.wait() == 0.0
    budget.spend()
    budget.spend(2)
    assert budget.wait() == 15.0
    clock.now = 130.0
    budget.spend()
    assert budget.wait() == 5.0


def test_what_is_older_than_a_minute_is_not_counted() -> None:
    clock = Clock()
    budget = QueryBudget(12, clock)
    budget.spend(3)
    clock.now += MINUTE - 1
    budget.spend()
    assert budget.last_minute() == 4
    clock.now += 1
    assert budget.last_minute() == 1


@given(st.lists(st.integers(1, 9), min_size=2, max_size=40), st.floats(1, 600))
def test_on_average_the_budget_is_kept(costs: list[int], per_minute: float) -> None:
    # LS-22
    clock = Clock()
    budget = QueryBudget(per_minute, clock)
    for cost in costs:
        clock.now += max(0.0, budget.wait())
        budget.spend(cost)
    gap = MINUTE / per_minute
    # The last look is paid for by the gap that follows it.
    assert sum(costs) * gap <= (clock.now + budget.wait() - 100.0) * (1 + 1e-9)


@given(st.lists(st.tuples(st.integers(1, 7), st.floats(0, 40)), min_size=2, max_size=60), st.integers(7, 60))
def test_who_waits_for_room_asks_no_more_in_any_minute(looks: list[tuple[int, float]], per_minute: int) -> None:
    # LS-22
    clock = Clock()
    budget = QueryBudget(per_minute, clock)
    asked: list[float] = []
    for cost, later in looks:
        clock.now += later
        while (wait := max(budget.wait(), budget.room(cost))) > 0:
            clock.now += wait
        budget.spend(cost)
        asked += [clock.now] * cost
        assert budget.total == len(asked)
        assert sum(clock.now - MINUTE + 1e-6 < one for one in asked) <= per_minute


def test_more_than_a_minute_may_have_is_asked_after_a_minute_without() -> None:
    clock = Clock()
    budget = QueryBudget(2, clock)
    assert budget.room(5) == 0.0
    budget.spend(5)
    clock.now += 10.0
    assert budget.room(5) == budget.room(1) == 50.0
    clock.now += 50.0
    assert budget.room(5) == 0.0
