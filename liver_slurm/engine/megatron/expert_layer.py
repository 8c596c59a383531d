"""A transformer layer whose MLP is a mixture of experts, with megatron-core's parameters and a forward pass of its own.

As in :mod:`liver_slurm.engine.megatron.dense_layer`, megatron's modules are kept for names, shards and initial values.
Routing is megatron's: softmax over all experts or over the chosen ones, or sigmoids, with or without biases that
balance the load (:mod:`liver_slurm.engine.balancing`); a load balancing loss for each microbatch (Fedus et al. 2021)
and a z-loss of the router (Zoph et al. 2022), both counted by tokens, so that they are the same in every layout. No
token is dropped. With expert parallelism each rank computes its experts on the tokens of all ranks that experts are
divided over, which are gathered, and each gets the sum for its own tokens, as with megatron's
dispatcher ``allgather``; so it is where experts are cut over other ranks than all else. Attention is one compiled graph
and the experts' part another one in bf16 and without expert parallelism: with it, how many tokens a rank's experts have
is known only when it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.dense_layer import (
    DenseLayer,
    Layer,
    Mlp,
    add,
    attention_part,
    compiled,
    norm,
    plain,
    recomputed,
    transform,
    usual_strides,
)
from liver_slurm.engine.megatron.grouped_experts import apply_experts
from liver_slurm.engine.megatron.positions import Positions
from liver_slurm.engine.megatron.sequence_parallel import Along, gather_sequence, scatter_sequence

with compat.imports():
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec


EXPERT_BIAS = "is_expert_bias"
"""Attribute of the parameters that are biases of experts."""
_LEAST = 1e-20
"""Added to sums that are divided by, as in megatron-core."""


class Routing(NamedTuple):
    """How tokens find their experts."""

    weight: Tensor
    """[experts, hidden]; the same on every rank."""
    bias: Tensor | None
    """fp32 [experts]; added to their scores when a token chooses, not to their weights. None: there is none."""
    sigmoid: bool
    """A score is a sigmoid of the logit, and a weight the chosen one's part of the chosen ones' sum."""
    chosen: int
    """Experts of each token."""
    before: bool
    """Weights are the chosen experts' parts of a softmax over all; else of one over the chosen ones."""
    balance: float
    """Coefficient of the load balancing loss."""
    z_loss: float
    """Coefficient of the router's z-loss."""


class Experts(NamedTuple):
    """This rank's part of a mixture of experts."""

    routing: Routing
    own: tuple[Mlp, ...]
    first: int
    """Number of the first of this rank's own experts."""
    shared: Mlp | None
    """The expert of all tokens."""
    shared_gate: Tensor | None
    """[1, hidden]; what a token's share of the shared expert follows from. None: all of it."""
    tp: int
    cp: int
    ep: int
    etp: int


class Halves(NamedTuple):
    """The layer's two halves, each compiled or not."""

    attention: Callable[..., Tensor]
    experts: Callable[..., Tensor]


