"""Sizes of batches that grow, and the samples that they add up to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.config.batch_sizes import batch_problems, batch_size, samples_before
from liver_slurm.config.train import TrainSection


def train(full: int, *ramp: int, micro: int = 1) -> TrainSection:
    return TrainSection(
        steps=1000, seq_length=8, micro_batch_size=micro, global_batch_size=full, rampup_batch_size=ramp
    )


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 12), st.integers(1, 5000))
def test_sizes_follow_from_the_samples_consumed(start: int, increment: int, increments: int, samples: int) -> None:
    full = start + increments * increment
    section, consumed = train(full, start, increment, samples), 0
    for step in range(200):
        grown = increments if consumed > samples else consumed * increments // samples
        assert batch_size(section, step) == start + grown * increment
        assert samples_before(section, step) == consumed
        consumed += batch_size(section, step)


@given(st.integers(1, 10**6), st.integers(0, 10**12))
def test_without_a_ramp_all_are_equal(full: int, step: int) -> None:
    assert (batch_size(train(full), step), samples_before(train(full), step)) == (full, step * full)


@pytest.mark.parametrize("ramp", [(8, 8, 1000), (4, 4, 300), (16, 16, 4096), (32, 32, 7)])
def test_sizes_are_megatrons(ramp: tuple[int, int, int]) -> None:
    from liver_slurm.engine.megatron import compat

    with compat.imports():
        from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator as Theirs

    theirs, section = Theirs(64, 4, 1, False, 0, *ramp), train(64, *ramp, micro=4)
    for step in range(300):
        theirs.update(samples_before(section, step), consistency_check=True)
        assert batch_size(section, step) == theirs.get_current_global_batch_size()


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (train(64, 16, 16, 100, micro=4), None),
        (train(64, 64, 16, 100, micro=4), None),
        (train(64, micro=3), "64 is not a multiple of micro_batch_size 3"),
        (train(64, 16, 16), "has 2 numbers; allowed: three"),
        (train(64, 6, 4, 100, micro=4), "6 and 4 are not both multiples of micro_batch_size 4"),
        (train(64, 16, 20, 100, micro=4), "increments of 20 do not lead from 16 to global_batch_size 64"),
        (train(64, 128, 16, 100), "increments of 16 do not lead from 128 to global_batch_size 64"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(section: TrainSection, expected: str | None) -> None:
    found = [problem.text for problem in batch_problems(section)]
    assert len(found) == (expected is not None)
    assert expected is None or expected in found[0]
