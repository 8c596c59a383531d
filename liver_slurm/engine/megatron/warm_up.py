"""Graphs of layouts that a worker may train in later, compiled before it trains: no step of a new world waits for them.

The warm-up's own step runs without tensor parallelism. Each other tensor parallel size has shapes of its own; here one
layer of each runs on zeros, with no peers, forward and backward.
"""

from __future__ import annotations

import torch

from liver_slurm.config.layouts import feasible_layouts, padded_vocabulary
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.megatron.dense_layer import (
    Attention,
    Mlp,
    Norm,
    Rotation,
    add,
    add_norm,
    attend,
    compiled,
    transform,
)
from liver_slurm.engine.megatron.dense_layer import norm as normalize
from liver_slurm.engine.megatron.loss import exercise_loss
from liver_slurm.engine.megatron.model import is_dense, transformer_config, vocabulary
from liver_slurm.parallel.layout import Layout


def compile_layouts(config: JobConfig, device: torch.device, workers: int) -> None:
    """Compile what layouts of up to ``workers`` workers need; nothing on a CPU, or where the job says so."""
    layouts = {layout.tp: layout for layout in feasible_layouts(config, workers) if layout.tp > 1}
    for layout in layouts.values():
        if is_dense(config, layout) and transformer_config(config, layout).compile_layers:
            with torch.device(device):
                _exercise(config, layout)


def _exercise(config: JobConfig, layout: Layout) -> None:
    """One layer and the loss of one rank, on zeros."""
    transformer, train, tp = transformer_config(config, layout), config.train, layout.tp
    dtype, hidden, head = transformer.params_dtype, transformer.hidden_size, transformer.kv_channels
    inner, groups = transformer.ffn_hidden_size // tp, transformer.num_query_groups // tp
    heads = transformer.num_attention_heads // tp

    def weight(*shape: int) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.zeros(shape, dtype=dtype))

    def bias(size: int, there: bool) -> torch.nn.Parameter | None:
        return weight(size) if there else None

    linear = transformer.add_bias_linear
    attention = Attention(
        weight((heads + 2 * groups) * head, hidden),
        bias((heads + 2 * groups) * head, linear or transformer.add_qkv_bias),
        weight(hidden, heads * head),
        groups,
        head,
    )
    rows = inner * (2 if transformer.gated_linear_unit else 1)
    mlp = Mlp(
        weight(rows, hidden), bias(rows, linear), weight(hidden, inner), transformer.gated_linear_unit,
        transformer.activation_func,
    )  # fmt: skip
    by = Norm(weight(hidden), bias(hidden, transformer.normalization == "LayerNorm"), transformer.layernorm_epsilon)
    width = int(head * config.model.rotary_percent)
    positions = Rotation(*(torch.zeros(train.seq_length, 1, 1, width, dtype=dtype) for _ in range(2)))
    own = train.seq_length // tp if transformer.sequence_parallel else train.seq_length
    part = torch.zeros(own, train.micro_batch_size, hidden, dtype=dtype, requires_grad=True)
    whole = torch.zeros(train.seq_length, train.micro_batch_size, hidden, dtype=dtype, requires_grad=True)
    out = bias(hidden, linear)
    residual, normed = compiled(add_norm)(part, part * 1, out, by)
    results = [
        compiled(normalize)(part, by),
        compiled(attend)(whole * 1, attention, positions),
        compiled(transform)(whole * 1, mlp),
        compiled(add)(residual, normed, out),
    ]
    torch.autograd.backward(results, [torch.zeros_like(result) for result in results])
    size = vocabulary(config)
    shard = padded_vocabulary(size) // tp
    logits = torch.zeros(train.seq_length, train.micro_batch_size, shard, dtype=dtype)
    for real in {shard, max(size - (tp - 1) * shard, 0)}:
        exercise_loss(logits, real)
