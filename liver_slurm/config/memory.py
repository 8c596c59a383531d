"""How much memory of its GPU a rank needs in a layout, before anything is built. Pure arithmetic on the job file.

State of a weight, bytes: itself, 4 for its gradient's sum, with bf16 4 for its master, and what its optimizer keeps;
the distributed optimizer divides the last two over the ranks that hold the same weights. Activations that a layer keeps
for the backward pass, in elements of each of a rank's tokens (after Korthikanti et al. 2022, with what torch.compile
saves of this product's own layers; h: hidden size, q and k: width of a rank's queries and keys, f: of a rank's MLP)::

    norms and residuals     2h/tp + 2h          their outputs are gathered with sequence parallelism
    attention               3q + 3k             of one product; queries and keys again once they are rotated; outputs
                            with attention_dropout 3 · heads/tp · sequence more
    MLP                     3f, ungated 2f
    experts                 topk · (3f + 3h), and a copy of their weights in one piece

for each microbatch that is under way: pp - stage with 1F1B (Narayanan et al. 2021), more of fewer layers where stages
are interleaved. On top comes the largest of what is there for a moment: the logits with their gradients, or one layer.

Compared with peaks on an H200 in docs/models.md. Not counted are CUDA's own memory and what a change of layout takes of
the rest (``stream.memory_limit``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from liver_slurm.config.schema import JobConfig
from liver_slurm.config.shapes import (
    BYTE_VOCABULARY,
    expert_weights,
    expert_width,
    head_width,
    padded_vocabulary,
    stage_layers,
)
from liver_slurm.config.units import standby_units
from liver_slurm.parallel.layout import Layout

GIB = 1 << 30
_OF_TYPE = {"h200": 141, "h100": 80, "h800": 80, "b200": 180, "l40s": 48, "a40": 48, "a30": 24, "a10": 24, "l4": 24}
"""Gigabytes (GiB) of a GPU, by its name in a type of Slurm's; others come in several sizes."""
_WORKSPACE = 64 << 20
"""Bytes of libraries' workspaces."""


class RankMemory(NamedTuple):
    """Bytes of a rank, of the pipeline stage that needs most."""

    weights: int
    gradients: int
    optimizer: int
    """Masters, moments, and averages."""
    activations: int
    """What one step has beside its state, at its peak."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)

    def __str__(self) -> str:
        parts = zip(self._fields, self, strict=True)
        return f"{gibibytes(self.total)} ({', '.join(f'{name} {gibibytes(size)}' for name, size in parts)})"


def gibibytes(size: float) -> str:
    """Write bytes as GiB, or MiB below one, with three digits where it is below 1,000."""
    number, unit = (size / GIB, "GiB") if size >= GIB else (size / 2**20, "MiB")
    return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"


def too_large(layout: Layout, config: JobConfig) -> str | None:
    """Say why a layout does not fit on the job's GPUs; None: it does, or that cannot be told."""
    if (gpu := gpu_memory(config)) is None or (needed := rank_memory(config, layout)) is None:
        return None
    size, source = gpu
    if needed.total <= size:
        return None
    return f"does not fit on {gibibytes(size)} ({source}): a rank needs about {needed}"


def gpu_memory(config: JobConfig) -> tuple[int, str] | None:
    """Return the bytes of the smallest GPU of a job, and which key says so; None: none does, or it has no GPUs."""
    if not any(component.gpus_per_task for component in config.live.component):
        return None
    if config.train.gpu_memory is not None:
        return config.train.gpu_memory, "train.gpu_memory"
    known = [(size * GIB, f"gpu_type {name}") for name in _gpu_types(config) if (size := _gigabytes(name))]
    return min(known, default=None)


def _gpu_types(config: JobConfig) -> Iterator[str]:
    standby = standby_units(config.standby) if config.standby.max_jobs else ()
    used = [(part.gpus_per_task, part.gpu_type) for part in config.live.component]
    used += [(part.gpus_per_task, part.gpu_type) for part in standby]
    yield from (name for number, name in used if number and name is not None)


