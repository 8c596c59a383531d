"""Which layouts a model can have, and which of them a run may take. Pure: the coordinator asks it too."""

from __future__ import annotations

from liver_slurm.config.schema import JobConfig, LiveSection, ModelSection, TrainSection
from liver_slurm.config.units import standby_units
from liver_slurm.parallel.layout import Layout


def live_workers(live: LiveSection) -> int:
    """Workers of the live job, all components together."""
    return sum(component.nodes * component.tasks_per_node for component in live.component)


def impossible(layout: Layout, model: ModelSection, train: TrainSection) -> str | None:
    """Why the model cannot have this layout; None: it can. Sizes that a model provider leaves out are not judged."""
    heads, tp = model.num_attention_heads, layout.tp
    groups = model.num_query_groups or heads
    ffn = model.ffn_hidden_size or 4 * model.hidden_size
    if heads % tp:
        return f"tp{tp} does not divide num_attention_heads {heads}"
    if groups and groups % tp and tp % groups:
        return f"of tp{tp} and num_query_groups {groups} neither divides the other"
    if ffn % tp:
        return f"tp{tp} does not divide ffn_hidden_size {ffn}"
    if model.num_layers and layout.pp > model.num_layers:
        return f"pp{layout.pp} is more than num_layers {model.num_layers}"
    microbatches = train.global_batch_size // train.micro_batch_size
    if layout.dp > microbatches:
        return f"dp{layout.dp} is more than the {microbatches} microbatches of one step"
    return None


def stage_layers(layers: int, stages: int) -> list[int]:
    """Layers of each pipeline stage: equal where possible, else the most even split that megatron-core can express.

    It can give the first and the last stage numbers of their own; all stages between have the same.
    """
    if layers < stages:
        raise ValueError(f"{layers} layers cannot fill {stages} pipeline stages")
    if stages == 1 or layers % stages == 0:
        return [layers // stages] * stages
    if stages == 2:
        return [layers - layers // 2, layers // 2]
    splits = []
    for middle in range(1, (layers - 2) // (stages - 2) + 1):
        ends = layers - middle * (stages - 2)
        splits.append([ends - ends // 2, *[middle] * (stages - 2), ends // 2])
    return min(splits, key=lambda split: (max(split), max(split) - min(split)))


def feasible_layouts(config: JobConfig, workers: int) -> list[Layout]:
    """Layouts that the run may take with ``workers`` workers at hand, of which it need not use all.

    Largest first; layouts of the same size in the job file's order, or, with ``auto``, in (tp, pp, dp) order. Never
    more than ``elastic.max_workers`` workers.
    """
    bound = min(workers, config.elastic.max_workers or workers)
    if config.elastic.layouts == "auto":
        candidates = _all_layouts(config, bound)
    else:
        candidates = [Layout.parse(text) for text in config.elastic.layouts]
    fitting = [one for one in candidates if one.size <= bound and not impossible(one, config.model, config.train)]
    return sorted(fitting, key=lambda one: -one.size)


def max_tp(config: JobConfig) -> int:
    """Largest tp that ``auto`` considers: tensor parallel groups stay inside every kind of node."""
    per_node = [component.tasks_per_node for component in config.live.component]
    if config.standby.max_jobs:
        per_node += [unit.tasks_per_node for unit in standby_units(config.standby)]
    return config.elastic.max_tp or min(per_node, default=1)


def _all_layouts(config: JobConfig, bound: int) -> list[Layout]:
    microbatches = config.train.global_batch_size // config.train.micro_batch_size
    return [
        Layout(tp, pp, dp)
        for tp in range(1, min(max_tp(config), bound) + 1)
        for pp in range(1, min(config.model.num_layers or bound, bound // tp) + 1)
        for dp in range(1, min(bound // (tp * pp), microbatches) + 1)
    ]
