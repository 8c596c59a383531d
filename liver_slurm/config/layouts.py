"""Which layouts a model can have, and which of them a run may take. Pure: the coordinator asks it too."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator

from liver_slurm.base.once import OncePer
from liver_slurm.config.fp8 import fp8_reasons
from liver_slurm.config.memory import too_large
from liver_slurm.config.schema import DataSection, JobConfig, LiveSection, ModelSection, TrainSection
from liver_slurm.config.shapes import BYTE_VOCABULARY, VOCABULARY_MULTIPLE, expert_width, head_width, padded_vocabulary
from liver_slurm.config.units import standby_units
from liver_slurm.parallel.layout import Layout

GROUPED_BYTES = 16
"""Rows of what a grouped matrix product of experts reads begin at multiples of this."""


def live_workers(live: LiveSection) -> int:
    """Count the workers of the guaranteed job, all components together."""
    return sum(component.nodes * component.tasks_per_node for component in live.component)


def refused(layout: Layout, config: JobConfig) -> str | None:
    """Say why the run cannot take this layout, as the model cannot have it or the GPUs are too small; None: it can."""
    return impossible(layout, config.model, config.data, config.train) or too_large(layout, config)


def impossible(layout: Layout, model: ModelSection, data: DataSection, train: TrainSection) -> str | None:
    """Say why the model cannot have this layout; None: it can.

    Sizes that a model provider leaves out are not judged, nor is what only the built-in model has.
    """
    if train.loop is not None:
        return next(_loop_reasons(layout, train), None)
    for reason in _tp_reasons(layout.tp, model, data):
        return reason
    for reason in _cp_reasons(layout, model, train):
        return reason
    for reason in _expert_reasons(layout, model, train):
        return reason
    for reason in _interleaving_reasons(layout, model, train):
        return reason
    for reason in _own_layer_reasons(layout.tp, model, data, train):
        return reason
    for reason in fp8_reasons(layout, head_width(model), model, train):
        return reason
    if model.num_layers and layout.pp > model.num_layers:
        return f"pp{layout.pp} is more than num_layers {model.num_layers}"
    microbatches = train.global_batch_size // train.micro_batch_size
    if layout.dp > microbatches:
        return f"dp{layout.dp} is more than the {microbatches} microbatches of one step"
    return None


def _loop_reasons(layout: Layout, train: TrainSection) -> Iterator[str]:
    """Find what a loop of the user's own cannot have: dp replicas, each of them divided among tp ranks, are all."""
    for axis in ("pp", "cp"):  # and with pp all that needs it
        if getattr(layout, axis) > 1:
            yield f"{axis}{getattr(layout, axis)} is not for train.loop, which has dp replicas of tp ranks each"
    microbatches = min(train.rampup_batch_size[:1] or (train.global_batch_size,)) // train.micro_batch_size
    if layout.size > microbatches:
        yield f"its {layout.size} ranks are more than the {microbatches} microbatches of one step"


def _tp_reasons(tp: int, model: ModelSection, data: DataSection) -> Iterator[str]:
    """Find the dimensions that megatron-core would cut into ``tp`` equal parts and cannot."""
    heads = model.num_attention_heads
    groups, ffn = model.query_groups, model.ffn_width
    if heads % tp:
        yield f"tp{tp} does not divide num_attention_heads {heads}"
    if groups and groups % tp and tp % groups:
        yield f"of tp{tp} and num_query_groups {groups} neither divides the other"
    if ffn % tp:
        yield f"tp{tp} does not divide ffn_hidden_size {ffn}"
    if model.provider is not None:
        return
    width = head_width(model)
    if width * (heads + 2 * groups) % tp:
        yield f"tp{tp} does not divide the {heads} heads and 2 × {groups} query groups of width {width}, together"
    size = model.vocab_size or (BYTE_VOCABULARY if data.tokenizer == "byte" else None)
    if size is not None and padded_vocabulary(size) % tp:
        yield f"tp{tp} does not divide {padded_vocabulary(size)}, the vocabulary padded to {VOCABULARY_MULTIPLE}s"
    if size is None and VOCABULARY_MULTIPLE % tp:
        yield f"tp{tp} may not divide the padded vocabulary: write the tokenizer's as model.vocab_size"


