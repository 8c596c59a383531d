"""The warm-up of layouts: a world that trains in one later finds every graph that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from liver_slurm.config.schema import ElasticSection, JobConfig, ModelSection, TrainSection
from liver_slurm.engine.megatron import warm_up
from liver_slurm.engine.megatron.dense_layer import attention_part, compiled, usual_strides, whole_layer
from liver_slurm.engine.megatron.expert_layer import experts_part, is_one_graph
from liver_slurm.engine.megatron.loss import token_losses
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
