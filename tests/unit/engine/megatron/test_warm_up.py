"""The warm-up of layouts: a world that trains in one later finds every graph that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from one_rank import ONE, shard_of

from liver_slurm.config.schema import ElasticSection, JobConfig, ModelSection, TrainSection
from liver_slurm.engine.megatron import warm_up
from liver_slurm.engine.megatron.dense_layer import attention_part, compiled, usual_strides, whole_layer
from liver_slurm.engine.megatron.expert_layer import experts_part, is_one_graph
from liver_slurm.engine.megatron.loss import token_losses
from liver_slurm.engine.megatron.model import unwrap
from liver_slurm.parallel.layout import Layout

CPU = torch.device("cpu")
TP2 = Layout(2, 1, 1)


class Alone:
    """A process group of one rank."""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 1


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """One entry for each graph that is compiled; nothing is generated of them, so that it takes no time."""
    made: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        made.append(graph)
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **_: compile_(function, backend=backend, dynamic=False, fullgraph=True)
    )
    real = warm_up.transformer_config

    def on_a_card(config: JobConfig, layout: Layout) -> Any:
        found = real(config, layout)
        found.compile_layers = True
        return found

    monkeypatch.setattr(warm_up, "transformer_config", on_a_card)
    torch._dynamo.reset()
    compiled.cache_clear()
    yield made
    compiled.cache_clear()
    torch._dynamo.reset()


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_a_later_world_compiles_nothing(micro_batch: int, graphs: list[Any]) -> None:
    config = JobConfig(
        model=ModelSection(num_layers=2, hidden_size=32, num_attention_heads=4, vocab_size=256),
        train=TrainSection(
            seq_length=16, micro_batch_size=micro_batch, global_batch_size=micro_batch, precision="bf16"
        ),
        elastic=ElasticSection(layouts=("tp1pp1dp1", str(TP2))),
    )
    warm_up.compile_layouts(config, CPU, TP2.size)
    assert len(graphs) >= 4, "a layer, and three parts of the loss"
    known = len(graphs)

    layer, x, positions, logits = warm_up._zeros(config, TP2)
    hidden = usual_strides((x.detach().transpose(0, 1) + 1.0).transpose(0, 1).requires_grad_() * 1.0)
    compiled(whole_layer)(compiled(whole_layer)(hidden, layer, positions), layer, positions).sum().backward()
    labels = torch.zeros(logits.shape[:-1], dtype=torch.int64)
    token_losses(logits * 1.0, labels, logits.shape[-1], Alone(), True).sum().backward()
    assert len(graphs) == known


def test_a_run_may_have_many_layouts(graphs: list[Any]) -> None:
    """torch refuses to compile a function more than eight times, unless it is told to."""
    layouts = [Layout(tp, 1, 1, cp) for tp in (1, 2, 4, 8) for cp in (1, 2, 4)]
    config = JobConfig(
        model=ModelSection(num_layers=2, hidden_size=64, num_attention_heads=8, vocab_size=2048),
        train=TrainSection(seq_length=32, micro_batch_size=1, global_batch_size=1, precision="bf16"),
        elastic=ElasticSection(layouts=tuple(map(str, layouts))),
    )
    warm_up.compile_layouts(config, CPU, 32)
    assert len(graphs) > len(layouts)


def test_a_later_world_compiles_nothing_of_its_experts(graphs: list[Any]) -> None:
    config = JobConfig(
        model=ModelSection(
            num_layers=2, hidden_size=32, num_attention_heads=4, vocab_size=256, num_moe_experts=4,
            moe_ffn_hidden_size=32, moe_aux_loss_coeff=0.1, moe_shared_expert_intermediate_size=16,
        ),
        train=TrainSection(seq_length=16, micro_batch_size=1, global_batch_size=1, precision="bf16"),
        elastic=ElasticSection(layouts=("tp1pp1dp1", str(TP2))),
    )  # fmt: skip
    warm_up.compile_layouts(config, CPU, TP2.size)
    known = len(graphs)
    layer, x, positions, _ = warm_up._zeros(config, TP2)
    experts = warm_up._experts(config, TP2)
    assert is_one_graph(experts, x)
    attended = compiled(attention_part)(x, layer, positions)
    compiled(experts_part)(attended, layer, experts, True).sum().backward()
    assert len(graphs) == known


def skeleton(part: Any) -> Any:
    """What a compiled graph is chosen by: everything but the numbers in tensors."""
    if isinstance(part, torch.Tensor):
        return type(part), part.dtype, tuple(part.shape), part.requires_grad
    if isinstance(part, tuple):
        return type(part), [skeleton(each) for each in part]
    return part


MIXTURE = {"num_moe_experts": 2, "moe_ffn_hidden_size": 32}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gpt-2": {"normalization": "LayerNorm", "add_bias_linear": True, "gated_linear_unit": False,
              "activation_func": "gelu", "position_embedding_type": "learned_absolute"},
    "qwen": {"add_qkv_bias": True, "qk_layernorm": True, "num_query_groups": 2},
    "experts": MIXTURE,
    "shared": {**MIXTURE, "moe_shared_expert_intermediate_size": 16, "moe_shared_expert_gate": True},
    "biased": {**MIXTURE, "moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True,
               "moe_router_bias_update_rate": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_parts_that_are_compiled_are_a_models(kind: str, fp8: bool) -> None:
    """Else a world's first step would compile others."""
    model = ModelSection(num_layers=1, hidden_size=32, num_attention_heads=4, vocab_size=256, ffn_hidden_size=48)
    config = JobConfig(
        model=replace(model, **MODELS[kind]),
        train=TrainSection(seq_length=16, micro_batch_size=1, global_batch_size=1, precision="bf16", fp8=fp8),
    )
    with shard_of(config) as shard:
        layer = unwrap(shard.chunks[0]).decoder.layers[0]
        mixture = config.model.num_moe_experts
        real = layer.parts(None if mixture else layer.mlp_of(layer.mlp)), layer._experts() if mixture else None
        made = warm_up._zeros(config, ONE).layer, warm_up._experts(config, ONE) if mixture else None
        assert skeleton(made) == skeleton(real)


def test_usual_strides() -> None:
    one = torch.arange(6.0).view(1, 2, 3).transpose(0, 1)
    assert one.shape == (2, 1, 3)
    assert one.is_contiguous()
    strange = torch.arange(6.0).as_strided((2, 1, 3), (3, 6, 1))
    assert usual_strides(strange).stride() == (3, 3, 1)
    assert torch.equal(usual_strides(strange), strange)
    usual = torch.zeros(2, 4, 3)
    assert usual_strides(usual) is usual
    apart = torch.zeros(4, 2, 3).transpose(0, 1)
    assert usual_strides(apart) is apart, "these mean something"
