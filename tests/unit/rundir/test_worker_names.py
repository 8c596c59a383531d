"""Names of workers, made and taken apart."""

from __future__ import annotations

import pytest

from liver_slurm.rundir.worker_names import (
    earlier_in_place,
    guaranteed_prefix,
    is_guaranteed,
    is_of_successor,
    local_standby_name,
    natural_key,
    place_of,
    restarted_name,
    standby_prefix,
    task_number,
    worker_name,
)


def test_the_names_that_run_directories_have() -> None:
    assert worker_name(guaranteed_prefix(), 3) == "live-3"
    assert worker_name(guaranteed_prefix("1234"), "3") == "live-1234-3"
    assert worker_name(standby_prefix("1234"), 0) == "standby-1234-0"
    assert local_standby_name(2) == "standby-local-2"


@pytest.mark.parametrize(
    ("name", "guaranteed", "of_8", "number"),
    [
        ("live-3", True, False, 3),
        ("live-8-3", True, True, 3),
        ("live-8-3.2", True, True, 3),
        ("live-3.12", True, False, 3),
        ("live-88-3", True, False, None),
        ("standby-8-3", False, False, None),
        ("guest", False, False, None),
        ("live-guest", True, False, None),  # a name that people gave
        ("alive-3", False, False, None),
    ],
)
def test_whose_it_is(name: str, guaranteed: bool, of_8: bool, number: int | None) -> None:
    assert (is_guaranteed(name), is_of_successor(name, "8"), task_number(name, "8")) == (guaranteed, of_8, number)


def test_numbers_are_sorted_as_numbers() -> None:
    names = ["standby-9-0", "live-10", "live-2.10", "live-2.9", "live-2", "guest", "live-8-1"]
    in_order = ["guest", "live-2", "live-2.9", "live-2.10", "live-8-1", "live-10", "standby-9-0"]
    assert sorted(names, key=natural_key) == in_order


def test_who_was_before_in_a_place() -> None:
    assert [restarted_name("live-3", count) for count in (1, 2, 3)] == ["live-3", "live-3.2", "live-3.3"]
    assert [place_of(name) for name in ("live-3", "live-3.12", "live-8-3.2")] == ["live-3", "live-3", "live-8-3"]
    of_people = ("standby-9-0", "me.2", "live-me.2", "live-3.x", "live-3.2.2", "live-3." + "9" * 99)
    assert [place_of(name) for name in of_people] == [*of_people]
    others = ("live-3", "live-3.2", "live-3.10", "live-4", "live-8-3", "live-3.x", "live-me.2")
    assert earlier_in_place("live-3.3", others) == ["live-3", "live-3.2"]
    assert earlier_in_place("live-3", others) == earlier_in_place("live-me.3", others) == []
