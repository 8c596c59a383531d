"""A dense transformer layer with megatron-core's parameters and a forward pass made for the compiler.

megatron-core's own layer breaks into some fifteen compiled pieces, at its autograd functions. Here the layer keeps
megatron's modules, so names, shards and initial values are the same, but its forward pass is a function of tensors
alone and one graph, the collectives of sequence parallelism included. The function is shared by all layers and all
worlds of a process, so that it is compiled once for each shape, and a new world of shapes that were seen before
compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.attention_dropout import HeadStreams, attend_dropping
from liver_slurm.engine.megatron.dropout import Streams, drop
from liver_slurm.engine.megatron.fp8 import linear
from liver_slurm.engine.megatron.positions import Positions, in_embeddings, positions_of
from liver_slurm.engine.megatron.sequence_parallel import gather_sequence, scatter_sequence
from liver_slurm.parallel import torch_private

with compat.imports():
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_block import (
        TransformerBlockSubmodules,
        get_num_layers_to_build,
    )
    from megatron.core.transformer.transformer_layer import TransformerLayer


class Norm(NamedTuple):
    """Weights of a normalization: RMSNorm where there is no bias, LayerNorm otherwise."""

    weight: Tensor
    bias: Tensor | None
    eps: float


class Attention(NamedTuple):
    """This rank's part of self-attention. ``qkv`` rows: for each query group its queries, then its key, its value."""

    qkv: Tensor
    qkv_bias: Tensor | None
    proj: Tensor
    groups: int
    """Query groups on this rank."""
    head: int
    """Width of one head."""
    norms: tuple[Norm, Norm] | None
    """Of each head's queries, and of its keys; None: they are taken as they are."""
    streams: HeadStreams | None
    """What decides which of its weights are dropped."""
    fp8: bool
    """Whether its linear layers are computed in FP8."""


class Mlp(NamedTuple):
    """This rank's part of the MLP. ``up`` rows: the gate's, then the linear ones, if it is gated."""

    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    gated: bool
    activation: Callable[[Tensor], Tensor]
    fp8: bool
    """Whether it is computed in FP8."""


def gelu_tanh(x: Tensor) -> Tensor:
    """Return GELU as a hyperbolic tangent approximates it (Hendrycks and Gimpel 2016), as in GPT-2."""
    return F.gelu(x, approximate="tanh")


def norm(x: Tensor, by: Norm) -> Tensor:
    """Normalize the last dimension."""
    if by.bias is None:
        return F.rms_norm(x, (x.shape[-1],), by.weight, by.eps)
    return F.layer_norm(x, (x.shape[-1],), by.weight, by.bias, by.eps)


def rotate(x: Tensor, by: Positions) -> Tensor:
    """Embed positions by rotation (Su et al. 2021), the halves of the rotated width paired, as in megatron-core."""
    if by.cos is None or by.sin is None:
        return x
    width = by.cos.shape[-1]
    turned, kept = x[..., :width], x[..., width:]
    first, second = turned.chunk(2, -1)
    turned = turned * by.cos + torch.cat((-second, first), -1) * by.sin
    return torch.cat((turned, kept), -1) if kept.shape[-1] else turned


def attend(x: Tensor, part: Attention, positions: Positions) -> Tensor:
    """Compute causal self-attention of normalized states [own, batch, hidden]; with tp > 1 this rank's summand.

    With context parallelism a rank's queries meet all ranks' keys and values, which are gathered.
    """
    sequence, batch, _ = x.shape
    mixed = linear(x, part.qkv, part.qkv_bias, part.fp8).view(sequence, batch, part.groups, -1, part.head)
    queries = mixed.shape[3] - 2
    query, key, value = mixed.split((queries, 1, 1), 3)
    query, key, value = (each.reshape(sequence, batch, -1, part.head) for each in (query, key, value))
    if part.norms is not None:
        query, key = norm(query, part.norms[0]), norm(key, part.norms[1])
    query, key = rotate(query, positions), rotate(key, positions)
    seen = positions.seen
    if seen is not None and (ranks := seen.shape[-1] // seen.shape[-2]) > 1:
        key, value = gather_sequence(torch.cat((key, value), 2), ranks, "cp").chunk(2, 2)
    query, key, value = (each.permute(1, 2, 0, 3) for each in (query, key, value))
    if part.streams is None:
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, is_causal=seen is None, enable_gqa=queries > 1
        )
    else:
        mixed = attend_dropping(query, key, value, seen, part.streams)
    return linear(mixed.permute(2, 0, 1, 3).reshape(sequence, batch, -1), part.proj, None, part.fp8)


