"""Sizes of batches that grow, and the samples that they add up to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.config.batch_sizes import batch_problems, batch_size, earlier_batches, samples_before, uneven_batch
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


@st.composite
def sections(draw: st.DrawFn) -> TrainSection:
    start, increment, increments = (draw(st.integers(1, 6)) for _ in range(3))
    ramp = draw(st.sampled_from([(), (start, increment, draw(st.integers(1, 400)))]))
    return train(start + increments * increment, *ramp)


@given(st.lists(st.tuples(sections(), st.integers(1, 30), st.integers(0, 12)), min_size=1, max_size=6))
def test_runs_that_resume_each_other_take_each_sample_once(runs: list[tuple[TrainSection, int, int]]) -> None:
    """Each trains some steps; the next one begins some of them before its end, where the last checkpoint is."""
    taken: list[range] = []
    resumed: TrainSection | None = None
    for section, steps, back in runs:
        saved = max(0, len(taken) - back)
        earlier = earlier_batches(section, resumed, saved) if resumed is not None else ()
        job = replace(section, earlier_batches=earlier)
        assert not list(batch_problems(job))
        assert [batch_size(job, step) for step in range(saved)] == [len(one) for one in taken[:saved]]
        del taken[saved:]
        for step in range(saved, saved + steps):
            first, size = samples_before(job, step), batch_size(job, step)
            assert size == batch_size_after(section, first)
            taken.append(range(first, first + size))
        resumed = job
    assert [number for one in taken for number in one] == list(range(sum(map(len, taken))))


def batch_size_after(section: TrainSection, consumed: int) -> int:
    """Megatron's rule: the size follows from the samples consumed."""
    if not section.rampup_batch_size:
        return section.global_batch_size
    start, increment, samples = section.rampup_batch_size
    increments = (section.global_batch_size - start) // increment
    return start + min(increments, consumed * increments // samples) * increment


@given(sections(), sections(), st.integers(0, 60), st.integers(0, 60))
def test_with_the_same_batches_a_resumed_run_is_the_same_job(
    one: TrainSection, other: TrainSection, first: int, second: int
) -> None:
    assert earlier_batches(one, one, first) == ()
    resumed = replace(other, earlier_batches=earlier_batches(other, one, first))
    if second >= first:
        assert earlier_batches(resumed, resumed, second) == resumed.earlier_batches


def test_uneven_earlier_batches_are_found_while_they_are_ahead() -> None:
    section = replace(train(9, micro=3), earlier_batches=((10, 6), (20, 8), (30, 12, 3, 3, 90)))
    assert [uneven_batch(section, step) for step in (0, 19, 20, 40)] == [8, 8, 0, 0]
    assert uneven_batch(train(9, 3, 3, 90, micro=3), 0) == 0


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
        (replace(train(64), earlier_batches=((5, 32), (9, 48, 16, 16, 100))), None),
        (replace(train(64), earlier_batches=((5, 32, 16),)), "has 3 numbers; allowed: two"),
        (replace(train(64), earlier_batches=((5, 32), (5, 16))), "is up to step 5, and the part before it up to 5"),
        (replace(train(64), earlier_batches=((5, 32, 10, 3, 9),)), "increments of 3 do not lead from 10 to 32"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(section: TrainSection, expected: str | None) -> None:
    found = [problem.text for problem in batch_problems(section)]
    assert len(found) == (expected is not None)
    assert expected is None or expected in found[0]
