from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from small_models import Model

from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.memory_budget import (
    ALL,
    NO_ROOM,
    Footprint,
    Share,
    choose_early,
    footprint,
    gradient_room,
    image_bytes,
)
from liver_slurm.reshard.tensors import ADAM, MOMENTS

BYTES = st.integers(0, 1000)


@st.composite
def footprints(draw: st.DrawFn) -> Footprint:
    moments = draw(st.lists(st.tuples(BYTES, BYTES), min_size=1, max_size=8))
    base = draw(BYTES)
    old, new = (tuple(side) for side in zip(*moments, strict=True))
    return Footprint(base + sum(old) - draw(st.integers(0, base)), base, old, new, draw(BYTES))


def walk(worker: Footprint, early: int, staged_gradients: int) -> list[int]:
    """Bytes that a worker holds at each point of a reconfiguration, step by step."""
    held = worker.base + sum(worker.old)
    points = [worker.building]
    held += sum(worker.new[:early])
    points.append(held + worker.staging + staged_gradients)
    if early < len(worker.new):
        held -= sum(worker.old[:early])
        for old, new in zip(worker.old[early:], worker.new[early:], strict=True):
            held += new
            points.append(held + worker.staging)
            held -= old
    return points


@given(footprints(), st.integers(1, 12000))
def test_nothing_that_was_accepted_exceeds_the_limit(worker: Footprint, limit: int) -> None:
    # LS-24
    early, reason = choose_early(worker, limit)
    assert str(limit) in reason
    if early == NO_ROOM:
        assert all(max(walk(worker, n, 0)) > limit for n in range(len(worker.new) + 1))
        return
    early = min(early, len(worker.new))
    assert max(walk(worker, early, gradient_room(worker, early, limit))) <= limit


@given(footprints(), st.integers(1, 12000))
def test_as_much_is_early_as_fits(worker: Footprint, limit: int) -> None:
    early, _ = choose_early(worker, limit)
    slices = len(worker.new)
    assert (early == ALL) == (max(walk(worker, slices, 0)) <= limit)
    if NO_ROOM < early < slices:
        assert max(walk(worker, early + 1, 0)) > limit


@given(st.lists(footprints(), min_size=1, max_size=5), st.integers(1, 12000))
def test_the_least_of_all_choices_fits_every_worker(workers: list[Footprint], limit: int) -> None:
    least = min(choose_early(worker, limit)[0] for worker in workers)
    if least == NO_ROOM:
        return
    for worker in workers:
        early = min(least, len(worker.new))
        assert max(walk(worker, early, gradient_room(worker, early, limit))) <= limit


@given(footprints())
def test_the_peak_never_falls_with_another_early_slice(worker: Footprint) -> None:
    peaks = [worker.peak(early) for early in range(len(worker.new) + 1)]
    assert peaks == sorted(peaks)
    assert peaks == [max(walk(worker, early, 0)) for early in range(len(worker.new) + 1)]


def share(layout: str, rank: int, distributed: bool, dtype: str) -> Share:
    model, place = Model(layers=4, tied=False, dtype=dtype, frozen=False), Layout.parse(layout)
    at = place.coordinates(rank)
    shard = model.world(place, distributed).shards[at.tp, at.pp]
    return Share(shard, place.replicas, place.replica(rank), distributed)


def test_a_shard_that_stays_as_it_is_takes_only_gradient_buffers_again() -> None:
    before, after = share("tp1pp1dp1", 0, False, "float32"), share("tp1pp1dp2", 0, False, "float32")
    elements = sum(param.size for param in before.shard.params)
    found = footprint(before, after, 0)
    assert found.peak(len(found.new)) == found.building  # what the constructors made is freed by sharing
    assert found.beside_training(len(found.new)) == elements * (4 + 4 + 8 + 4)
    assert sum(found.old) == sum(found.new) == 0


def test_masters_count_where_they_are_apart() -> None:
    elements = sum(param.size for param in share("tp1pp1dp1", 0, False, "bfloat16").shard.params)
    found = footprint(None, share("tp1pp1dp1", 0, False, "bfloat16"), 100)
    assert found.peak(len(found.new)) == elements * (2 + 4 + 4 + 8) + 100


def test_the_distributed_optimizer_has_a_share_of_masters_and_moments_and_padded_buffers() -> None:
    shards = [footprint(None, share("tp1pp1dp2", rank, True, "bfloat16"), 0) for rank in range(2)]
    elements = sum(param.size for param in share("tp1pp1dp2", 0, True, "bfloat16").shard.params)
    assert sum(sum(one.new) for one in shards) == 8 * elements
    assert sum(one.base for one in shards) >= elements * (2 * (2 + 4) + 4)


def averaged_share(share: Share) -> Share:
    """With moments in bf16, and averages."""
    params = tuple(replace(param, moments=(*ADAM, "ema")) for param in share.shard.params)
    return share._replace(shard=replace(share.shard, params=params), moment_dtype="bfloat16")


def test_moments_take_what_the_job_keeps_them_in() -> None:
    before, after = share("tp2pp1dp1", 0, False, "float32"), share("tp1pp2dp1", 1, False, "float32")
    plain = footprint(before, after, 0)
    rounded = footprint(before, after._replace(moment_dtype="bfloat16"), 0)
    averaged = footprint(before, averaged_share(after), 0)
    assert [2 * one for one in rounded.new] == [*averaged.new] == [*plain.new]
    assert 2 * image_bytes(after) == 3 * image_bytes(after._replace(moment_dtype="bfloat16"))


def test_each_parameter_takes_what_is_kept_of_it() -> None:
    """Of matrices of Muon that is half of what AdamW keeps of all else."""
    plain = share("tp1pp1dp1", 0, False, "float32")
    params = tuple(replace(one, moments=MOMENTS["muon" if one.layer >= 0 else "adam"]) for one in plain.shard.params)
    mixed = plain._replace(shard=replace(plain.shard, params=params))
    before, after = (footprint(None, one, 0).new for one in (plain, mixed))
    assert [*after] == [before[0], *(moments // 2 for moments in before[1:])]
    assert image_bytes(plain) - image_bytes(mixed) == sum(before[1:]) // 2


def test_moments_are_told_by_layer() -> None:
    found = footprint(share("tp2pp1dp1", 0, False, "float32"), share("tp1pp2dp1", 1, False, "float32"), 0)
    assert all(found.old)
    assert [bool(each) for each in found.new] == [True, False, False, True, True]