def transform(x: Tensor, part: Mlp) -> Tensor:
    """Return the MLP on normalized states; with tp > 1 this rank's summand."""
    inner = linear(x, part.up, part.up_bias, part.fp8)
    if part.gated:
        gate, value = inner.chunk(2, -1)
        inner = part.activation(gate) * value
    else:
        inner = part.activation(inner)
    return linear(inner, part.down, None, part.fp8)


class Layer(NamedTuple):
    """One rank's part of a layer, and how the ranks' parts come together."""

    norms: tuple[Norm, Norm]
    attention: Attention
    mlp: Mlp | None
    """None: a mixture of experts is in its place; see :mod:`liver_slurm.engine.megatron.expert_layer`."""
    biases: tuple[Tensor | None, Tensor | None]
    """Of the two outputs."""
    tp: int
    """Tensor parallel ranks, each of which has a part of the sequence between the collectives."""
    streams: Streams | None = None
    """What decides what is dropped of the two outputs."""


def whole_layer(x: Tensor, layer: Layer, positions: Positions) -> Tensor:
    """Return the layer as one graph; with tp > 1 on a tp-th of the sequence."""
    return mlp_part(attention_part(x, layer, positions), layer)


def attention_part(x: Tensor, layer: Layer, positions: Positions) -> Tensor:
    """Return the layer's first half."""
    normed = norm(x, layer.norms[0])
    if layer.tp == 1:
        attended = attend(normed, layer.attention, positions)
    else:
        attended = scatter_sequence(attend(gather_sequence(normed, layer.tp), layer.attention, positions), layer.tp)
    return add(x, attended, layer, 0)


def mlp_part(x: Tensor, layer: Layer) -> Tensor:
    """Return the layer's second half."""
    assert layer.mlp is not None, "a mixture of experts has a second half of its own"
    normed = norm(x, layer.norms[1])
    if layer.tp == 1:
        return add(x, transform(normed, layer.mlp), layer, 1)
    inner = scatter_sequence(transform(gather_sequence(normed, layer.tp), layer.mlp), layer.tp)
    return add(x, inner, layer, 1)


def add(residual: Tensor, x: Tensor, layer: Layer, half: int) -> Tensor:
    """Return the residual connection of a half of the layer, with its output's bias, added once whatever tp is."""
    bias = layer.biases[half]
    return residual + drop(x if bias is None else x + bias, layer.streams, half)


def usual_strides(x: Tensor) -> Tensor:
    """Return the same tensor with the strides of a new one.

    With one sample in a batch the embedding's output has another stride along it, which means nothing, and for which
    the compiler would make another graph.
    """
    unusual = x.is_contiguous() and x.stride(0) != x.stride(1) * x.shape[1]
    return x.flatten().view(x.shape) if unusual else x


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, compiled once in this process for each set of shapes."""
    torch_private.compile_without_limit()
    # Else each process times variants of a kernel and takes the fastest: replicas and runs sum in different orders.
    options = {"deterministic": True}
    made: Callable[..., Any] = torch.compile(function, dynamic=False, fullgraph=True, options=options)
    return made


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function itself: what stands in for :func:`compiled` where nothing is compiled."""
    return function


