"""The table of tensors is a bijection between theirs and ours, and ours are megatron-core's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection
from liver_slurm.config.shapes import padded_vocabulary
from liver_slurm.engine.hf.exporting import to_theirs
from liver_slurm.engine.hf.importing import to_ours
from liver_slurm.engine.hf.tensors import units
from liver_slurm.engine.megatron.spec import world_spec
from liver_slurm.parallel.layout import Layout

BASE = ModelSection(num_layers=2, hidden_size=32, num_attention_heads=4, ffn_hidden_size=24, vocab_size=200)
LLAMA = replace(BASE, num_query_groups=2, share_embeddings_and_output_weights=False)
GPT2 = replace(
    BASE,
    normalization="LayerNorm",
    gated_linear_unit=False,
    add_bias_linear=True,
    activation_func="gelu-tanh",
    position_embedding_type="learned_absolute",
    max_position_embeddings=16,
)
MODELS = {
    "llama": LLAMA,
    "wide heads": replace(LLAMA, kv_channels=16),
    "biases": replace(LLAMA, add_bias_linear=True),
    "qwen2": replace(LLAMA, add_qkv_bias=True, share_embeddings_and_output_weights=True),
    "qwen3": replace(LLAMA, qk_layernorm=True),
    "mixtral": replace(LLAMA, num_moe_experts=4, moe_ffn_hidden_size=16),
    "qwen2_moe": replace(
        LLAMA,
        add_qkv_bias=True,
        num_moe_experts=4,
        moe_router_pre_softmax=True,
        moe_shared_expert_intermediate_size=40,
        moe_shared_expert_gate=True,
    ),
    "qwen3_moe": replace(LLAMA, qk_layernorm=True, num_moe_experts=6),
    "gpt2": GPT2,
    "untied gpt2": replace(GPT2, share_embeddings_and_output_weights=False),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_ours_are_those_of_megatron(model: ModelSection) -> None:
    config = JobConfig(model=model, train=TrainSection(steps=1, seq_length=16, global_batch_size=1))
    expected = {name: one.shape for name, one in world_spec(config, Layout(1, 1, 1)).weights.items()}
    assert {unit.tensor: unit.whole for unit in units(model, 200, 16)} == expected


models = st.builds(
    lambda each, groups, head, hidden, ffn, layers, flags, gpt2: ModelSection(
        num_layers=layers,
        hidden_size=groups * each * head if gpt2 else hidden,
        num_attention_heads=groups * each,
        num_query_groups=groups * each if gpt2 else groups,
        kv_channels=head,
        ffn_hidden_size=ffn,
        share_embeddings_and_output_weights=flags[0],
        add_bias_linear=flags[1] or gpt2,
        add_qkv_bias=flags[2],
        qk_layernorm=flags[3],
        position_embedding_type="learned_absolute" if gpt2 else "rope",
    ),
    *(st.integers(1, 4) for _ in range(3)),
    *(st.integers(1, 9) for _ in range(2)),
    st.integers(1, 3),
    st.tuples(*(st.booleans() for _ in range(4))),
    st.booleans(),
)


@settings(deadline=None)
@given(model=models | st.sampled_from(list(MODELS.values())[5:8]), vocabulary=st.integers(1, 140))
def test_there_and_back_is_the_identity(model: ModelSection, vocabulary: int) -> None:
    for unit in units(model, vocabulary, 7):
        sizes = [math.prod(part.shape) for part in unit.parts]
        numbers = torch.arange(1, sum(sizes) + 1, dtype=torch.float32)
        values = zip(unit.parts, numbers.split(sizes), strict=True)
        tensors = {part.name: flat.view(part.shape) for part, flat in values}
        made = to_ours(unit, tensors.__getitem__, torch.float32)
        words = unit.tensor in ("embedding.word_embeddings.weight", "output_layer.weight")
        padding = padded_vocabulary(vocabulary) - vocabulary if words else 0
        filled = made[: unit.shape[0] - padding]
        assert torch.equal(filled.flatten().sort().values, numbers), "each value of theirs is in ours, once"
        assert not made[unit.shape[0] - padding :].any(), "rows that pad the vocabulary are zero"
        for part in unit.parts:
            assert torch.equal(to_theirs(part, made), tensors[part.name])


def test_query_groups_lie_one_after_the_other() -> None:
    model = replace(LLAMA, num_layers=1)  # 4 heads of width 8 in 2 groups
    (unit,) = (one for one in units(model, 200, 0) if one.tensor.endswith("linear_qkv.weight"))
    marks = {part.name: torch.arange(part.shape[0]) + 100 * index for index, part in enumerate(unit.parts)}
    made = to_ours(unit, lambda name: marks[name][:, None].expand(-1, 32).float(), torch.float32)[:, 0].tolist()
    first = [*range(16), *range(100, 108), *range(200, 208)]
    assert made == [*first, *range(16, 32), *range(108, 116), *range(208, 216)]
