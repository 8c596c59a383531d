"""How many units fit into what is idle."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.scheduler.slurm.headroom import Unit, fitting_nodes, idle_units, pack, satisfies
from liver_slurm.scheduler.slurm.records import NodeInfo


def node(name: str = "n1", **changes: object) -> NodeInfo:
    values = {
        "state": "idle",
        "cpus_idle": 4,
        "cpus": 4,
        "gpus_idle": 2,
        "gpus": 2,
        "memory_idle": 8000,
        "memory": 8000,
    }
    return NodeInfo(name=name, features=frozenset({"a"}), **{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("unit", "count"),
    [
        (Unit(1, 1), 4),
        (Unit(1, 3), 1),
        (Unit(1, 1, gpus=1), 2),
        (Unit(1, 1, gpus=3), 0),
        (Unit(1, 1, memory=3000), 2),
        (Unit(2, 1), 0),
        (Unit(1, 1, constraint="a"), 4),
        (Unit(1, 1, constraint="b"), 0),
        (Unit(1, 1, exclude=frozenset({"n1"})), 0),
    ],
)
def test_one_node(unit: Unit, count: int) -> None:
    assert idle_units([node()], unit) == count


def test_features_that_were_cut_off_are_left_to_slurm() -> None:
    assert idle_units([node(has_more=True)], Unit(1, 1, constraint="b")) == 4


@pytest.mark.parametrize("state", ["idle+drain", "allocated", "down", "mixed+drain", "idle+maintenance", "completing"])
def test_only_idle_and_mixed_nodes_take_jobs(state: str) -> None:
    assert idle_units([node(state=state)], Unit(1, 1)) == 0


def test_a_busy_node_still_fits_on_paper() -> None:
    assert fitting_nodes([node(state="allocated", cpus_idle=0)], Unit(1, 4)) != []
    assert fitting_nodes([node()], Unit(1, 5)) == []


@pytest.mark.parametrize(
    ("constraint", "holds"),
    [
        (None, True),
        ("a", True),
        ("a&b", True),
        ("a,b", True),
        ("a&c", False),
        ("c|b", True),
        ("c|d", False),
        ("[a|c]", True),
        ("[c|d]", False),
        ("a*2", True),
    ],
)
def test_constraint(constraint: str | None, holds: bool) -> None:
    assert satisfies(frozenset({"a", "b"}), constraint) is holds


@cache
def brute_force(slots: tuple[int, ...], width: int) -> int:
    choices = [pick for pick in combinations(range(len(slots)), width) if all(slots[i] for i in pick)]
    best = 0
    for pick in choices:
        left = tuple(count - (i in pick) for i, count in enumerate(slots))
        best = max(best, 1 + brute_force(left, width))
    return best


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=4).map(tuple), st.integers(1, 3))
def test_pack_is_the_optimum(slots: tuple[int, ...], width: int) -> None:
    assert pack(slots, width) == brute_force(slots, width)