class DenseLayer(TransformerLayer):  # type: ignore[misc]
    """megatron-core's layer of dense self-attention and MLP, with the forward pass of this module."""

    def forward(
        self,
        hidden_states: Tensor,
        rotary_pos_emb: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_unused: Any,
    ) -> tuple[Tensor, None]:
        """Forward pass.

        Args:
            hidden_states: [own, batch, hidden]; with tensor parallelism a tp-th of the rank's own part.
            rotary_pos_emb: angles of the whole sequence, [sequence, 1, 1, rotated width]; None: of a model whose
                embeddings have the positions.
            attention_mask: where documents begin, see :mod:`liver_slurm.engine.megatron.positions`.
        """
        hidden_states = usual_strides(hidden_states)
        layer = self.parts(self.mlp_of(self.mlp))
        positions = self.positions(hidden_states, rotary_pos_emb, attention_mask)
        run = compiled if self.config.compile_layers else plain
        again = self.config.recompute_layers if torch.is_grad_enabled() else "none"
        if again == "full":
            return recomputed(run(whole_layer), hidden_states, layer, positions), None
        if again == "selective":
            return recomputed(run(mlp_part), run(attention_part)(hidden_states, layer, positions), layer), None
        return run(whole_layer)(hidden_states, layer, positions), None

    def positions(self, hidden_states: Tensor, angles: Tensor | None, starts: Tensor | None) -> Positions:
        """Return what attention needs to know of positions; arguments as of :meth:`forward`."""
        attention = self.self_attention
        tp, cp = attention.linear_proj.tp_group, attention.pg_collection.cp
        if angles is None:
            sequence = len(hidden_states) * tp.size() * cp.size()
            return in_embeddings(sequence, starts, hidden_states.device, cp, self.config)
        return positions_of(angles, starts, hidden_states.dtype, cp, self.config)

    def parts(self, mlp: Mlp | None) -> Layer:
        """Return this rank's part of the layer's weights."""
        attention, config = self.self_attention, self.config
        streams, heads = config.streams, config.head_streams
        return Layer(
            (_norm_of(self.input_layernorm), _norm_of(self.pre_mlp_layernorm)),
            Attention(
                attention.linear_qkv.weight,
                attention.linear_qkv.bias,
                attention.linear_proj.weight,
                attention.num_query_groups_per_partition,
                attention.hidden_size_per_attention_head,
                (_norm_of(attention.q_layernorm), _norm_of(attention.k_layernorm)) if config.qk_layernorm else None,
                None if heads is None else heads.of_layer(self.layer_number),
                config.linear_in_fp8,
            ),
            mlp,
            (attention.linear_proj.bias, None if mlp is None else self.mlp.linear_fc2.bias),
            attention.linear_proj.tp_group.size(),
            None if streams is None else streams.of_layer(self.layer_number),
        )

    def mlp_of(self, module: Any) -> Mlp:
        """Return this rank's part of the weights of one of megatron-core's MLPs."""
        up, down, config = module.linear_fc1, module.linear_fc2, self.config
        gated, activation = config.gated_linear_unit, config.activation_func
        return Mlp(up.weight, up.bias, down.weight, gated, activation, config.linear_in_fp8)


def recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Return the function's value; what it needs in the backward pass is computed again there."""
    value: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return value


def _norm_of(module: torch.nn.Module) -> Norm:
    return Norm(module.weight, getattr(module, "bias", None), module.eps)


class NoCore(torch.nn.Module):  # type: ignore[misc]
    """Stands where megatron-core keeps its attention on queries, keys and values: :func:`attend` is ours."""

    def __init__(self, **_unused: Any) -> None:
        super().__init__()


class SequenceNorm(torch.nn.Module):  # type: ignore[misc]
    """RMSNorm or LayerNorm whose weights' gradients megatron sums up over tensor parallel ranks, if each has a part of
    the sequence."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_unused: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.bias = None
        if config.normalization == "LayerNorm":
            self.bias = torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        return norm(x, _norm_of(self))


def dense_spec(config: Any) -> Any:
    """Return megatron-core's local spec of a layer with an MLP, with :class:`DenseLayer`."""
    spec = get_gpt_layer_local_spec(normalization=config.normalization, qk_layernorm=config.qk_layernorm)
    spec.module = DenseLayer
    return spec


def block_spec(layer: Any, config: Any, pp_rank: int, vp_stage: int | None) -> Any:
    """Return the layers of one spec for a pipeline stage, or for one chunk of it, without megatron-core's attention and
    with :class:`SequenceNorm`."""
    layer.submodules.self_attention.submodules.core_attention = NoCore
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = SequenceNorm
    if config.qk_layernorm:
        attention = layer.submodules.self_attention.submodules
        attention.q_layernorm = attention.k_layernorm = SequenceNorm
    layers = get_num_layers_to_build(config, vp_stage=vp_stage, pp_rank=pp_rank)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=SequenceNorm)