def _gigabytes(name: str) -> int | None:
    """Return what a type of GPU has, of a name such as h100 or a100-80gb; None: it does not say."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    for word in words:
        if found := re.fullmatch(r"(\d+)gb?", word):
            return int(found[1])
    return next((_OF_TYPE[word] for word in words if word in _OF_TYPE), None)


def rank_memory(config: JobConfig, layout: Layout) -> RankMemory | None:
    """Return what a rank of a layout needs, in the stage that needs most; None: ``[model]`` alone does not tell."""
    model = config.model
    if config.train.loop is not None or model.provider is not None or model.extra or not model.num_layers:
        return None
    return max((_stage(config, layout, stage) for stage in range(layout.pp)), key=lambda one: one.total)


class Weights(NamedTuple):
    """Numbers of weights of one rank, by how many ranks hold the same: all that hold a dense part, or an expert's."""

    dense: float
    experts: float

    def times(self, factor: float) -> Weights:
        """Return so many of them."""
        return Weights(self.dense * factor, self.experts * factor)


def rank_layer_weights(config: JobConfig, layout: Layout) -> Weights:
    """Count a rank's weights of one layer, norms and biases too; the cost model counts a whole layer's without them."""
    model, tp = config.model, layout.tp
    hidden, head = model.hidden_size, head_width(model)
    queries, keys = _widths(config, layout)
    vectors = 2 if model.normalization == "LayerNorm" else 1
    norms = vectors * (2 * hidden + (2 * head if model.qk_layernorm else 0))
    biases = (queries + 2 * keys if model.add_bias_linear or model.add_qkv_bias else 0) + (
        2 * hidden + _up_rows(config) * model.ffn_width / tp if model.add_bias_linear else 0
    )
    attention = hidden * (2 * queries + 2 * keys) + norms + biases
    matrices = _up_rows(config) + 1
    if model.num_moe_experts is None:
        return Weights(attention + matrices * hidden * model.ffn_width / tp, 0)
    shared = matrices * hidden * (model.moe_shared_expert_intermediate_size or 0) / tp
    router = model.num_moe_experts * hidden + (hidden if model.moe_shared_expert_gate else 0)
    experts = model.num_moe_experts / layout.ep * expert_weights(model) / layout.etp
    return Weights(attention + shared + router, experts)


def _up_rows(config: JobConfig) -> int:
    """Return how often an MLP's width goes into its first product's rows."""
    return 2 if config.model.gated_linear_unit else 1


def _widths(config: JobConfig, layout: Layout) -> tuple[float, float]:
    """Return the widths of a rank's queries and of its keys; with more ranks than groups several have the same keys."""
    model, head = config.model, head_width(config.model)
    return model.num_attention_heads * head / layout.tp, max(model.query_groups / layout.tp, 1) * head


def stage_weights(config: JobConfig, layout: Layout, stage: int) -> Weights:
    """Count the weights of a rank of a pipeline stage."""
    layers = rank_layer_weights(config, layout).times(_layers(config, layout, stage))
    hidden, norm = config.model.hidden_size, 2 if config.model.normalization == "LayerNorm" else 1
    last = norm * hidden if stage == layout.pp - 1 else 0
    return layers._replace(dense=layers.dense + _tables(config, layout, stage) + last)


def _tables(config: JobConfig, layout: Layout, stage: int) -> float:
    """Count a rank's weights of embeddings and of the output."""
    model, ends = config.model, 0.0
    table = _vocabulary(config) * model.hidden_size / layout.tp
    if stage == 0:
        ends += table
        if model.position_embedding_type == "learned_absolute":
            ends += (model.max_position_embeddings or config.train.seq_length) * model.hidden_size
    if stage == layout.pp - 1 and not (stage == 0 and model.share_embeddings_and_output_weights):
        ends += table
    return ends


def _vocabulary(config: JobConfig) -> int:
    return padded_vocabulary(config.model.vocab_size or BYTE_VOCABULARY)


def _layers(config: JobConfig, layout: Layout, stage: int) -> int:
    """Count a stage's layers, of all its chunks."""
    if layout.vpp > 1:
        return config.model.num_layers // layout.pp
    return stage_layers(config.model.num_layers, layout.pp)[stage]


