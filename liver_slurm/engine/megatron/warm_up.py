"""Graphs of layouts that a worker may train in later, compiled before it trains: no step of a new world waits for them.

The warm-up's own step runs without tensor and context parallelism. Other sizes of these have shapes of their own; here
one layer of each runs on zeros, with no peers, forward and backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from liver_slurm.config.layouts import feasible_layouts
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.shapes import expert_width, padded_vocabulary
from liver_slurm.engine.megatron.attention_dropout import head_streams_like
from liver_slurm.engine.megatron.dense_layer import (
    Attention,
    Layer,
    Mlp,
    Norm,
    attention_part,
    compiled,
    mlp_part,
    whole_layer,
)
from liver_slurm.engine.megatron.dropout import dropout_like
from liver_slurm.engine.megatron.expert_layer import Experts, experts_part, is_one_graph, routing_of
from liver_slurm.engine.megatron.loss import exercise_loss
from liver_slurm.engine.megatron.model import is_dense, transformer_config, vocabulary
from liver_slurm.engine.megatron.positions import Positions
from liver_slurm.engine.megatron.sequence_parallel import use_groups
from liver_slurm.parallel.layout import Layout


def compile_layouts(config: JobConfig, device: torch.device, workers: int) -> None:
    """Compile what layouts of up to ``workers`` workers need; nothing on a CPU, or where the job says so."""
    layouts = {(layout.tp, layout.cp, layout.etp): layout for layout in feasible_layouts(config, workers)}
    layouts.pop((1, 1, 1), None)
    for layout in layouts.values():
        if is_dense(config, layout) and transformer_config(config, layout).compile_layers:
            # Graphs that were compiled with a default device are not taken where there is none, as in training.
            with torch.device(device):
                zeros = _zeros(config, layout)
                experts = _experts(config, layout) if config.model.num_moe_experts else None
            _exercise(config, layout, zeros, experts)


class Zeros(NamedTuple):
    """One layer of one rank, what goes in, and the logits that its model makes, all of zeros."""

    layer: Layer
    x: torch.Tensor
    positions: Positions
    logits: torch.Tensor


def _zeros(config: JobConfig, layout: Layout) -> Zeros:
    """Make what one layer of a rank of this layout works on."""
    transformer, train, tp = transformer_config(config, layout), config.train, layout.tp
    dtype, hidden, head = transformer.params_dtype, transformer.hidden_size, transformer.kv_channels
    inner, groups = transformer.ffn_hidden_size // tp, transformer.num_query_groups // tp
    heads = transformer.num_attention_heads // tp

    def weight(*shape: int) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.zeros(shape, dtype=dtype))

    def bias(size: int, there: bool) -> torch.nn.Parameter | None:
        return weight(size) if there else None

    linear, own = transformer.add_bias_linear, train.seq_length // layout.cp
    attention = Attention(
        weight((heads + 2 * groups) * head, hidden),
        bias((heads + 2 * groups) * head, linear or transformer.add_qkv_bias),
        weight(hidden, heads * head),
        groups,
        head,
        _norms(transformer, head) if transformer.qk_layernorm else None,
        head_streams_like(config, own, heads) if config.model.attention_dropout else None,
        transformer.linear_in_fp8,
    )
    rows = inner * (2 if transformer.gated_linear_unit else 1)
    mlp = Mlp(
        weight(rows, hidden), bias(rows, linear), weight(hidden, inner), transformer.gated_linear_unit,
        transformer.activation_func, transformer.linear_in_fp8,
    )  # fmt: skip
    width = int(head * config.model.rotary_percent)
    positions = _nowhere(config, own, width, dtype)
    outputs = bias(hidden, linear), bias(hidden, linear)
    dense = None if config.model.num_moe_experts else mlp
    streams = dropout_like(config, own // tp) if config.model.hidden_dropout else None
    layer = Layer(_norms(transformer, hidden), attention, dense, outputs, tp, streams)
    x = torch.zeros(own // tp, train.micro_batch_size, hidden, dtype=dtype, requires_grad=True)
    shard = padded_vocabulary(vocabulary(config)) // tp
    logits = torch.zeros(own, train.micro_batch_size, shard, dtype=dtype, requires_grad=True)
    return Zeros(layer, x, positions, logits)


def _experts(config: JobConfig, layout: Layout) -> Experts:
    """Make a rank's experts of zeros; without expert parallelism, as with it nothing of theirs is compiled."""
    model, transformer = config.model, transformer_config(config, layout)
    hidden, dtype = transformer.hidden_size, transformer.params_dtype
    gated, activation = transformer.gated_linear_unit, transformer.activation_func

    def weight(*shape: int) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.zeros(shape, dtype=dtype))

    def mlp(inner: int) -> Mlp:
        up, down = weight(inner * (2 if gated else 1), hidden), weight(hidden, inner)
        return Mlp(up, None, down, gated, activation, transformer.linear_in_fp8)

    number, shared = transformer.num_moe_experts, model.moe_shared_expert_intermediate_size
    bias = torch.nn.Parameter(torch.zeros(number)) if model.moe_router_enable_expert_bias else None
    return Experts(
        routing_of(weight(number, hidden), bias, transformer),
        tuple(mlp(expert_width(model) // layout.etp) for _ in range(number)),
        0,
        None if shared is None else mlp(shared // layout.tp),
        weight(1, hidden) if model.moe_shared_expert_gate else None,
        layout.tp,
        layout.cp,
        1,
        layout.etp,
    )


def _exercise(config: JobConfig, layout: Layout, zeros: Zeros, experts: Experts | None) -> None:
    """Run the layer and the loss, forward and backward."""
    transformer, tp = transformer_config(config, layout), layout.tp
    layer, x, positions, logits = zeros
    use_groups({})
    if experts is not None:
        result = compiled(attention_part)(x, layer, positions)
        if is_one_graph(experts, x):
            result = compiled(experts_part)(result, layer, experts, True)
    elif transformer.recompute_layers == "selective":
        result = compiled(mlp_part)(compiled(attention_part)(x, layer, positions), layer)
    else:
        result = compiled(whole_layer)(x, layer, positions)
    result.backward(torch.zeros_like(result))
    shard = logits.shape[-1]
    for real in {shard, max(vocabulary(config) - (tp - 1) * shard, 0)}:
        exercise_loss(logits, real, config.train.z_loss_coeff)


def _nowhere(config: JobConfig, own: int, width: int, dtype: torch.dtype) -> Positions:
    """Return the positions of the shapes that :func:`liver_slurm.engine.megatron.positions.positions_of` makes."""
    train, data, seen = config.train, config.data, None
    if data.reset_attention_mask:
        seen = torch.ones(train.micro_batch_size, 1, own, train.seq_length, dtype=torch.bool)
    elif own < train.seq_length:
        seen = torch.ones(own, train.seq_length, dtype=torch.bool)
    if config.model.position_embedding_type != "rope":
        return Positions(None, None, seen)
    batch = train.micro_batch_size if data.reset_position_ids else 1
    cos, sin = (torch.zeros(own, batch, 1, width, dtype=dtype) for _ in range(2))
    return Positions(cos, sin, seen)


def _norms(transformer: Any, size: int) -> tuple[Norm, Norm]:
    """Return two normalizations of vectors of this size, with weights and biases of zero."""

    def one() -> Norm:
        weight, bias = (torch.nn.Parameter(torch.zeros(size, dtype=transformer.params_dtype)) for _ in range(2))
        return Norm(weight, bias if transformer.normalization == "LayerNorm" else None, transformer.layernorm_epsilon)

    return one(), one()
