"""The memory of a rank: state as it is built, peaks as they were measured, and layouts that do not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.config import memory
from liver_slurm.config.checks import cross_check
from liver_slurm.config.layouts import feasible_layouts, impossible, refused
from liver_slurm.config.memory import GIB, gpu_memory, rank_memory, stage_weights, too_large
from liver_slurm.config.problem import Problem
from liver_slurm.config.schema import (
    ComponentSection,
    DataSection,
    ElasticSection,
    JobConfig,
    LiveSection,
    ModelSection,
    StandbySection,
    TrainSection,
)
from liver_slurm.engine.megatron.spec import world_spec
from liver_slurm.parallel.layout import Layout

_MODEL: dict[str, Any] = {
    "num_layers": 12, "hidden_size": 2048, "num_attention_heads": 16, "ffn_hidden_size": 5632, "vocab_size": 32000,
    "share_embeddings_and_output_weights": False,
}  # fmt: skip
_TRAIN: dict[str, Any] = {"seq_length": 2048, "micro_batch_size": 2, "global_batch_size": 16, "precision": "bf16"}
_EXPERTS = {"num_moe_experts": 8, "moe_ffn_hidden_size": 1408, "moe_router_topk": 2}
_GPT2: dict[str, Any] = {
    "normalization": "LayerNorm", "gated_linear_unit": False, "activation_func": "gelu", "ffn_hidden_size": 8192,
    "position_embedding_type": "learned_absolute", "max_position_embeddings": 2048, "add_bias_linear": True,
}  # fmt: skip

MEASURED: list[tuple[str, dict[str, Any], dict[str, Any], float]] = [
    ("tp1pp1dp1", {}, {}, 16.544),
    ("tp1pp1dp1", {}, {"micro_batch_size": 8}, 28.378),
    ("tp1pp1dp1", {}, {"seq_length": 8192, "micro_batch_size": 1, "global_batch_size": 4}, 20.494),
    ("tp1pp1dp1", {}, {"recompute": "selective"}, 14.809),
    ("tp1pp1dp1", {}, {"recompute": "full"}, 13.306),
    ("tp1pp1dp1", {}, {"compile": False}, 18.403),
    ("tp1pp1dp1", {}, {"fp8": True}, 15.66),
    ("tp1pp1dp1", {}, {"precision": "fp32", "micro_batch_size": 1}, 15.17),
    ("tp1pp1dp1", {}, {"optimizer": "sgd"}, 13.76),
    ("tp1pp1dp1", {}, {"optimizer": "muon", "distributed_optimizer": False}, 14.25),
    ("tp1pp1dp1", {}, {"ema_decay": 0.99}, 19.33),
    ("tp1pp1dp1", {}, {"moments_precision": "bf16"}, 13.76),
    ("tp1pp1dp1", {"hidden_dropout": 0.1}, {}, 16.74),
    ("tp1pp1dp1", {"num_query_groups": 4}, {}, 14.856),
    ("tp1pp1dp1", {"share_embeddings_and_output_weights": True, "vocab_size": 50257}, {}, 16.359),
    ("tp1pp1dp1", _GPT2, {}, 15.986),
    ("tp1pp1dp1", _EXPERTS, {}, 25.429),
    ("tp1pp1ep2dp2", _EXPERTS, {}, 15.793),
    ("tp2pp1dp1", _EXPERTS, {}, 13.298),
    ("tp2pp1dp1", {}, {}, 8.517),
    ("tp4pp1dp1", {}, {}, 4.527),
    ("tp2pp1dp1", {}, {"recompute": "full"}, 6.71),
    ("tp1pp2dp1", {}, {}, 9.913),
    ("tp1pp4dp1", {}, {}, 7.36),
    ("tp1pp2vpp2dp1", {}, {}, 10.85),
    ("tp2pp2dp1", {}, {}, 5.18),
    ("tp1pp1dp2", {}, {"distributed_optimizer": False}, 16.55),
]
"""Layout, changes of the job, and GiB that torch had allocated at most on any rank; H200, torch 2.11, 2026-12-01. Ranks
of one world shared the card."""


def _job(model: dict[str, Any], train: dict[str, Any], **sections: Any) -> JobConfig:
    live = LiveSection(component=(ComponentSection(gpus_per_task=1),))
    return JobConfig(
        model=ModelSection(**{**_MODEL, **model}),
        train=TrainSection(**{**_TRAIN, **train}),
        data=DataSection(paths=("x",)),
        **{"live": live, **sections},
    )


@pytest.mark.parametrize(("layout", "model", "train", "peak"), MEASURED)
def test_peaks_are_those_that_were_measured(
    layout: str, model: dict[str, Any], train: dict[str, Any], peak: float
) -> None:
    needed = rank_memory(_job(model, train), Layout.parse(layout))
    assert needed is not None
    assert needed.total / GIB == pytest.approx(peak, rel=0.02)


def test_attention_with_dropout_is_counted_as_what_it_is() -> None:
    """One layer's, of 16 heads and 8192 tokens, took 9.0 GiB on a card."""
    one = {"num_layers": 1, "num_query_groups": 4}
    train = {"seq_length": 8192, "micro_batch_size": 1, "global_batch_size": 1}
    without, needed = (
        rank_memory(_job({**one, "attention_dropout": rate}, train), Layout(1, 1, 1)) for rate in (0.0, 0.1)
    )
    assert without is not None
    assert needed is not None
    assert (needed.total - without.total) / GIB == pytest.approx(9.0, rel=0.2)


