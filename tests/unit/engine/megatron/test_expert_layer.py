"""Mixtures of experts: the layer computes what megatron-core's own does, and counts nothing twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection  # noqa: E402
from liver_slurm.engine.megatron import compat  # noqa: E402
from liver_slurm.engine.megatron.engine import MegatronEngine  # noqa: E402
from liver_slurm.engine.megatron.expert_layer import mix  # noqa: E402
from liver_slurm.engine.megatron.model import unwrap  # noqa: E402
from liver_slurm.engine.megatron.shard import MegatronShard, build_shard  # noqa: E402
from liver_slurm.engine.megatron.spec import parameter_count  # noqa: E402
from liver_slurm.parallel.c10d import set_default_group  # noqa: E402
from liver_slurm.parallel.groups import build_world  # noqa: E402
from liver_slurm.parallel.layout import Layout  # noqa: E402
from liver_slurm.parallel.membership import Membership  # noqa: E402

with compat.imports():
    from megatron.core.transformer.moe import moe_utils

MODEL = ModelSection(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=61,
    num_moe_experts=6,
    moe_router_topk=2,
    moe_ffn_hidden_size=24,
)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "first-softmax": {"moe_router_pre_softmax": True, "moe_router_topk": 1},
    "balanced": {"moe_aux_loss_coeff": 0.3},
    "z-loss": {"moe_z_loss_coeff": 0.2, "moe_router_pre_softmax": True, "moe_router_topk": 3},
    "shared": {"moe_shared_expert_intermediate_size": 40},
    "gated-shared": {"moe_shared_expert_intermediate_size": 40, "moe_shared_expert_gate": True},
    "not-gated-gelu": {"gated_linear_unit": False, "activation_func": "gelu", "moe_aux_loss_coeff": 0.1},
}


def job(**model: Any) -> JobConfig:
    return JobConfig(
        model=dataclasses.replace(MODEL, **model),
        train=TrainSection(steps=1, seq_length=16, micro_batch_size=2, global_batch_size=2),
    )


@contextmanager
def shard_of(config: JobConfig) -> Iterator[MegatronShard]:
    """The model in a world of one."""
    members = Membership(0, Layout(1, 1, 1), ("me",))
    world = build_world(members, "me", dist.HashStore(), "gloo", torch.device("cpu"), timedelta(minutes=5))
    made = build_shard(config, world, torch.device("cpu"), fresh=True)
    made.make_live()
    yield made
    set_default_group(None)
    world.destroy()


@pytest.mark.parametrize("kind", KINDS)
def test_experts_compute_what_megatrons_own_do(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # 0.16.1 asks for this name without having it, where there is no Transformer Engine.
    monkeypatch.setattr(moe_utils, "te_general_gemm", None, raising=False)
    with shard_of(job(**KINDS[kind])) as shard:
        layer = unwrap(shard.chunks[0]).decoder.layers[1]
        found, expected = (gradients_of(layer, own) for own in (True, False))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=2e-5, atol=2e-6, msg=lambda text, name=name: f"{name} {text}"
        )


def gradients_of(layer: Any, own: bool) -> dict[str, torch.Tensor]:
    """Output of the mixture of experts and gradients of its input and weights, of our forward pass or of megatron's."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(16, 2, 32, generator=generator).requires_grad_()
    weights = {name: weight for name, weight in layer.mlp.named_parameters() if weight.requires_grad}
    output = mix(x, layer._experts(), counted=True) if own else layer.mlp(x)[0]
    target = torch.randn(output.shape, generator=generator)
    gradients = torch.autograd.grad((output * target).sum(), [x, *weights.values()], allow_unused=True)
    found = {"output": output.detach(), "input": gradients[0]}
    for (name, weight), gradient in zip(weights.items(), gradients[1:], strict=True):
        found[name] = torch.zeros_like(weight) if gradient is None else gradient
    return found


def test_a_microbatch_that_does_not_count_balances_nothing() -> None:
    with shard_of(job(moe_aux_loss_coeff=0.3)) as shard:
        layer = unwrap(shard.chunks[0]).decoder.layers[0]
        x = torch.randn(16, 2, 32)
        for counted in (True, False):
            weight = layer.mlp.router.weight
            (gradient,) = torch.autograd.grad((mix(x, layer._experts(), counted) * 0.0).sum(), [weight])
            assert bool(gradient.any()) == counted


def test_what_is_computed_again_is_the_same() -> None:
    with shard_of(job(moe_aux_loss_coeff=0.3)) as shard:
        layer = unwrap(shard.chunks[0]).decoder.layers[0]
        x, angles = torch.randn(16, 2, 32), torch.randn(16, 1, 1, 8)
        found = []
        for again in ("none", "selective", "full"):
            layer.config.recompute_layers = again
            output, _ = layer(x, angles)
            found.append((output, *torch.autograd.grad(output.square().sum(), list(layer.parameters()))))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_operations_are_those_of_the_experts_that_a_token_meets() -> None:
    config = job()
    expert, hidden = 3 * 32 * 24, 32
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 6 * expert + 6 * hidden + 2 * hidden
    count = 2 * layer + hidden + 128 * hidden
    assert parameter_count(config) == count
    met = count - 2 * 4 * expert
    assert MegatronEngine().token_flops(config) == 6 * met + 6 * 2 * 32 * 16
