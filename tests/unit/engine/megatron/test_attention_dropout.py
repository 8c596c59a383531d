"""Dropout in attention: what is dropped follows from seed, sample, layer, head and places, and from nothing else."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection
from liver_slurm.engine.megatron.attention_dropout import (
    AttentionDropout,
    HeadStreams,
    attend_dropping,
    head_streams_like,
    numbers,
)
from liver_slurm.engine.megatron.dense_layer import Attention, attend
from liver_slurm.engine.megatron.positions import Positions
from liver_slurm.parallel.layout import Layout

CPU = torch.device("cpu")
SEQUENCE, HEADS, GROUPS, WIDTH, LAYERS, SAMPLES = 32, 4, 2, 8, 3, 2


def job(rate: float = 0.25, micro: int = SAMPLES, seed: int = 7, sequence: int = SEQUENCE) -> JobConfig:
    model = ModelSection(num_layers=LAYERS, num_attention_heads=HEADS, attention_dropout=rate)
    return JobConfig(model=model, train=TrainSection(seq_length=sequence, micro_batch_size=micro, seed=seed))


def streams(
    config: JobConfig, layout: str = "tp1pp1dp1", rank: int = 0, first: int = 0, layer: int = 1, training: bool = True
) -> HeadStreams:
    """Of a layer in the first microbatch of a rank."""
    parsed = Layout.parse(layout)
    world: Any = SimpleNamespace(layout=parsed, place=parsed.coordinates(rank))
    (found,) = AttentionDropout(config, world, CPU).streams(first, 1, training)
    assert found is not None
    return found.of_layer(layer)


def kept(by: HeadStreams, sequence: int = SEQUENCE) -> torch.Tensor:
    """Which weights are kept, [samples, heads, own, sequence]."""
    return numbers(by, sequence) >= by.threshold


def heads(count: int, seed: int, tokens: int = SEQUENCE) -> torch.Tensor:
    return torch.randn(SAMPLES, count, tokens, WIDTH, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("documents", [False, True])
def test_what_is_dropped_is_a_weight_after_the_softmax(documents: bool) -> None:
    """And gradients go their way; with no rate it is torch's attention."""
    query, key, value = heads(HEADS, 1), heads(GROUPS, 2), heads(GROUPS, 3)
    seen = torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).tril()
    if documents:
        seen = (seen & (torch.arange(SEQUENCE) // 10 == torch.arange(SEQUENCE)[:, None] // 10)).expand(2, 1, -1, -1)
    by, mask = streams(job()), seen if documents else None
    found = attend_dropping(query, key, value, mask, by)
    wide = [each.repeat_interleave(HEADS // GROUPS, 1) for each in (key, value)]
    weights = (query @ wide[0].mT / math.sqrt(WIDTH)).masked_fill(~seen, -torch.inf).softmax(-1)
    expected = (weights * kept(by) / 0.75) @ wide[1]
    torch.testing.assert_close(found, expected)
    target = torch.randn(found.shape, generator=torch.Generator().manual_seed(4))
    gradients = [torch.autograd.grad((one * target).sum(), (query, key, value)) for one in (found, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
    plain = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)
    assert not torch.allclose(found, plain, atol=0.1)
    torch.testing.assert_close(attend_dropping(query, key, value, mask, streams(job(), training=False)), plain)


def test_the_layer_takes_it_in_the_place_of_fused_attention() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SEQUENCE, SAMPLES, HEADS * WIDTH, generator=generator)
    qkv = torch.randn((HEADS + 2 * GROUPS) * WIDTH, HEADS * WIDTH, generator=generator) / 8
    part = Attention(qkv, None, torch.eye(HEADS * WIDTH), GROUPS, WIDTH, None, None, False)
    plain = attend(x, part, Positions(None, None, None))
    nothing = part._replace(streams=head_streams_like(job(), SEQUENCE, HEADS))
    torch.testing.assert_close(attend(x, nothing, Positions(None, None, None)), plain)
    dropping = attend(x, part._replace(streams=streams(job())), Positions(None, None, None))
    assert not torch.allclose(dropping, plain, atol=0.1)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_for(rate: float) -> None:
    """Along each axis, too, and neighbours are not dropped together more often than by chance: within 5 deviations."""
    gone = ~kept(streams(job(rate, micro=4, sequence=256)), 256)
    assert gone.shape == (4, HEADS, 256, 256)
    assert abs(gone.double().mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / gone.numel())
    for axis in range(4):
        others = [each for each in range(4) if each != axis]
        deviation = math.sqrt(rate * (1 - rate) / (gone.numel() / gone.shape[axis]))
        assert (gone.double().mean(others) - rate).abs().max() < 5 * deviation
        both = (gone & gone.roll(1, axis)).double().mean()
        assert abs(both - rate**2) < 5 * math.sqrt(rate**2 * (1 - rate**2) / gone.numel())


@pytest.mark.parametrize("layout", ["tp4pp1dp1", "tp1cp2pp1dp1", "tp2cp2pp1dp1", "tp2pp3vpp1dp1", "tp1pp1dp4"])
def test_each_rank_draws_its_part_of_one_mask(layout: str) -> None:
    parsed, whole = Layout.parse(layout), kept(streams(job()))
    own, count = SEQUENCE // parsed.cp, HEADS // parsed.tp
    for rank in range(parsed.size):
        place = parsed.coordinates(rank)
        part = whole[:, place.tp * count : (place.tp + 1) * count, place.cp * own : (place.cp + 1) * own]
        assert torch.equal(kept(streams(job(), layout, rank)), part)


def test_a_microbatch_of_another_size_drops_the_same() -> None:
    whole = kept(streams(job(), first=100))
    for sample in range(SAMPLES):
        assert torch.equal(kept(streams(job(micro=1), first=100 + sample)), whole[sample : sample + 1])


def test_all_that_it_is_for_makes_it_another() -> None:
    plain = kept(streams(job()))
    others = [
        kept(streams(job(), layer=2)),
        kept(streams(job(), first=SAMPLES)),
        kept(streams(job(seed=8))),
        plain.flip(0),
        plain.roll(1, 1),
        plain.roll(1, 2),
        plain.mT,
    ]
    assert all(abs((plain == other).double().mean() - (0.75**2 + 0.25**2)) < 0.05 for other in others)


def test_a_model_without_has_no_streams() -> None:
    world: Any = SimpleNamespace(layout=Layout(1, 1, 1), place=Layout(1, 1, 1).coordinates(0))
    assert AttentionDropout(job(0.0), world, CPU).streams(0, 3, training=True) == [None] * 3
    like, real = head_streams_like(job(), SEQUENCE, HEADS), streams(job())
    assert [(each.shape, each.dtype) for each in like] == [(each.shape, each.dtype) for each in real]


def test_a_mask_is_the_same_for_good() -> None:
    """Runs go on from checkpoints of older versions."""
    words = np.packbits(kept(streams(job(0.5))).numpy()).tobytes()
    assert words[:8].hex() == "8cbbc5166de59f60"
