"""Where tensors of ours are in checkpoints of theirs."""

from __future__ import annotations

import pytest

from liver_slurm.engine.hf.tensors import Unit
from liver_slurm.engine.torch_dist.sources import Source, find_sources

QKV = Unit("decoder.layers.self_attention.linear_qkv.weight", (4, 96, 32), 2, ())
FC1 = Unit("decoder.layers.mlp.linear_fc1.weight", (4, 96, 32), 2, ())
NORM = Unit("decoder.layers.mlp.linear_fc1.layer_norm_weight", (4, 32), 2, ())
EXPERT = Unit("decoder.layers.mlp.experts.experts.linear_fc1.weight", (4, 8, 96, 32), 2, (), 5)
LAST = Unit("decoder.final_layernorm.weight", (32,), None, ())


@pytest.mark.parametrize(
    ("unit", "there", "found"),
    [
        (LAST, {LAST.tensor}, [(LAST.tensor, (), 0, 32)]),
        (QKV, {QKV.tensor}, [(QKV.tensor, (2,), 0, 96)]),
        (
            QKV,
            {"decoder.layers.2.self_attention.linear_qkv.weight"},
            [("decoder.layers.2.self_attention.linear_qkv.weight", (), 0, 96)],
        ),
        (
            FC1,
            {"decoder.layers.2.mlp.linear_fc1.weight_w", "decoder.layers.2.mlp.linear_fc1.weight_v"},
            [
                ("decoder.layers.2.mlp.linear_fc1.weight_w", (), 0, 48),
                ("decoder.layers.2.mlp.linear_fc1.weight_v", (), 48, 48),
            ],
        ),
        (NORM, {"decoder.layers.pre_mlp_layernorm.weight"}, [("decoder.layers.pre_mlp_layernorm.weight", (2,), 0, 32)]),
        (
            NORM,
            {"decoder.layers.2.pre_mlp_layernorm.weight"},
            [("decoder.layers.2.pre_mlp_layernorm.weight", (), 0, 32)],
        ),
        (EXPERT, {EXPERT.tensor}, [(EXPERT.tensor, (2, 5), 0, 96)]),
        (
            EXPERT,
            {"decoder.layers.2.mlp.experts.experts.linear_fc1.weight"},
            [("decoder.layers.2.mlp.experts.experts.linear_fc1.weight", (5,), 0, 96)],
        ),
        (
            EXPERT,
            {f"decoder.layers.2.mlp.experts.experts.5.linear_fc1.weight_{half}" for half in "wv"},
            [
                ("decoder.layers.2.mlp.experts.experts.5.linear_fc1.weight_w", (), 0, 48),
                ("decoder.layers.2.mlp.experts.experts.5.linear_fc1.weight_v", (), 48, 48),
            ],
        ),
        (QKV, {"decoder.layers.3.self_attention.linear_qkv.weight", FC1.tensor}, []),
    ],
)
def test_layers_and_experts_are_axes_or_in_the_names(unit: Unit, there: set[str], found: list[Source]) -> None:
    assert find_sources(there, unit) == found
    moments = {f"optimizer.state.exp_avg.{name}" for name in there}
    assert [one.tensor for one in find_sources(moments, unit, "optimizer.state.exp_avg.")] == [
        f"optimizer.state.exp_avg.{one[0]}" for one in found
    ]
    assert find_sources(there, unit, "optimizer.state.exp_avg.") == []