def _cp_reasons(layout: Layout, model: ModelSection, train: TrainSection) -> Iterator[str]:
    """Find what keeps this product's own layers from computing a part of a sequence each."""
    if layout.cp == 1:
        return
    if model.provider is not None or model.extra:
        yield f"cp{layout.cp} is for models without {'model.provider' if model.provider else 'model.extra'}"
    if train.seq_length % (layout.cp * layout.tp):
        parts = f"cp{layout.cp}" if layout.tp == 1 else f"tp{layout.tp} times cp{layout.cp}"
        yield f"{parts} does not divide seq_length {train.seq_length}"
    groups = model.query_groups
    if groups < layout.tp:
        yield f"with cp{layout.cp}, tp{layout.tp} may not be more than the {groups} query groups"


def _expert_reasons(layout: Layout, model: ModelSection, train: TrainSection) -> Iterator[str]:
    """Find what keeps this product's own layer of experts from being used or cut."""
    tp, ep, etp, experts = layout.tp, layout.ep, layout.etp, model.num_moe_experts
    own = f"etp{etp}" if etp != tp else f"tp{tp}"
    if experts is None or model.provider is not None:
        if ep > 1 or etp != tp:
            yield f"{f'ep{ep}' if ep > 1 else own} is for models of model.num_moe_experts"
        return
    if experts % ep:
        yield f"ep{ep} does not divide num_moe_experts {experts}"
    if layout.uneven_experts:
        yield layout.uneven_experts
    if expert_width(model) % etp:
        yield f"{own} does not divide moe_ffn_hidden_size {expert_width(model)}"
    shared = model.moe_shared_expert_intermediate_size or 0
    if shared % tp:
        yield f"tp{tp} does not divide moe_shared_expert_intermediate_size {shared}"
    unit = GROUPED_BYTES // (2 if train.precision == "bf16" else 4)
    for key, width in (("hidden_size", model.hidden_size), ("moe_ffn_hidden_size", expert_width(model) // etp)):
        if width % unit:
            yield f"with experts, {key} must be a multiple of {unit}{f' on each of {own} ranks' if etp > 1 else ''}"
    groups = model.query_groups
    if groups < tp:
        yield f"with experts, tp{tp} may not be more than the {groups} query groups"
    if train.seq_length % tp:
        yield f"with experts, tp{tp} must divide seq_length {train.seq_length}"


def _interleaving_reasons(layout: Layout, model: ModelSection, train: TrainSection) -> Iterator[str]:
    """Find what keeps stages of several chunks of layers from taking turns, as megatron-core's schedule has them do."""
    vpp, pp, dp = layout.vpp, layout.pp, layout.dp
    if vpp == 1:
        return
    if pp == 1:
        yield f"vpp{vpp} needs a pp of at least 2"
    if model.provider is not None:
        yield f"vpp{vpp} is for models without model.provider"
    if model.num_layers % layout.virtual_stages:
        yield f"pp{pp} times vpp{vpp} does not divide num_layers {model.num_layers}"
    microbatches = train.global_batch_size // train.micro_batch_size
    if microbatches % (dp * pp):
        parts = f"pp{pp}" if dp == 1 else f"dp{dp} times pp{pp}"
        yield f"with vpp{vpp}, {parts} must divide the {microbatches} microbatches of one step"


def _own_layer_reasons(tp: int, model: ModelSection, data: DataSection, train: TrainSection) -> Iterator[str]:
    """Find what keeps this product's own layers, which know of documents, dropout and FP8, from being used."""
    needing = [f"model.{key}" for key in ("hidden_dropout", "attention_dropout") if getattr(model, key)]
    if data.resets:
        needing.insert(0, "data.reset_position_ids or reset_attention_mask")
    if train.fp8:
        needing.append("train.fp8")
    if model.provider is not None or not needing:
        return
    needs = needing[0]
    groups = model.query_groups
    if groups < tp:
        yield f"with {needs}, tp{tp} may not be more than {groups} query groups"
    if train.seq_length % tp:
        yield f"with {needs}, tp{tp} must divide seq_length {train.seq_length}"


class _Table:
    """The possible layouts of one job file, largest first; ``auto`` has them up to a number of workers."""

    def __init__(self, config: JobConfig) -> None:
        self._config = config
        self._made_for = 0
        self._layouts: list[Layout] = []
        self._sizes: list[int] = []
        """Of each of them, negative: ascending."""

    def up_to(self, bound: int) -> list[Layout]:
        """List those of at most ``bound`` workers."""
        if bound > self._made_for:
            self._make(bound)
        return self._layouts[bisect_left(self._sizes, -bound) :]

    def _make(self, bound: int) -> None:
        config = self._config
        if config.elastic.layouts == "auto":
            # Workers come one by one, thousands maybe: not all is to be made again for each.
            self._made_for = 2 * bound if self._made_for else bound
            candidates = _all_layouts(config, self._made_for)
        else:
            self._made_for = sys.maxsize
            candidates = [Layout.parse(text) for text in config.elastic.layouts]
        possible = [one for one in candidates if not refused(one, config)]
        self._layouts = sorted(possible, key=lambda one: -one.size)
        self._sizes = [-one.size for one in self._layouts]


_TABLES = OncePer(_Table)


def feasible_layouts(config: JobConfig, workers: int) -> list[Layout]:
    """List the layouts that the run may take with ``workers`` workers at hand; it need not use all of them.

    Largest first; layouts of the same size in the job file's order, or, with ``auto``, in (tp, cp, pp, vpp, dp, etp,
    ep) order. Never more than ``elastic.max_workers`` workers.
    """
    return _TABLES(config).up_to(min(workers, config.elastic.max_workers or workers))


def max_tp(config: JobConfig) -> int:
    """Return the largest tp that ``auto`` considers, so that tensor parallel groups stay inside every kind of node."""
    if config.train.loop is not None:
        return config.elastic.max_tp or 1
    per_node = [component.tasks_per_node for component in config.live.component]
    if config.standby.max_jobs:
        per_node += [unit.tasks_per_node for unit in standby_units(config.standby)]
    return config.elastic.max_tp or min(per_node, default=1)


def _all_layouts(config: JobConfig, bound: int) -> list[Layout]:
    microbatches = config.train.global_batch_size // config.train.micro_batch_size
    return [
        Layout(tp, pp, dp, cp, ep, vpp, etp)
        for tp in range(1, min(max_tp(config), bound) + 1)
        for cp in range(1, min(config.elastic.max_cp, bound // tp) + 1)
        for pp in range(1, min(config.model.num_layers or bound, bound // (tp * cp)) + 1)
        for vpp in range(1, (config.elastic.max_vpp if pp > 1 else 1) + 1)
        for dp in range(1, min(bound // (tp * cp * pp), microbatches) + 1)
        for etp in _expert_tensor_sizes(config, tp, tp * cp * dp)
        for ep in range(1, min(config.elastic.max_ep, tp * cp * dp // etp) + 1)
    ]


def _expert_tensor_sizes(config: JobConfig, tp: int, stage: int) -> Iterable[int]:
    """Return what ``auto`` tries of etp in a layout of this tp, with so many ranks in a pipeline stage."""
    most = config.elastic.max_etp
    if most is None or config.model.num_moe_experts is None:
        return (tp,)
    return range(1, min(most, stage) + 1)
