"""Times of several clocks, in order."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_stories import Story

from liver_slurm.observability.ledger.causes import Cause
from liver_slurm.observability.ledger.clocks import never_back
from liver_slurm.observability.ledger.document import Ledger, make_ledger


@given(st.lists(st.floats(0.0, 100.0), max_size=40))
def test_times_never_go_back_and_those_in_order_stay(times: list[float]) -> None:
    found = never_back(np.array(times))
    assert (np.diff(found) >= 0.0).all()
    assert set(found.tolist()) <= set(times)
    assert never_back(np.array(sorted(times))).tolist() == sorted(times)


@pytest.mark.parametrize(
    ("times", "ordered"),
    [
        ([1, 2, 99, 4, 5], [1, 2, 4, 4, 5]),
        ([1, 2, 3, 0, 5], [1, 2, 3, 3, 5]),
        ([1, 9, 3, 4, 20, 21, 22, 17, 23], [1, 3, 3, 4, 20, 21, 22, 22, 23]),
        ([5, 4], [5, 5]),
    ],
)
def test_the_few_are_believed_less_than_the_many(times: list[float], ordered: list[float]) -> None:
    assert never_back(np.array(times, dtype=np.float64)).tolist() == ordered


def story() -> Story:
    found = Story()
    found.start(1.0, 1.0, 1.0)
    found.train(1000)
    found.end()
    return found


def productive(told: Story) -> tuple[Ledger, float]:
    ledger = make_ledger(told.facts())
    return ledger, ledger.account.of_the_run()[Cause.STEP]


def test_a_step_that_is_stamped_ahead_trains_no_longer_than_it_did() -> None:
    told = story()
    told.rows[500]["end"] += 36_000.0
    ledger, seconds = productive(told)
    assert (ledger.wall_s, seconds) == (pytest.approx(1013.0, abs=1.0), pytest.approx(1010.0, abs=1.0))


def test_an_event_that_is_stamped_ahead_moves_no_other() -> None:
    told = story()
    told.now += 1.0
    told.events[1] = msgspec.structs.replace(told.events[1], time=told.events[1].time + 36_000.0)
    assert make_ledger(told.facts()).wall_s < 1020.0
