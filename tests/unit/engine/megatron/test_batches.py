"""Parts of a batch, read ahead or not."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from liver_slurm.config.schema import TrainSection  # noqa: E402
from liver_slurm.engine.megatron.batches import Batches  # noqa: E402
from liver_slurm.engine.megatron.microbatches import share_of  # noqa: E402
from liver_slurm.parallel.layout import Layout  # noqa: E402

TRAIN = TrainSection(steps=4, seq_length=4, micro_batch_size=2, global_batch_size=6)


class Numbered:
    """Each sample says its number; remembers who asked for what."""

    def __init__(self, bad: int = -1) -> None:
        self.asked: list[tuple[int, int]] = []
        self.threads: set[str] = set()
        self.bad = bad
        self.read = threading.Semaphore(0)

    def __len__(self) -> int:
        return 1000

    def batch(self, first: int, count: int) -> np.ndarray[Any, Any]:
        self.asked.append((first, count))
        self.threads.add(threading.current_thread().name)
        self.read.release()
        if first == self.bad:
            raise ValueError("no such sample")
        return np.repeat(np.arange(first, first + count, dtype=np.int64)[:, None], 5, axis=1)


def batches(dp: int, replica: int, ahead: bool) -> Batches:
    made = Batches(TRAIN, Layout(1, 1, dp), replica, torch.device("cpu"))
    made.ahead = ahead
    return made


def numbers(found: Batches, samples: Numbered, step: int) -> list[list[int]]:
    return [part[:, 0].tolist() for part in found.tokens(samples, step)]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("dp", [1, 2, 3])
def test_replicas_read_the_whole_batch_between_them(dp: int, ahead: bool) -> None:
    samples = Numbered()
    replicas = [batches(dp, replica, ahead) for replica in range(dp)]
    for step in range(TRAIN.steps):
        found = [part for replica in replicas for part in numbers(replica, samples, step)]
        assert found == [[6 * step + at, 6 * step + at + 1] for at in (0, 2, 4)]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_replica_without_a_microbatch_gets_one(ahead: bool) -> None:
    idle = batches(4, 3, ahead)
    assert idle.share(1).count == 0
    assert numbers(idle, Numbered(), 1) == [[6, 7]]


def test_the_next_step_is_read_in_another_thread_and_nothing_beyond_the_end() -> None:
    samples, found = Numbered(), batches(1, 0, True)
    for step in range(TRAIN.steps):
        numbers(found, samples, step)
        for _ in range(2 if step == 0 else 1 if step + 1 < TRAIN.steps else 0):
            assert samples.read.acquire(timeout=60)
        assert [first for first, _ in samples.asked] == [6 * at for at in range(min(step + 2, TRAIN.steps))]
    assert threading.current_thread().name not in samples.threads


def test_a_step_that_is_made_again_and_another_source_are_read_for_themselves() -> None:
    samples, other, found = Numbered(), Numbered(), batches(1, 0, True)
    assert numbers(found, samples, 0) == numbers(found, samples, 0)
    assert numbers(found, other, 1) == [[6, 7], [8, 9], [10, 11]]
    assert other.asked[0] == (6, 6)


def test_what_a_source_raises_comes_in_its_own_step() -> None:
    samples, found = Numbered(bad=12), batches(1, 0, True)
    numbers(found, samples, 0)
    numbers(found, samples, 1)
    with pytest.raises(ValueError, match="no such sample"):
        numbers(found, samples, 2)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("dp", [1, 2, 4])
def test_a_batch_that_grows_leaves_no_sample_out_and_takes_none_twice(dp: int, ahead: bool) -> None:
    """With four replicas, of which the first steps leave some without a microbatch."""
    ramp = replace(TRAIN, steps=12, global_batch_size=8, rampup_batch_size=(2, 2, 20))
    samples, replicas = (
        Numbered(),
        [Batches(ramp, Layout(1, 1, dp), replica, torch.device("cpu")) for replica in range(dp)],
    )
    found: list[int] = []
    for step in range(ramp.steps):
        for each in replicas:
            each.ahead = ahead
            parts = numbers(each, samples, step)
            found += [number for part in parts[: each.share(step).count] for number in part]
    sizes = [sum(2 * each.share(step).count for each in replicas) for step in range(ramp.steps)]
    assert sizes == [2, 2, 2, 2, 4, 4, 6, *[8] * 5]
    assert found == list(range(sum(sizes)))


@pytest.mark.parametrize("ahead", [False, True])
def test_after_earlier_batches_replicas_read_on(ahead: bool) -> None:
    job = replace(TRAIN, steps=8, global_batch_size=8, earlier_batches=((3, 4), (5, 6)))
    replicas = [Batches(job, Layout(1, 1, 2), replica, torch.device("cpu")) for replica in range(2)]
    for each in replicas:
        each.ahead = ahead
    samples = Numbered()
    taken = [[numbers(each, samples, step) for each in replicas] for step in (4, 5, 6)]
    assert taken[0] == [[[18, 19], [20, 21]], [[22, 23]]]
    assert taken[1:] == [[[[n, n + 1], [n + 2, n + 3]] for n in (first, first + 4)] for first in (24, 32)]
    assert [each.first_of(5) for each in replicas] == [24, 28], "dropout is keyed by it"


def test_replicas_that_need_each_other_run_as_many_microbatches() -> None:
    layout = Layout(1, 1, 4, ep=2)
    shares = [share_of(5, layout, replica) for replica in range(4)]
    assert [share.count for share in shares] == [2, 1, 1, 1]
    assert {share.microbatches for share in shares} == {2}
    assert {share_of(2, layout, replica).microbatches for replica in range(4)} == {1}


def test_experts_within_a_replica_ask_no_other_for_microbatches() -> None:
    """Among its context parallel ranks, or its tensor parallel ones, where experts are whole."""
    for layout in (Layout(1, 1, 2, cp=2, ep=2), Layout(2, 1, 2, ep=2, etp=1), Layout(2, 1, 2, etp=1)):
        assert [share_of(5, layout, replica).microbatches for replica in range(2)] == [3, 2]
    for layout in (Layout(2, 1, 2, ep=4, etp=1), Layout(1, 1, 2, etp=2)):
        assert [share_of(5, layout, replica).microbatches for replica in range(2)] == [3, 3]


def test_interleaved_stages_take_as_many_microbatches_at_a_time_as_they_are() -> None:
    layout = Layout(1, 3, 2, vpp=2)
    shares = [share_of(7, layout, replica) for replica in range(2)]
    assert [(share.first, share.count, share.microbatches) for share in shares] == [(0, 4, 6), (4, 3, 3)]
    assert share_of(1, layout, 1).microbatches == 3
    assert share_of(7, replace(layout, vpp=1), 0).microbatches == 4