_LAYOUTS = ("tp1pp1dp1", "tp2pp1dp2", "tp1pp2dp1", "tp2pp2dp1", "tp1pp2vpp2dp1", "tp1pp3dp1")
_SMALL = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 8, "ffn_hidden_size": 128, "vocab_size": 256}


@pytest.mark.parametrize(
    ("model", "layouts"),
    [
        ({}, _LAYOUTS),
        ({"share_embeddings_and_output_weights": True}, _LAYOUTS),
        ({"num_query_groups": 2, "add_qkv_bias": True, "qk_layernorm": True}, _LAYOUTS),
        ({**_GPT2, "ffn_hidden_size": 256}, _LAYOUTS),
        (
            {**_EXPERTS, "moe_ffn_hidden_size": 64, "moe_shared_expert_intermediate_size": 32},
            ("tp1pp1dp1", "tp2pp1dp1", "tp1pp2ep2dp2", "tp2pp1ep2etp1dp1"),
        ),
    ],
    ids=["plain", "tied", "grouped", "gpt2", "experts"],
)
def test_as_many_weights_are_counted_as_a_rank_has(model: dict[str, Any], layouts: tuple[str, ...]) -> None:
    config = _job({**_SMALL, **model}, {"seq_length": 64})
    for text in layouts:
        layout = Layout.parse(text)
        world = world_spec(config, layout)
        for rank in range(layout.size):
            counted = stage_weights(config, layout, layout.coordinate("pp", rank))
            held = sum(param.size for param in world.shards[layout.shard_key(rank)].params)
            assert sum(counted) == pytest.approx(held, rel=2e-3), (text, rank)


def test_a_layout_that_does_not_fit_is_refused_with_what_it_needs() -> None:
    config = _job({}, {"gpu_memory": 16 * GIB}, elastic=ElasticSection(layouts=("tp1pp1dp1", "tp2pp1dp1")))
    reason = too_large(Layout(1, 1, 1), config)
    assert reason is not None
    assert reason.startswith("does not fit on 16 GiB (train.gpu_memory): a rank needs about 16.6 GiB (weights 1.39 ")
    assert refused(Layout(1, 1, 1), config) == reason
    assert [problem.key for problem in _too_large(config)] == ["elastic.layouts"]
    assert feasible_layouts(config, 2) == [Layout(2, 1, 1)]
    assert not _too_large(replace(config, train=replace(config.train, gpu_memory=17 * GIB)))


def _too_large(config: JobConfig) -> list[Problem]:
    return [problem for problem in cross_check(config, set(), files=False) if "does not fit" in problem.text]


def test_auto_leaves_out_what_does_not_fit() -> None:
    live = LiveSection(component=(ComponentSection(gpus_per_task=1, tasks_per_node=4),))
    config = _job({}, {"gpu_memory": 9 * GIB}, live=live)
    assert {str(layout) for layout in feasible_layouts(config, 4) if layout.size <= 2} == {"tp2pp1dp1"}
    roomy = replace(config, train=replace(config.train, gpu_memory=17 * GIB))
    assert Layout(1, 1, 1) in feasible_layouts(roomy, 4)


@pytest.mark.parametrize(
    ("name", "size"),
    [("h100", 80), ("a100-80gb", 80), ("nvidia_a100_40gb", 40), ("NVIDIA-H200", 141), ("a100", None), ("titan", None)],
)
def test_the_type_of_a_gpu_may_say_what_it_has(name: str, size: int | None) -> None:
    live = LiveSection(component=(ComponentSection(gpus_per_task=1, gpu_type=name),))
    assert gpu_memory(_job({}, {}, live=live)) == (None if size is None else (size * GIB, f"gpu_type {name}"))


def test_the_smallest_gpu_decides_and_the_job_file_before_its_type() -> None:
    live = LiveSection(component=(ComponentSection(gpus_per_task=1, gpu_type="h200"),))
    standby = StandbySection(max_jobs=1, gpus_per_task=1, gpu_type="h100", partitions=("spare",))
    assert gpu_memory(_job({}, {}, live=live, standby=standby)) == (80 * GIB, "gpu_type h100")
    assert gpu_memory(_job({}, {}, live=live, standby=replace(standby, max_jobs=0))) == (141 * GIB, "gpu_type h200")
    assert gpu_memory(_job({}, {"gpu_memory": GIB}, live=live)) == (GIB, "train.gpu_memory")
    assert gpu_memory(_job({}, {"gpu_memory": GIB}, live=LiveSection(component=(ComponentSection(),)))) is None


def test_of_a_model_of_the_users_own_nothing_is_said() -> None:
    for config in (_job({"provider": "a:b"}, {}), _job({"extra": {"a": 1}}, {}), _job({}, {"loop": "a:b"})):
        assert rank_memory(config, Layout(1, 1, 1)) is None
        assert too_large(Layout(1, 1, 1), config) is None


@given(
    tp=st.sampled_from([1, 2, 4, 8]), pp=st.integers(1, 12), dp=st.integers(1, 8), micro=st.sampled_from([1, 2]),
    recompute=st.sampled_from(["none", "selective", "full"]),
)  # fmt: skip
def test_more_ranks_of_a_replica_never_need_more_each(tp: int, pp: int, dp: int, micro: int, recompute: str) -> None:
    config = _job({}, {"micro_batch_size": micro, "recompute": recompute})
    layout = Layout(tp, pp, min(dp, 16 // micro))
    assert impossible(layout, config.model, config.data, config.train) is None
    needed, alone = rank_memory(config, layout), rank_memory(config, Layout(1, 1, layout.dp))
    assert needed is not None
    assert alone is not None
    assert 0 < needed.total <= alone.total
    assert min(needed) >= 0
    assert str(needed).startswith(memory.gibibytes(needed.total))