def _stage(config: JobConfig, layout: Layout, stage: int) -> RankMemory:
    train, held = config.train, stage_weights(config, layout, stage)
    element = 4 if train.precision == "fp32" else 2
    moment = 2 if train.moments_precision == "bf16" else 4
    kept = moment * (2 if train.optimizer == "adam" else 1) + (4 if element == 2 else 0) + (4 if train.ema_decay else 0)
    more = held.times(kept)
    if train.optimizer == "muon":  # AdamW has the embeddings; vectors, too, which are next to nothing
        more = more._replace(dense=more.dense + moment * _tables(config, layout, stage))
    shared = (layout.dense_replicas, layout.edp) if train.distributed_optimizer else (1, 1)
    return RankMemory(
        round(sum(held) * element),
        round(sum(held) * 4),
        round(sum(size / ranks for size, ranks in zip(more, shared, strict=True))),
        round(_activations(config, layout, stage) * element + _WORKSPACE),
    )


def _activations(config: JobConfig, layout: Layout, stage: int) -> float:
    """Return the elements that a step has at its peak, in its stage, beside its state."""
    model, train = config.model, config.train
    tokens = train.seq_length * train.micro_batch_size / layout.cp
    kept, whole = _layer(config, layout)
    under_way = _under_way(config, layout, stage) * _layers(config, layout, stage) / layout.vpp * tokens
    moment = tokens * (_mlp(config, layout) + 4 * model.hidden_size)
    if model.attention_dropout:
        moment += tokens * 2 * model.num_attention_heads / layout.tp * train.seq_length
    if train.recompute != "none":
        moment = max(moment, tokens * whole)
    if stage == layout.pp - 1:
        logits = _vocabulary(config) / layout.tp
        moment = max(moment, (2 * tokens + model.hidden_size) * logits)
    copies = 0.0
    if model.num_moe_experts is not None and train.recompute != "full":
        copies = rank_layer_weights(config, layout).experts * under_way / tokens
    return under_way * kept + moment + copies


def _under_way(config: JobConfig, layout: Layout, stage: int) -> int:
    """Count the microbatches, of a chunk each, whose activations a stage keeps at the same time."""
    train, after = config.train, layout.pp - stage - 1
    own = -(-train.global_batch_size // train.micro_batch_size // layout.dp)
    if layout.vpp == 1:
        return min(after + 1, own)
    return min(2 * after + (layout.vpp - 1) * layout.pp + 1, own * layout.vpp)


def _layer(config: JobConfig, layout: Layout) -> tuple[float, float]:
    """Return the elements that a layer keeps for a token until the backward pass, and those without recomputation."""
    model, train = config.model, config.train
    hidden, (queries, keys) = model.hidden_size, _widths(config, layout)
    residual, norm = hidden / layout.tp, hidden
    attention = 2 * queries + 2 * keys
    if model.position_embedding_type == "rope":
        attention += queries + keys
    if layout.cp > 1:
        attention += 2 * keys * layout.cp
    if model.attention_dropout:  # weights are there as such, and what is left of them
        attention += 3 * model.num_attention_heads / layout.tp * train.seq_length
    if train.fp8:
        norm = 0  # made again, as the MLP's activation is
    mlp = _mlp(config, layout) - (model.ffn_width / layout.tp if train.fp8 else 0)
    whole = 2 * residual + 2 * norm + attention + mlp
    if not train.compile:
        whole += 7 * hidden + model.ffn_width  # what is in fp32 for a moment, and each operation's own input
    kept = {"none": whole, "selective": 2 * residual + norm + attention, "full": residual}
    return kept[train.recompute], whole


def _mlp(config: JobConfig, layout: Layout) -> float:
    model, rows = config.model, _up_rows(config) + 1
    if model.num_moe_experts is None:
        return rows * model.ffn_width / layout.tp
    shared = rows * (model.moe_shared_expert_intermediate_size or 0) / layout.tp
    return shared + model.moe_router_topk * (rows * expert_width(model) / layout.etp + 3 * model.hidden_size)
