"""Which layouts a run may take."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from liver_slurm.config.layouts import feasible_layouts, impossible
from liver_slurm.config.schema import (
    ComponentSection,
    DataSection,
    ElasticSection,
    JobConfig,
    LiveSection,
    ModelSection,
    TrainSection,
)
from liver_slurm.engine.megatron.spec import world_spec
from liver_slurm.parallel.layout import Layout

MODEL = ModelSection(num_layers=4, hidden_size=64, num_attention_heads=8, num_query_groups=4)
TRAIN = TrainSection(steps=1, seq_length=8, micro_batch_size=2, global_batch_size=16)
DATA = DataSection()
CONFIG = JobConfig(model=MODEL, train=TRAIN, live=LiveSection(component=(ComponentSection(tasks_per_node=2),)))


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ("tp1pp1dp1", None),
        ("tp8pp4dp8", None),
        ("tp3pp1dp1", "tp3 does not divide num_attention_heads 8"),
        ("tp1pp5dp1", "pp5 is more than num_layers 4"),
        ("tp1cp8pp1dp1", None),
        ("tp2cp4pp1dp1", None),
        ("tp1cp3pp1dp1", "cp3 does not divide seq_length 8"),
        ("tp4cp4pp1dp1", "tp4 times cp4 does not divide seq_length 8"),
        ("tp8cp1pp1dp1", None),
        ("tp1pp1dp9", "dp9 is more than the 8 microbatches of one step"),
    ],
)
def test_reasons(layout: str, reason: str | None) -> None:
    assert impossible(Layout.parse(layout), MODEL, DATA, TRAIN) == reason


def test_reasons_of_query_groups_and_the_mlp() -> None:
    model = dataclasses.replace(MODEL, num_attention_heads=12, num_query_groups=3)
    assert impossible(Layout(2, 1, 1), model, DATA, TRAIN) == "of tp2 and num_query_groups 3 neither divides the other"
    assert impossible(Layout(6, 1, 1), dataclasses.replace(model, ffn_hidden_size=12), DATA, TRAIN) is None
    model = dataclasses.replace(MODEL, ffn_hidden_size=90)
    assert impossible(Layout(4, 1, 1), model, DATA, TRAIN) == "tp4 does not divide ffn_hidden_size 90"


def test_reasons_of_layers_that_know_of_no_documents() -> None:
    told, apart = "with data.reset_position_ids or reset_attention_mask, ", DataSection(reset_attention_mask=True)
    model = dataclasses.replace(MODEL, num_query_groups=2)
    assert impossible(Layout(4, 1, 1), model, DATA, TRAIN) is None
    assert impossible(Layout(4, 1, 1), model, apart, TRAIN) == f"{told}tp4 may not be more than 2 query groups"
    dropping, why = dataclasses.replace(model, hidden_dropout=0.1), "tp4 may not be more than 2 query groups"
    assert impossible(Layout(4, 1, 1), dropping, DATA, TRAIN) == f"with model.hidden_dropout, {why}"
    dropping = dataclasses.replace(model, attention_dropout=0.1)
    assert impossible(Layout(4, 1, 1), dropping, DATA, TRAIN) == f"with model.attention_dropout, {why}"
    odd = dataclasses.replace(TRAIN, seq_length=9)
    assert impossible(Layout(2, 1, 1), model, DataSection(reset_position_ids=True), odd) == (
        f"{told}tp2 must divide seq_length 9"
    )
    own = dataclasses.replace(model, provider="a:b")
    assert impossible(Layout(4, 1, 1), own, apart, TRAIN) is None, "its own business"


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ("tp1pp1dp1", None),
        ("tp2pp1dp1", None),
        ("tp4pp1dp1", "the width of all queries, keys and values over tp4 must be a multiple of 16, and is 40"),
        ("tp1cp2pp1dp1", "the tokens of a microbatch over cp2 must be a multiple of 16, and is 8"),
    ],
)
def test_reasons_of_products_in_fp8(layout: str, reason: str | None) -> None:
    model = dataclasses.replace(MODEL, hidden_size=96, num_attention_heads=12, num_query_groups=4)
    train = dataclasses.replace(TRAIN, precision="bf16", fp8=True)  # 16 tokens
    expected = reason and f"with train.fp8, {reason}"
    assert impossible(Layout.parse(layout), model, DATA, train) == expected
    assert impossible(Layout.parse(layout), model, DATA, dataclasses.replace(train, fp8=False)) is None


def test_reasons_of_fp8_with_experts_and_few_groups() -> None:
    train = dataclasses.replace(TRAIN, precision="bf16", fp8=True, seq_length=32)
    few = dataclasses.replace(MODEL, num_query_groups=2)
    assert impossible(Layout(4, 1, 1), few, DATA, train) == "with train.fp8, tp4 may not be more than 2 query groups"
    experts = dataclasses.replace(MODEL, num_moe_experts=4, moe_ffn_hidden_size=40)
    assert impossible(Layout(1, 1, 1), experts, DATA, train) is None, "experts are not computed in FP8"
    shared = dataclasses.replace(experts, moe_shared_expert_intermediate_size=40)
    assert impossible(Layout(1, 1, 1), shared, DATA, train) == (
        "with train.fp8, moe_shared_expert_intermediate_size over tp1 must be a multiple of 16, and is 40"
    )


def test_reasons_of_the_vocabulary() -> None:
    model = dataclasses.replace(MODEL, num_attention_heads=24, hidden_size=384, num_query_groups=None)
    tp3 = Layout(3, 1, 1)
    assert impossible(tp3, model, DATA, TRAIN) is None  # 257 bytes are padded to 384
    for size, rows in ((1001, 1024), (32000, 32000), (384, None), (50257, None)):
        reason = impossible(tp3, dataclasses.replace(model, vocab_size=size), DATA, TRAIN)
        assert reason == (rows and f"tp3 does not divide {rows}, the vocabulary padded to 128s")
    file = DataSection(tokenizer="tokenizer.json")
    assert impossible(Layout(8, 1, 1), model, file, TRAIN) is None
    assert "write the tokenizer's as model.vocab_size" in str(impossible(tp3, model, file, TRAIN))
    assert impossible(tp3, dataclasses.replace(model, provider="mine:model"), file, TRAIN) is None


def test_reasons_of_the_fused_projection() -> None:
    model = ModelSection(num_layers=2, hidden_size=40, num_attention_heads=8, num_query_groups=1, ffn_hidden_size=64)
    reason = impossible(Layout(4, 1, 1), model, DATA, TRAIN)
    assert reason == "tp4 does not divide the 8 heads and 2 × 1 query groups of width 5, together"
    assert impossible(Layout(4, 1, 1), dataclasses.replace(model, kv_channels=6), DATA, TRAIN) is None


def test_reasons_of_context_parallelism() -> None:
    cp2, long = Layout(8, 1, 1, cp=2), dataclasses.replace(TRAIN, seq_length=64)
    assert impossible(cp2, MODEL, DATA, long) == "with cp2, tp8 may not be more than the 4 query groups"
    cp2 = Layout(1, 1, 1, cp=2)
    assert impossible(cp2, dataclasses.replace(MODEL, provider="mine:model"), DATA, long) == (
        "cp2 is for models without model.provider"
    )
    assert impossible(cp2, dataclasses.replace(MODEL, extra={"qk_layernorm": True}), DATA, long) == (
        "cp2 is for models without model.extra"
    )


def test_reasons_of_an_interleaved_pipeline() -> None:
    deep = dataclasses.replace(MODEL, num_layers=8)

    def reason(layout: str, model: ModelSection = deep, batch: int = 8) -> str | None:
        train = dataclasses.replace(TRAIN, global_batch_size=batch, micro_batch_size=1)
        return impossible(Layout.parse(layout), model, DATA, train)

    assert reason("tp1pp2vpp4dp4") is None
    assert reason("tp1pp4vpp2dp1") is None
    assert reason("tp1pp2vpp3dp1") == "pp2 times vpp3 does not divide num_layers 8"
    assert reason("tp1pp4vpp2dp1", batch=6) == "with vpp2, pp4 must divide the 6 microbatches of one step"
    assert reason("tp1pp2vpp2dp2", batch=6) == "with vpp2, dp2 times pp2 must divide the 6 microbatches of one step"
    assert reason("tp1pp2dp2", batch=6) is None, "without chunks replicas may differ"
    own = dataclasses.replace(deep, provider="mine:model")
    assert reason("tp1pp2vpp2dp1", own) == "vpp2 is for models without model.provider"
    assert impossible(Layout(1, 1, 1, vpp=2), deep, DATA, TRAIN) == "vpp2 needs a pp of at least 2"


def test_auto_interleaves_where_it_may() -> None:
    train = dataclasses.replace(TRAIN, global_batch_size=8, micro_batch_size=1)
    deep = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, num_layers=8), train=train)
    assert all(one.vpp == 1 for one in feasible_layouts(deep, 4))
    wider = dataclasses.replace(deep, elastic=ElasticSection(max_vpp=4))
    found = {str(one) for one in feasible_layouts(wider, 4) if one.size == 4 and one.vpp > 1}
    assert found == {
        "tp1pp2vpp2dp2", "tp1pp2vpp4dp2", "tp1pp4vpp2dp1", "tp2pp2vpp2dp1", "tp2pp2vpp4dp1",
    }  # fmt: skip


def test_reasons_of_experts() -> None:
    experts = dataclasses.replace(MODEL, num_moe_experts=4, ffn_hidden_size=64, moe_ffn_hidden_size=8)
    assert impossible(Layout(2, 2, 2), experts, DATA, TRAIN) is None
    assert impossible(Layout(4, 1, 1), experts, DATA, TRAIN) == (
        "with experts, moe_ffn_hidden_size must be a multiple of 4 on each of tp4 ranks"
    )
    half = dataclasses.replace(TRAIN, precision="bf16")
    assert impossible(Layout(1, 1, 1), experts, DATA, half) is None
    assert impossible(Layout(2, 1, 1), experts, DATA, half) == (
        "with experts, moe_ffn_hidden_size must be a multiple of 8 on each of tp2 ranks"
    )
    narrow = dataclasses.replace(experts, moe_ffn_hidden_size=6)
    assert impossible(Layout(4, 1, 1), narrow, DATA, TRAIN) == "tp4 does not divide moe_ffn_hidden_size 6"
    assert impossible(Layout(1, 1, 1), narrow, DATA, TRAIN) == (
        "with experts, moe_ffn_hidden_size must be a multiple of 4"
    )
    shared = dataclasses.replace(experts, moe_shared_expert_intermediate_size=3)
    assert impossible(Layout(2, 1, 1), shared, DATA, TRAIN) == (
        "tp2 does not divide moe_shared_expert_intermediate_size 3"
    )
    wide = dataclasses.replace(experts, moe_ffn_hidden_size=32)
    assert impossible(Layout(8, 1, 1), wide, DATA, TRAIN) == "with experts, tp8 may not be more than the 4 query groups"
    assert impossible(Layout(1, 1, 4, ep=4), wide, DATA, TRAIN) is None
    assert impossible(Layout(1, 1, 3, ep=3), wide, DATA, TRAIN) == "ep3 does not divide num_moe_experts 4"
    assert impossible(Layout(1, 1, 2, ep=2), MODEL, DATA, TRAIN) == "ep2 is for models of model.num_moe_experts"
    assert impossible(Layout(4, 1, 1, ep=4, etp=1), wide, DATA, TRAIN) is None
    assert impossible(Layout(4, 1, 1, etp=1), experts, DATA, TRAIN) is None, "as wide as without tp"
    assert impossible(Layout(2, 1, 2, etp=4), experts, DATA, TRAIN) == (
        "with experts, moe_ffn_hidden_size must be a multiple of 4 on each of etp4 ranks"
    )
    assert impossible(Layout(1, 1, 4, etp=4), narrow, DATA, TRAIN) == "etp4 does not divide moe_ffn_hidden_size 6"
    assert impossible(Layout(2, 1, 1, etp=1), MODEL, DATA, TRAIN) == "etp1 is for models of model.num_moe_experts"
    assert impossible(Layout(2, 1, 1, ep=4, etp=1), wide, DATA, TRAIN) == (
        "ep4 times etp1 does not divide tp2 times dp1"
    )
    assert impossible(Layout(1, 1, 3, ep=2), wide, DATA, TRAIN) == "ep2 does not divide dp3"
    odd = dataclasses.replace(TRAIN, seq_length=6)
    assert impossible(Layout(4, 1, 1), wide, DATA, odd) == "with experts, tp4 must divide seq_length 6"


def test_auto_divides_experts_where_it_may() -> None:
    model = dataclasses.replace(MODEL, num_moe_experts=4)
    wider = dataclasses.replace(CONFIG, model=model, elastic=ElasticSection(max_ep=4, max_cp=2))
    found = {str(one) for one in feasible_layouts(wider, 4) if one.size == 4 and one.ep > 1}
    assert found == {
        "tp1pp1ep2dp4", "tp1pp1ep4dp4", "tp1pp2ep2dp2", "tp2pp1ep2dp2", "tp1cp2pp1ep2dp2", "tp1cp2pp1ep4dp2",
        "tp1cp2pp2ep2dp1", "tp2cp2pp1ep2dp1",
    }  # fmt: skip


def test_auto_cuts_experts_otherwise_where_it_may() -> None:
    model = dataclasses.replace(MODEL, num_moe_experts=4)

    def found(**elastic: int) -> set[str]:
        wider = dataclasses.replace(CONFIG, model=model, elastic=ElasticSection(max_tp=2, **elastic))
        return {str(one) for one in feasible_layouts(wider, 2) if one.size == 2 and one.pp == 1}

    assert found(max_ep=2) == {"tp1pp1dp2", "tp1pp1ep2dp2", "tp2pp1dp1"}
    whole = {"tp1pp1dp2", "tp1pp1ep2dp2", "tp2pp1etp1dp1", "tp2pp1ep2etp1dp1"}
    assert found(max_ep=2, max_etp=1) == whole
    assert found(max_ep=2, max_etp=2) == whole | {"tp1pp1etp2dp2", "tp2pp1dp1"}
    dense = dataclasses.replace(CONFIG, elastic=ElasticSection(max_tp=2, max_etp=1))
    assert Layout(2, 1, 1) in feasible_layouts(dense, 2), "there are no experts to be cut"


def test_auto_takes_context_parallelism_where_it_may() -> None:
    wider = dataclasses.replace(CONFIG, elastic=ElasticSection(max_cp=2))
    found = {str(one) for one in feasible_layouts(wider, 4) if one.size == 4 and one.cp > 1}
    assert found == {"tp1cp2pp1dp2", "tp1cp2pp2dp1", "tp2cp2pp1dp1"}


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


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.data())
def test_what_is_possible_can_be_built(data: st.DataObject) -> None:
    heads = data.draw(st.sampled_from([3, 4, 5, 6, 8, 12]))
    model = ModelSection(
        num_layers=data.draw(st.integers(1, 3)),
        hidden_size=heads * 2 * data.draw(st.integers(1, 8)),
        num_attention_heads=heads,
        num_query_groups=data.draw(st.sampled_from([group for group in range(1, heads + 1) if heads % group == 0])),
        ffn_hidden_size=data.draw(st.sampled_from([60, 64, 120])),
        kv_channels=data.draw(st.none() | st.integers(1, 8).map(lambda half: 2 * half)),
        vocab_size=data.draw(st.sampled_from([None, 100, 257, 300, 1001, 32000])),
    )
    layout = Layout(data.draw(st.sampled_from([1, 2, 3, 4, 5, 6])), data.draw(st.integers(1, 3)), 1)
    assume(impossible(layout, model, DATA, TRAIN) is None)
    assert world_spec(JobConfig(model=model, train=TRAIN), layout).layout == layout
