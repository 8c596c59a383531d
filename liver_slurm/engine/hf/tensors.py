"""Which rows of which tensor of a Hugging Face model are which rows of a tensor of ours. Pure.

Ours are megatron-core's: tensors of layers are stacked, queries, keys and values are fused, a query group after the
other, so are gate and linear part of a gated MLP, and the vocabulary is padded. The table serves both ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from liver_slurm.config.hf_experts import expert_family
from liver_slurm.config.schema import ModelSection
from liver_slurm.config.shapes import expert_width, head_width, padded_vocabulary

Shape = tuple[int, ...]


class Rows(NamedTuple):
    """``length`` rows, from ``theirs`` on in their tensor, from ``ours`` on in ours."""

    theirs: int
    ours: int
    length: int


@dataclass(frozen=True)
class Part:
    """A tensor of theirs, all of which lies in one unit of ours."""

    name: str
    shape: Shape
    """As it is stored."""
    rows: tuple[Rows, ...]
    """Rows of it once it is turned round, if it is."""
    turned: bool = False
    """It is stored as the transpose of what a linear layer has, as GPT-2's are."""


@dataclass(frozen=True)
class Unit:
    """A tensor of ours, of one layer where tensors are stacked."""

    tensor: str
    whole: Shape
    """Shape of the whole tensor."""
    layer: int | None
    """None: it is no stack."""
    parts: tuple[Part, ...]
    expert: int | None = None
    """Of which expert it is; None: of none."""

    @property
    def place(self) -> Shape:
        """Where in the stack the unit is: the number of the layer, and of the expert."""
        return tuple(number for number in (self.layer, self.expert) if number is not None)

    @property
    def shape(self) -> Shape:
        """Shape of the unit, without the axes of layers and experts."""
        return self.whole[len(self.place) :]


class _Sizes(NamedTuple):
    heads: int
    groups: int
    head: int
    hidden: int
    ffn: int
    layers: int


def units(model: ModelSection, vocabulary: int, positions: int) -> Iterator[Unit]:
    """Yield all of a model, in the order of the layers.

    Args:
        model: of a family that :mod:`liver_slurm.config.hf_config` knows.
        vocabulary: tokens, without padding.
        positions: rows of the table of learned positions, if it has one.
    """
    heads, padded = model.num_attention_heads, padded_vocabulary(vocabulary)
    sizes = _Sizes(heads, model.query_groups, head_width(model), model.hidden_size, model.ffn_width, model.num_layers)
    gpt2 = model.position_embedding_type == "learned_absolute"
    words, hidden = ("transformer.wte" if gpt2 else "model.embed_tokens"), model.hidden_size
    tokens = (Rows(0, 0, vocabulary),)
    vectors = Part(f"{words}.weight", (vocabulary, hidden), tokens)
    yield Unit("embedding.word_embeddings.weight", (padded, hidden), None, (vectors,))
    if gpt2:
        table = "embedding.position_embeddings.weight"
        yield _same(table, "transformer.wpe.weight", (positions, hidden), None)
    for layer in range(model.num_layers):
        yield from _gpt2_layer(layer, sizes) if gpt2 else _llama_layer(layer, sizes, model)
    for kind in ("weight", "bias") if gpt2 else ("weight",):
        last = f"transformer.ln_f.{kind}" if gpt2 else f"model.norm.{kind}"
        yield _same(f"decoder.final_layernorm.{kind}", last, (hidden,), None)
    if not model.share_embeddings_and_output_weights:
        output = Part("lm_head.weight", (vocabulary, hidden), tokens)
        yield Unit("output_layer.weight", (padded, hidden), None, (output,))


def _llama_layer(layer: int, sizes: _Sizes, model: ModelSection) -> Iterator[Unit]:
    """Yield a layer of Llama, Mistral and Qwen."""
    theirs, attention, mlp = f"model.layers.{layer}", "decoder.layers.self_attention", "decoder.layers.mlp"
    hidden, ffn, inner = sizes.hidden, sizes.ffn, sizes.heads * sizes.head

    def stacked(tensor: str, shape: Shape, *parts: Part) -> Unit:
        return Unit(tensor, (sizes.layers, *shape), layer, parts)

    def norm(tensor: str, name: str, size: int) -> Unit:
        return _same(tensor, f"{theirs}.{name}.weight", (size,), layer, sizes.layers)

    yield norm(f"{attention}.linear_qkv.layer_norm_weight", "input_layernorm", hidden)
    for kind, width in _kinds(hidden, model.add_qkv_bias or model.add_bias_linear):
        parts = [
            Part(f"{theirs}.self_attn.{name}_proj.{kind}", (sum(one.length for one in rows), *width), rows)
            for name, rows in zip("qkv", _query_key_value(sizes, apart=True), strict=True)
        ]
        total = (inner + 2 * sizes.groups * sizes.head, *width)
        yield stacked(f"{attention}.linear_qkv.{kind}", total, *parts)
    if model.qk_layernorm:
        yield norm(f"{attention}.q_layernorm.weight", "self_attn.q_norm", sizes.head)
        yield norm(f"{attention}.k_layernorm.weight", "self_attn.k_norm", sizes.head)
    for kind, width in _kinds(inner, model.add_bias_linear):
        name = f"{theirs}.self_attn.o_proj.{kind}"
        yield _same(f"{attention}.linear_proj.{kind}", name, (hidden, *width), layer, sizes.layers)
    yield norm(f"{mlp}.linear_fc1.layer_norm_weight", "post_attention_layernorm", hidden)
    if model.num_moe_experts is not None:
        yield from _experts(layer, theirs, model)
        return
    for kind, width in _kinds(hidden, model.add_bias_linear):
        gate, linear = (
            Part(f"{theirs}.mlp.{name}.{kind}", (ffn, *width), (Rows(0, start, ffn),))
            for name, start in (("gate_proj", 0), ("up_proj", ffn))
        )
        yield stacked(f"{mlp}.linear_fc1.{kind}", (2 * ffn, *width), gate, linear)
    for kind, width in _kinds(ffn, model.add_bias_linear):
        name = f"{theirs}.mlp.down_proj.{kind}"
        yield _same(f"{mlp}.linear_fc2.{kind}", name, (hidden, *width), layer, sizes.layers)


