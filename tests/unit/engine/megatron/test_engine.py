"""The engine remembers what ranks hold, and mixes up neither layouts nor jobs."""

from __future__ import annotations

import dataclasses

import pytest

from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection
from liver_slurm.engine.megatron.engine import MegatronEngine
from liver_slurm.engine.megatron.spec import shard_spec
from liver_slurm.parallel.layout import Layout

TINY = ModelSection(
    num_layers=4, hidden_size=32, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=48, vocab_size=300
)
LAYOUTS = [
    Layout.parse(text) for text in ("tp1pp1dp1", "tp1pp1dp2", "tp2pp1dp1", "tp1pp2dp2", "tp1pp2vpp2dp2", "tp2pp2dp1")
]


@pytest.mark.parametrize("again", [False, True], ids=["once", "again"])
def test_what_is_remembered_is_what_would_be_built(again: bool) -> None:
    engine, one = (
        MegatronEngine(),
        JobConfig(model=TINY, train=TrainSection(steps=1, seq_length=16, global_batch_size=8)),
    )
    other = dataclasses.replace(one, model=dataclasses.replace(TINY, ffn_hidden_size=96))
    for _ in range(1 + again):
        for layout in LAYOUTS:
            for rank in range(layout.size):
                place = layout.coordinates(rank)
                for config in (one, other):
                    assert engine.shard_spec(config, layout, rank) == shard_spec(config, layout, place.tp, place.pp)
