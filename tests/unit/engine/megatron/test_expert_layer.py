"""Mixtures of experts: the layer computes what megatron-core's own does, and counts nothing twice."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from one_rank import shard_of  # noqa: E402

from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection  # noqa: E402
from liver_slurm.engine.balancing import balance  # noqa: E402
from liver_slurm.engine.megatron import compat  # noqa: E402
from liver_slurm.engine.megatron.engine import MegatronEngine  # noqa: E402
from liver_slurm.engine.megatron.expert_layer import excess, mix  # noqa: E402
from liver_slurm.engine.megatron.model import unwrap  # noqa: E402
from liver_slurm.engine.megatron.spec import parameter_count  # noqa: E402

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
SIGMOID = {"moe_router_score_function": "sigmoid"}
BIASED = {**SIGMOID, "moe_router_enable_expert_bias": True, "moe_router_bias_update_rate": 0.25}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "first-softmax": {"moe_router_pre_softmax": True, "moe_router_topk": 1},
    "balanced": {"moe_aux_loss_coeff": 0.3},
    "z-loss": {"moe_z_loss_coeff": 0.2, "moe_router_pre_softmax": True, "moe_router_topk": 3},
    "shared": {"moe_shared_expert_intermediate_size": 40},
    "gated-shared": {"moe_shared_expert_intermediate_size": 40, "moe_shared_expert_gate": True},
    "sigmoid": {**SIGMOID, "moe_router_topk": 1, "moe_aux_loss_coeff": 0.1},
    "biased": {**BIASED, "moe_aux_loss_coeff": 0.1},
    "not-gated-gelu": {"gated_linear_unit": False, "activation_func": "gelu", "moe_aux_loss_coeff": 0.1},
}


def job(**model: Any) -> JobConfig:
    return JobConfig(
        model=dataclasses.replace(MODEL, **model),
        train=TrainSection(steps=1, seq_length=16, micro_batch_size=2, global_batch_size=2),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_experts_compute_what_megatrons_own_do(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # 0.16.1 asks for this name without having it, where there is no Transformer Engine.
    monkeypatch.setattr(moe_utils, "te_general_gemm", None, raising=False)
    with shard_of(job(**KINDS[kind])) as shard:
        layer = unwrap(shard.chunks[0]).decoder.layers[1]
        set_bias(layer)
        found, expected = (gradients_of(layer, own) for own in (True, False))
    assert found.keys() == expected.keys()
    found.pop("router.expert_bias", None)  # which megatron does not move by a gradient
    expected.pop("router.expert_bias", None)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=2e-5, atol=2e-6, msg=lambda text, name=name: f"{name} {text}"
        )


def set_bias(layer: Any) -> None:
    """Let tokens choose otherwise than without a bias, where there is one."""
    if layer.mlp.router.expert_bias is not None:
        layer.mlp.router.expert_bias.data.copy_(torch.arange(6) * 0.02)


def test_biases_move_as_megatrons_own_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """By how many tokens chose each expert under the present biases; what does not count moves none."""
    monkeypatch.setattr(moe_utils, "te_general_gemm", None, raising=False)
    with shard_of(job(**BIASED)) as shard:
        layer = unwrap(shard.chunks[0]).decoder.layers[1]
        set_bias(layer)
        x, bias = torch.randn(16, 2, 32), layer.mlp.router.expert_bias
        _, went = layer.mlp.router(x)
        expected = moe_utils.get_updated_expert_bias(went.sum(0).float(), bias, 0.25)
        found, before = bias.detach().clone(), bias.detach().clone()
        for counted in (True, False):
            (gradient,) = torch.autograd.grad(mix(x, layer._experts(), counted).sum(), [bias])
            assert bool(gradient.any()) == counted
            balance([found], [gradient], 0.25)
        bias.data.zero_()
        _, unbiased = layer.mlp.router(x)
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)
    assert not torch.equal(went, unbiased)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_biases_are_fp32_and_a_step_moves_them_at_their_rate(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no part in the gradients' norm, and neither clipping nor the schedule has one in how far they go."""
    # Megatron's layer, which other tests compare with, leaves a scale of another shape here.
    monkeypatch.setattr(moe_utils.MoEAuxLossAutoScaler, "main_loss_backward_scale", None)
    biased, plain = job(**BIASED), job(**SIGMOID)
    steps = []
    for config in (biased, plain):
        train = dataclasses.replace(config.train, precision=precision, lr_warmup_steps=3, clip_grad=1e-3, steps=9)
        with shard_of(dataclasses.replace(config, train=train)) as shard:
            steps.append(shard.train_step(Ramp(), 0))
            if config is biased:
                bias = shard.parameters["decoder.layers.1.mlp.router.expert_bias"].detach()
                assert bias.dtype == torch.float32
                assert set(bias.tolist()) <= {-0.25, 0.0, 0.25}
                assert bias.any()
                (held,) = (view for piece, view in shard.boxes() if piece.tensor.endswith("bias") and piece.offset[0])
                assert torch.equal(held[0], bias)
    assert steps[0].grad_norm == steps[1].grad_norm, "before the first step both models are the same"


class Ramp:
    """Samples of a few tokens."""

    def __len__(self) -> int:
        return 8

    def batch(self, first: int, count: int) -> Any:
        return (torch.arange(first, first + count)[:, None] * 5 + torch.arange(17)).numpy() % 61


def test_sums_of_what_went_to_experts_are_exact_in_any_order() -> None:
    chosen = torch.rand(1000, 6).topk(2).indices
    whole = excess(chosen, 6)
    parts = [excess(part, 6) for part in chosen.split(7)]
    assert torch.equal(sum(parts, torch.zeros(6)), whole)
    assert torch.equal(sum(reversed(parts), torch.zeros(6)), whole)
    assert torch.equal(whole, 3 * torch.bincount(chosen.flatten(), minlength=6) - 1000.0)


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
    with shard_of(job(moe_aux_loss_coeff=0.3, **BIASED)) as shard:
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
    assert parameter_count(job(**BIASED)) == count + 2 * 6
    met = count - 2 * 4 * expert
    assert MegatronEngine().token_flops(config) == 6 * met + 6 * 2 * 32 * 16