def _experts(layer: int, theirs: str, model: ModelSection) -> Iterator[Unit]:
    """Yield the mixture of experts of a layer of Mixtral and Qwen-MoE."""
    experts, hidden, layers = model.num_moe_experts or 0, model.hidden_size, model.num_layers
    ours, mixtral = "decoder.layers.mlp", expert_family(model) == "mixtral"
    mixture = f"{theirs}.{'block_sparse_moe' if mixtral else 'mlp'}"
    names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")

    def mlp(prefix: str, tensor: str, ffn: int, expert: int | None) -> Iterator[Unit]:
        stack = (layers,) if expert is None else (layers, experts)
        gate, linear = (
            Part(f"{prefix}.{name}.weight", (ffn, hidden), (Rows(0, start, ffn),))
            for name, start in zip(names, (0, ffn), strict=False)
        )
        yield Unit(f"{tensor}.linear_fc1.weight", (*stack, 2 * ffn, hidden), layer, (gate, linear), expert)
        down = Part(f"{prefix}.{names[2]}.weight", (hidden, ffn), (Rows(0, 0, hidden),))
        yield Unit(f"{tensor}.linear_fc2.weight", (*stack, hidden, ffn), layer, (down,), expert)

    yield _same(f"{ours}.router.weight", f"{mixture}.gate.weight", (experts, hidden), layer, layers)
    for expert in range(experts):
        yield from mlp(f"{mixture}.experts.{expert}", f"{ours}.experts.experts", expert_width(model), expert)
    if model.moe_shared_expert_intermediate_size is not None:
        width = model.moe_shared_expert_intermediate_size
        yield from mlp(f"{mixture}.shared_expert", f"{ours}.shared_experts", width, None)
        gate = f"{ours}.shared_experts.gate_weight"
        yield _same(gate, f"{mixture}.shared_expert_gate.weight", (1, hidden), layer, layers)


def _gpt2_layer(layer: int, sizes: _Sizes) -> Iterator[Unit]:
    """Yield a layer of GPT-2, whose matrices are stored as [inputs, outputs]."""
    theirs, attention, mlp = f"transformer.h.{layer}", "decoder.layers.self_attention", "decoder.layers.mlp"
    hidden, ffn = sizes.hidden, sizes.ffn

    def linear(tensor: str, name: str, outputs: int, inputs: int, rows: tuple[Rows, ...]) -> Iterator[Unit]:
        for kind, ours, stored in (("weight", (outputs, inputs), (inputs, outputs)), ("bias", (outputs,), (outputs,))):
            part = Part(f"{theirs}.{name}.{kind}", stored, rows, turned=kind == "weight")
            yield Unit(f"{tensor}.{kind}", (sizes.layers, *ours), layer, (part,))

    def norm(tensor: str, name: str) -> Iterator[Unit]:
        for kind in ("weight", "bias"):
            ours = f"{tensor}.layer_norm_{kind}"
            yield _same(ours, f"{theirs}.{name}.{kind}", (hidden,), layer, sizes.layers)

    (fused,) = _query_key_value(sizes, apart=False)
    yield from norm(f"{attention}.linear_qkv", "ln_1")
    yield from linear(f"{attention}.linear_qkv", "attn.c_attn", 3 * hidden, hidden, fused)
    yield from linear(f"{attention}.linear_proj", "attn.c_proj", hidden, hidden, (Rows(0, 0, hidden),))
    yield from norm(f"{mlp}.linear_fc1", "ln_2")
    yield from linear(f"{mlp}.linear_fc1", "mlp.c_fc", ffn, hidden, (Rows(0, 0, ffn),))
    yield from linear(f"{mlp}.linear_fc2", "mlp.c_proj", hidden, ffn, (Rows(0, 0, hidden),))


def _same(tensor: str, name: str, shape: Shape, layer: int | None, layers: int = 0) -> Unit:
    """Make a unit that is one tensor of theirs as it is."""
    whole = shape if layer is None else (layers, *shape)
    return Unit(tensor, whole, layer, (Part(name, shape, (Rows(0, 0, shape[0]),)),))


def _kinds(width: int, biased: bool) -> list[tuple[str, Shape]]:
    """Name a linear layer's weight and bias, each with what follows its rows in its shape."""
    return [("weight", (width,)), ("bias", ())] if biased else [("weight", (width,))]


def _query_key_value(sizes: _Sizes, apart: bool) -> list[tuple[Rows, ...]]:
    """Place queries, keys and values, of which ours has one query group after the other.

    Args:
        apart: theirs are three tensors; otherwise one, all queries first, then all keys, then all values.
    """
    head, groups, each = sizes.head, sizes.groups, sizes.heads // sizes.groups
    found: list[tuple[Rows, ...]] = []
    before = 0
    for heads, first in ((each, 0), (1, each), (1, each + 1)):
        count, start = heads * head, first * head
        step = (each + 2) * head
        found.append(tuple(Rows(before + one * count, one * step + start, count) for one in range(groups)))
        before += 0 if apart else groups * count
    return found if apart else [tuple(rows for part in found for rows in part)]
