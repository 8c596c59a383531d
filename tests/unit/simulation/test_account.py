"""Where the time of a run's worlds went."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.simulation.account import Account

DEEDS = st.lists(
    st.tuples(st.sampled_from(["train", "stand", "lose", "back"]), st.integers(1, 20), st.sampled_from([2, 4, 8])),
    max_size=40,
)


@given(DEEDS)
def test_seconds_add_up_whatever_is_trained_again(deeds: list[tuple[str, int, int]]) -> None:
    account = Account()
    step, wall, device_s = 0, 0.0, 0.0
    for kind, amount, size in deeds:
        step_s = 4.0 / size
        if kind == "train":
            account.trained(step, step + amount, step_s, size)
            step += amount
            wall, device_s = wall + amount * step_s, device_s + amount * step_s * size
        elif kind == "back":
            step = max(0, step - amount)
            account.back_to(step)
        else:
            account.stood(amount, size) if kind == "stand" else account.lost(amount, size)
            wall, device_s = wall + amount, device_s + amount * size
        assert account.steps == pytest.approx(step)
    assert account.wall_s == pytest.approx(wall)
    assert account.device_s == pytest.approx(device_s)


def test_steps_that_are_trained_again_are_lost() -> None:
    account = Account()
    account.trained(0, 10, 1.0, 2)
    account.trained(10, 14, 0.5, 4)
    account.back_to(8)
    assert (account.steps, account.productive_s, account.productive_device_s) == (8, 8.0, 16.0)
    assert (account.lost_s, account.lost_device_s) == (2 * 1.0 + 4 * 0.5, 2 * 1.0 * 2 + 4 * 0.5 * 4)
