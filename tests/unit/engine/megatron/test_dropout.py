"""Dropout: what is dropped follows from seed, sample, site, place and channel, and from nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection
from liver_slurm.engine.megatron.dropout import Dropout, Streams, drop, dropout_like, keys
from liver_slurm.parallel.layout import Layout

CPU = torch.device("cpu")
SEQUENCE, HIDDEN, LAYERS, SAMPLES = 32, 48, 3, 4


def job(rate: float = 0.25, micro: int = SAMPLES, seed: int = 7) -> JobConfig:
    model = ModelSection(num_layers=LAYERS, hidden_size=HIDDEN, hidden_dropout=rate)
    return JobConfig(model=model, train=TrainSection(seq_length=SEQUENCE, micro_batch_size=micro, seed=seed))


def streams(config: JobConfig, layout: str = "tp1pp1dp1", rank: int = 0, first: int = 0, **options: Any) -> Streams:
    """Of the first microbatch of a rank."""
    parsed = Layout.parse(layout)
    world: Any = SimpleNamespace(layout=parsed, place=parsed.coordinates(rank))
    (found,) = Dropout(config, world, CPU).streams(first, 1, **{"training": True, **options})
    assert found is not None
    return found


def mask(by: Streams, tokens: int = SEQUENCE, site: int = 0) -> torch.Tensor:
    """Which are kept, [tokens, samples, hidden]."""
    return drop(torch.ones(tokens, by.keys.shape[1], HIDDEN), by, site) != 0


def test_kept_elements_are_scaled_and_gradients_go_their_way() -> None:
    x = torch.randn(SEQUENCE, SAMPLES, HIDDEN, requires_grad=True)
    y = drop(x, streams(job()), 2)
    kept = y != 0
    assert torch.equal(y, torch.where(kept, x * torch.tensor(1 / 0.75), 0.0))
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, kept * torch.tensor(1 / 0.75))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_for(rate: float) -> None:
    """Along each axis, too, and neighbours are not dropped together more often than by chance: within 5 deviations."""
    config = replace(job(rate), train=replace(job().train, seq_length=512, micro_batch_size=8))
    gone = ~mask(streams(config), 512)
    assert abs(gone.double().mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / gone.numel())
    for axis in range(3):
        others = [each for each in range(3) if each != axis]
        deviation = math.sqrt(rate * (1 - rate) / (gone.numel() / gone.shape[axis]))
        assert (gone.double().mean(others) - rate).abs().max() < 5 * deviation
        both = (gone & gone.roll(1, axis)).double().mean()
        assert abs(both - rate**2) < 5 * math.sqrt(rate**2 * (1 - rate**2) / gone.numel())


@pytest.mark.parametrize("layout", ["tp4pp1dp1", "tp1cp2pp1dp1", "tp2cp2pp1dp1", "tp2pp3vpp1dp1", "tp1pp1dp4"])
def test_each_rank_draws_its_part_of_one_mask(layout: str) -> None:
    parsed, whole = Layout.parse(layout), mask(streams(job()))
    tokens = SEQUENCE // (parsed.tp * parsed.cp)
    for rank in range(parsed.size):
        place = parsed.coordinates(rank)
        first = (place.cp * parsed.tp + place.tp) * tokens
        assert torch.equal(mask(streams(job(), layout, rank), tokens), whole[first : first + tokens])


def test_a_microbatch_of_another_size_drops_the_same() -> None:
    whole = mask(streams(job(), first=100))
    for sample in range(SAMPLES):
        assert torch.equal(mask(streams(job(micro=1), first=100 + sample)), whole[:, sample : sample + 1])


def test_all_that_it_is_for_makes_it_another() -> None:
    plain = streams(job())
    masks = [
        mask(plain),
        mask(plain, site=1),
        mask(plain.of_layer(1)),
        mask(plain.of_layer(1), site=1),
        mask(plain.of_layer(LAYERS), site=1),
        mask(streams(job(), first=SAMPLES)),
        mask(streams(job(seed=8))),
        *(mask(plain)[:, sample : sample + 1].expand(-1, SAMPLES, -1) for sample in range(SAMPLES)),
    ]
    same = [(a == b).double().mean() for i, a in enumerate(masks) for b in masks[:i]]
    assert sum(share == 1 for share in same) == 1, "a site of a layer has but one number among all of them"
    assert all(abs(share - (0.75**2 + 0.25**2)) < 0.35 for share in same if share < 1)


def test_layers_have_sites_of_their_own() -> None:
    sites = 2 * LAYERS + 1
    found = keys(1, np.arange(1000, dtype=np.uint64), sites)
    assert found.shape == (sites, 1000, 2)
    assert len({tuple(pair) for pair in found.reshape(-1, 2).tolist()}) == sites * 1000
    places = [streams(job()).of_layer(number).keys for number in range(1, LAYERS + 1)]
    assert torch.equal(torch.cat(places), streams(job()).keys[1:])


def test_nothing_is_dropped_in_an_evaluation_or_by_a_model_without() -> None:
    x = torch.randn(SEQUENCE, SAMPLES, HIDDEN)
    assert torch.equal(drop(x, streams(job(), training=False), 0), x)
    assert drop(x, None, 0) is x
    world: Any = SimpleNamespace(layout=Layout(1, 1, 1), place=Layout(1, 1, 1).coordinates(0))
    assert Dropout(job(0.0), world, CPU).streams(0, 3, training=True) == [None] * 3
    like = dropout_like(job(), SEQUENCE)
    assert torch.equal(drop(x, like, 1), x)
    several = [each for each in Dropout(job(), world, CPU).streams(0, 3, training=True) if each is not None]
    for of_layer in (streams(job()).of_layer(1), several[1].of_layer(2)):
        for ours, theirs in zip(like, of_layer, strict=True):
            alike = (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())
            assert alike, "else a world's first step would compile its layers once more"


def test_a_mask_is_the_same_for_good() -> None:
    """Runs go on from checkpoints of older versions."""
    words = np.packbits(mask(streams(job(0.5))).numpy()).tobytes()
    assert words[:8].hex() == "5e968a2b50d20967"
