"""Training in closed form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.base.clock import FakeClock
from liver_slurm.simulation.account import Account
from liver_slurm.simulation.progress import Progress


def begun(step_s: float = 2.0, stall_share: float = 0.0) -> tuple[FakeClock, Account, Progress]:
    clock, account = FakeClock(100.0), Account()
    progress = Progress(account, clock.now, stall_share)
    progress.enter(10, step_s, 4)
    return clock, account, progress


def test_steps_are_completed_as_time_goes_by() -> None:
    clock, _, progress = begun()
    assert (progress.completed(), progress.begun(), progress.time_of(13)) == (10, 10, 106.0)
    clock.advance(5.0)
    assert (progress.completed(), progress.begun()) == (12, 12)


def test_training_stands_at_a_boundary_until_it_goes_on() -> None:
    clock, account, progress = begun()
    progress.stop_at(12)
    clock.advance(3.9)
    assert (progress.completed(), progress.begun(), progress.stands) == (11, 11, False)
    clock.advance(1.1)
    assert (progress.completed(), progress.begun(), progress.stands) == (12, 11, True), "nothing is under way"
    progress.go_on()
    clock.advance(3.0)
    progress.finish()
    assert account.paused_s == pytest.approx(1.0)
    assert account.steps == pytest.approx(2 + 1.5), "what is done of a step counts at the end"


def test_a_broken_world_loses_the_step_under_way() -> None:
    clock, account, progress = begun()
    clock.advance(5.0)
    progress.breaks()
    clock.advance(7.0)
    assert progress.completed() == 12
    progress.enter(11, 1.0, 2)
    clock.advance(3.0)
    progress.finish()
    assert (account.steps, account.paused_s, account.lost_s) == pytest.approx((1 + 3, 7.0, 1.0 + 2.0))


def test_checkpoints_in_the_background_make_steps_longer() -> None:
    clock, account, progress = begun(step_s=2.0, stall_share=0.25)
    clock.advance(10.0)
    progress.finish()
    assert (account.steps, account.productive_s, account.paused_s) == pytest.approx((4.0, 8.0, 2.0))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["wait", "stop", "go", "stand", "break", "enter"]),
            st.floats(0.0, 9.0, allow_nan=False),
            st.integers(0, 3),
        ),
        max_size=30,
    )
)
def test_no_second_is_lost(deeds: list[tuple[str, float, int]]) -> None:
    clock, account, progress = begun(step_s=0.7, stall_share=0.1)
    for kind, seconds, steps in deeds:
        before = progress.completed()
        clock.advance(seconds)
        assert progress.completed() >= before
        if kind == "stop":
            progress.stop_at(progress.begun() + 1 + steps)
        elif kind == "go":
            progress.go_on()
        elif kind == "stand":
            progress.stop_at(progress.begun() + 1)
            clock.advance(max(0.0, progress.time_of(progress.begun() + 1) - clock.now()))
            progress.stand()
        elif kind == "break":
            progress.breaks()
        elif kind == "enter":
            progress.stop_at(progress.begun() + 1)
            clock.advance(max(0.0, progress.time_of(progress.begun() + 1) - clock.now()))
            progress.enter(max(0, progress.completed() - steps), 0.3 + steps, 2 + steps)
    progress.finish()
    assert account.wall_s == pytest.approx(clock.now() - 100.0, abs=1e-3)
