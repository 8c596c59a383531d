"""Names of workers, made and taken apart."""

from __future__ import annotations

import pytest

from liver_slurm.rundir.worker_names import (
    guaranteed_prefix,
    is_guaranteed,
    is_of_successor,
    local_standby_name,
    natural_key,
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
    names = ["standby-9-0", "live-10", "live-2", "guest", "live-8-1"]
    assert sorted(names, key=natural_key) == ["guest", "live-2", "live-8-1", "live-10", "standby-9-0"]