class _WithLoss(torch.autograd.Function):  # type: ignore[misc]
    """Its first argument; in the backward pass the second one counts as a summand of the loss."""

    @staticmethod
    def forward(_context: Any, x: Tensor, _loss: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, torch.ones((), dtype=torch.float32, device=gradient.device)


class _WithExcess(torch.autograd.Function):  # type: ignore[misc]
    """Its first argument; in the backward pass the third one is the gradient of the second, the experts' biases."""

    @staticmethod
    def forward(context: Any, x: Tensor, _bias: Tensor, excess: Tensor) -> Tensor:
        context.save_for_backward(excess)
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (excess,) = context.saved_tensors
        return gradient, excess, None


def _choice(logits: Tensor, by: Routing) -> tuple[Tensor, Tensor]:
    """Return each token's experts and their weights, [..., chosen]: weights, numbers."""
    if by.sigmoid:
        scores = logits.sigmoid()
        chosen = (scores if by.bias is None else scores + by.bias.detach()).topk(by.chosen, -1).indices
        kept = scores.gather(-1, chosen)
        return kept / (kept.sum(-1, keepdim=True) + _LEAST) if by.chosen > 1 else kept, chosen
    if by.before:
        kept, chosen = logits.softmax(-1).topk(by.chosen, -1)
        return kept, chosen
    best, chosen = logits.topk(by.chosen, -1)
    return best.softmax(-1), chosen


def excess(chosen: Tensor, experts: int) -> Tensor:
    """Return by how much more than the mean went to each expert, fp32 [experts], in a unit that makes it whole numbers.

    Their sums are exact up to 2^24, and so the same in whatever order microbatches and ranks are summed.
    """
    tokens, each = chosen.flatten(0, -2).shape
    unit = math.gcd(experts, each)
    went = torch.zeros(tokens, experts, device=chosen.device).scatter(-1, chosen.flatten(0, -2), 1.0).sum(0)
    return went * (experts // unit) - tokens * (each // unit)


def route(x: Tensor, by: Routing, losses: Callable[[Tensor, Tensor], Tensor] | None) -> Tensor:
    """Return the weights of all experts for each token, fp32, [..., experts]: zero where a token does not go.

    Args:
        x: [..., hidden].
        losses: makes the losses of the routing from its logits and weights; None: they count for nothing.
    """
    logits = F.linear(x.float(), by.weight.float())
    kept, chosen = _choice(logits, by)
    weights = torch.zeros_like(logits).scatter(-1, chosen, kept)
    if by.bias is not None:
        # of zeros where nothing counts: each microbatch must give each parameter a gradient, before ranks reduce them
        more = torch.zeros_like(by.bias) if losses is None else excess(chosen, logits.shape[-1])
        weights = _WithExcess.apply(weights, by.bias, more)
    if losses is None or not (by.balance or by.z_loss):
        return weights
    attached: Tensor = _WithLoss.apply(weights, losses(logits, weights))
    return attached


def routing_losses(logits: Tensor, weights: Tensor, part: Experts) -> Tensor:
    """Return this rank's summand of the losses of a microbatch's routing, times the microbatch's tokens.

    All its tokens, those of the other tensor and context parallel ranks too, say how much an expert has to do.
    """
    by, experts = part.routing, logits.shape[-1]
    loss = torch.zeros((), dtype=torch.float32, device=logits.device)
    if by.balance:
        if by.bias is not None:  # the loss counts what would be chosen without
            weights = torch.zeros_like(logits).scatter(-1, logits.topk(by.chosen, -1).indices, 1.0)
        went = (weights.detach() > 0).flatten(0, -2).sum(0, dtype=torch.float32).unsqueeze(0)
        for ranks, axis in ((part.tp, "tp"), (part.cp, "cp")):
            if ranks > 1:
                went = gather_sequence(went, ranks, axis).sum(0, keepdim=True)  # type: ignore[arg-type]
        if by.sigmoid:
            scores = logits.sigmoid()
            shares = scores / (scores.sum(-1, keepdim=True) + _LEAST)
        else:
            shares = logits.softmax(-1)
        probabilities = shares.flatten(0, -2).sum(0)
        loss = loss + by.balance * experts * (probabilities * went[0] / went.sum()).sum()
    if by.z_loss:
        loss = loss + by.z_loss * logits.logsumexp(-1).square().sum()
    return loss


def mix(x: Tensor, part: Experts, counted: bool) -> Tensor:
    """Return the mixture of experts on normalized states [own, batch, hidden].

    Args:
        counted: the microbatch's tokens count, and so do the losses of their routing.
    """
    losses = (lambda logits, weights: routing_losses(logits, weights, part)) if counted else None
    weights = route(x, part.routing, losses)
    share = None if part.shared_gate is None else F.linear(x, part.shared_gate).sigmoid()
    cut_alike = part.etp == part.tp
    whole = gather_sequence(x, part.tp) if part.tp > 1 and (cut_alike or part.shared is not None) else x
    common = None if part.shared is None else transform(whole, part.shared)
    if not cut_alike:
        mixed = _divided(x, weights, part, part.etp * part.ep, "tp_ep")
    elif part.tp > 1:
        mixed = scatter_sequence(_divided(whole, gather_sequence(weights, part.tp), part, part.ep, "ep"), part.tp)
    else:
        mixed = _divided(x, weights, part, part.ep, "ep")
    if common is None:
        return mixed
    if part.tp > 1:
        common = scatter_sequence(common, part.tp)
    return mixed + (common if share is None else common * share)


def _divided(x: Tensor, weights: Tensor, part: Experts, ranks: int, along: Along) -> Tensor:
    """Return the weighted sum of all experts, each of which is on some of these ranks, or a part of it.

    Args:
        x, weights: this rank's tokens, and what each expert weighs for them.
        ranks, along: those that have the experts among them.
    """
    if ranks > 1:
        x, weights = gather_sequence(x, ranks, along), gather_sequence(weights, ranks, along)
    own = weights[..., part.first : part.first + len(part.own)]
    mixed = apply_experts(x, own, part.own, part.routing.chosen, part.ep > 1)
    return scatter_sequence(mixed, ranks, along) if ranks > 1 else mixed


def experts_part(x: Tensor, layer: Layer, experts: Experts, counted: bool) -> Tensor:
    """Return the layer's second half."""
    return add(x, mix(norm(x, layer.norms[1]), experts, counted), layer, 1)


def is_one_graph(experts: Experts, x: Tensor) -> bool:
    """Return whether the experts' part can be compiled; torch's compiler knows the grouped product of bf16 alone."""
    return experts.ep == 1 and experts.etp == experts.tp and x.dtype is torch.bfloat16


def routing_of(weight: Tensor, bias: Tensor | None, config: Any) -> Routing:
    """Return the routing of a model with this transformer config; ``weight`` is [experts, hidden]."""
    return Routing(
        weight,
        bias,
        config.moe_router_score_function == "sigmoid",
        config.moe_router_topk,
        config.moe_router_pre_softmax,
        config.moe_aux_loss_coeff,
        config.moe_z_loss_coeff or 0.0,
    )


def whole_layer(
    x: Tensor, layer: Layer, positions: Positions, experts: Experts, halves: Halves, counted: bool
) -> Tensor:
    """Return the layer."""
    attended = halves.attention(x, layer, positions)
    whole: Tensor = halves.experts(attended, layer, experts, counted)
    return whole


class ExpertLayer(DenseLayer):
    """megatron-core's layer of dense self-attention and a mixture of experts, with the forward pass of this module."""

    def forward(
        self,
        hidden_states: Tensor,
        rotary_pos_emb: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_unused: Any,
    ) -> tuple[Tensor, None]:
        """Forward pass; arguments as of :meth:`DenseLayer.forward`."""
        layer, experts, counted = self.parts(None), self._experts(), self.config.counted
        hidden_states = usual_strides(hidden_states)
        positions = self.positions(hidden_states, rotary_pos_emb, attention_mask)
        run = compiled if self.config.compile_layers else plain
        halves = Halves(
            run(attention_part), run(experts_part) if is_one_graph(experts, hidden_states) else experts_part
        )
        again = self.config.recompute_layers if torch.is_grad_enabled() else "none"
        if again == "full":
            return recomputed(whole_layer, hidden_states, layer, positions, experts, halves, counted), None
        if again == "selective":
            attended = halves.attention(hidden_states, layer, positions)
            return recomputed(halves.experts, attended, layer, experts, counted), None
        return whole_layer(hidden_states, layer, positions, experts, halves, counted), None

    def _experts(self) -> Experts:
        config, mixture = self.config, self.mlp
        shared = mixture.shared_experts
        return Experts(
            routing_of(mixture.router.weight, getattr(mixture.router, "expert_bias", None), config),
            tuple(self.mlp_of(expert) for expert in mixture.experts.local_experts),
            mixture.local_expert_indices[0],
            None if shared is None else self.mlp_of(shared),
            None if shared is None else shared.gate_weight,
            self.self_attention.linear_proj.tp_group.size(),
            self.self_attention.pg_collection.cp.size(),
            mixture.ep_group.size(),
            config.expert_tensor_parallel_size,
        )


def add_biases(model: torch.nn.Module, sequence_parallel: bool) -> None:
    """Give each router of a model a bias for each expert, as a parameter in fp32 by megatron-core's name for it.

    There it is a buffer, which nothing divides or moves. Its gradient is no part of the gradients' norm.
    """
    for layer in model.modules():
        if isinstance(layer, ExpertLayer):
            router = layer.mlp.router
            bias = torch.nn.Parameter(torch.empty(router.num_experts, dtype=torch.float32))
            setattr(bias, EXPERT_BIAS, True)
            bias.shared = True  # megatron leaves these out of the norm, as others have them too
            bias.sequence_parallel = sequence_parallel
            router.__dict__.pop("expert_bias", None)  # None, as megatron is not told of them
            router.register_parameter("expert_bias", bias)


def reduce_by_themselves(model: torch.nn.Module) -> None:
    """Have megatron reduce gradients of a model's experts over the ranks that hold the same ones.

    0.19 does so by itself where experts are cut over other ranks than all else, 0.16 only with expert parallelism.
    """
    for layer in model.modules():
        if isinstance(layer, ExpertLayer):
            for parameter in layer.mlp.experts.parameters():
                parameter.allreduce = False


def expert_spec(config: Any) -> Any:
    """Return megatron-core's local spec of a layer with a mixture of experts, with :class:`ExpertLayer`."""
    spec = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts,
        moe_grouped_gemm=False,
        normalization=config.normalization,
        qk_layernorm=config.qk_layernorm,
    )
    spec.module = ExpertLayer
    return spec
