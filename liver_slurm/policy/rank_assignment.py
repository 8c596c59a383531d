"""Which rank each member of the next world gets: what the coordinator knows, put into numbering's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from liver_slurm.config.schema import JobConfig
from liver_slurm.config.shapes import stage_layers
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy.cost_model import layer_weights
from liver_slurm.reshard.rank_mapping import Depth, number
from liver_slurm.reshard.tensors import moment_bytes, moment_dtype_of, moments_of


def rank_order(
    live: World, layout: Layout, members: Sequence[str], hosts: Mapping[str, str], config: JobConfig
) -> tuple[tuple[str, ...], str]:
    """Return the next world's members in rank order, and why in this one.

    Args:
        live: the live world.
        layout: the next world's.
        members: its members, survivors in the order of their ranks, then joiners; the order that they keep if no other
            one is better.
        hosts: where each of them runs.
        config: the job.
    """
    old_rank = {member: rank for rank, member in enumerate(live.members)}
    kept = [old_rank.get(member) for member in members]
    order, reason = number(
        live.layout, layout, kept, [hosts[member] for member in members], depth(config, live.layout, layout)
    )
    return tuple(members[index] for index in order), reason


def depth(config: JobConfig, source: Layout, target: Layout) -> Depth:
    """Return how much of the job's state lies where along the model's depth, in both layouts."""
    moments = moment_bytes(moments_of(config.train), moment_dtype_of(config.train))
    weight, state = (2, 4 + moments) if config.train.precision != "fp32" else (4, moments)
    if config.stream.mode != "pause":
        # Only masters and moments move: weights follow from the masters.
        weight, state = 0, 4 + moments
    return Depth(
        source=_bounds(config, source),
        target=_bounds(config, target),
        weight=weight,
        state=state,
        cut=config.train.distributed_optimizer,
    )


def _bounds(config: JobConfig, layout: Layout) -> list[float]:
    """Return the parameters before each virtual stage's first one, and all of them.

    A provider may leave sizes out: then all layers are alike, and stages too where the number of layers is not known.
    """
    model, count = config.model, layout.virtual_stages
    if not model.num_layers:
        return [stage / count for stage in range(count + 1)]
    hidden = model.hidden_size or 0
    layer = layer_weights(config, hidden) or 1.0
    stages = [layers * layer for layers in stage_layers(model.num_layers, count)]
    words = float((model.vocab_size or 0) * hidden)
    stages[0] += words
    if layout.pp > 1 or not model.share_embeddings_and_output_weights:
        stages[-1] += words
    return [0.0, *accumulate(stages)]
