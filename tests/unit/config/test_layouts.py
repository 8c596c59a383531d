"""Which layouts a run may take."""

from __future__ import annotations

import dataclasses

import pytest

from liver_slurm.config.layouts import feasible_layouts, impossible
from liver_slurm.config.schema import (
    ComponentSection,
    ElasticSection,
    JobConfig,
    LiveSection,
    ModelSection,
    TrainSection,
)
from liver_slurm.parallel.layout import Layout

MODEL = ModelSection(num_layers=4, hidden_size=64, num_attention_heads=8, num_query_groups=4)
TRAIN = TrainSection(steps=1, seq_length=8, micro_batch_size=2, global_batch_size=16)
CONFIG = JobConfig(model=MODEL, train=TRAIN, live=LiveSection(component=(ComponentSection(tasks_per_node=2),)))


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ("tp1pp1dp1", None),
        ("tp8pp4dp8", None),
        ("tp3pp1dp1", "tp3 does not divide num_attention_heads 8"),
        ("tp1pp5dp1", "pp5 is more than num_layers 4"),
        ("tp1pp1dp9", "dp9 is more than the 8 microbatches of one step"),
    ],
)
def test_reasons(layout: str, reason: str | None) -> None:
    assert impossible(Layout.parse(layout), MODEL, TRAIN) == reason


def test_reasons_of_query_groups_and_the_mlp() -> None:
    model = dataclasses.replace(MODEL, num_attention_heads=12, num_query_groups=3)
    assert impossible(Layout(2, 1, 1), model, TRAIN) == "of tp2 and num_query_groups 3 neither divides the other"
    assert impossible(Layout(6, 1, 1), dataclasses.replace(model, ffn_hidden_size=12), TRAIN) is None
    model = dataclasses.replace(MODEL, ffn_hidden_size=90)
    assert impossible(Layout(4, 1, 1), model, TRAIN) == "tp4 does not divide ffn_hidden_size 90"


def test_auto_takes_all_and_keeps_tp_inside_a_node() -> None:
    found = feasible_layouts(CONFIG, 4)
    assert found[0].size == 4
    assert {str(one) for one in found if one.size == 4} == {
        "tp1pp1dp4", "tp1pp2dp2", "tp1pp4dp1", "tp2pp1dp2", "tp2pp2dp1",
    }  # fmt: skip
    assert max(one.tp for one in feasible_layouts(CONFIG, 64)) == 2
    wider = dataclasses.replace(CONFIG, elastic=ElasticSection(max_tp=8, max_workers=6))
    assert max(one.tp for one in feasible_layouts(wider, 64)) == 4
    assert max(one.size for one in feasible_layouts(wider, 64)) == 6


def test_a_list_is_kept_in_order_among_equals() -> None:
    elastic = ElasticSection(layouts=("tp1pp1dp1", "tp1pp2dp1", "tp1pp1dp2", "tp1pp1dp3"))
    config = dataclasses.replace(CONFIG, elastic=elastic)
    assert [str(one) for one in feasible_layouts(config, 2)] == ["tp1pp2dp1", "tp1pp1dp2", "tp1pp1dp1"]
    assert feasible_layouts(config, 0) == []
