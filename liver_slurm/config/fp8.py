"""What does not go with ``train.fp8``, and which layouts its matrix products cannot be cut into."""

from __future__ import annotations

from collections.abc import Iterator

from liver_slurm.config.problem import Problem
from liver_slurm.config.schema import ModelSection, TrainSection
from liver_slurm.parallel.layout import Layout

FP8_SINCE = (8, 9)
"""Compute capability of the first cards that have matrix products in FP8."""
_UNIT = 16
"""Each dimension of a matrix product in FP8 is a multiple of this, as each is summed over in one of its derivatives."""


def fp8_problems(model: ModelSection, train: TrainSection) -> Iterator[Problem]:
    """Find what keeps a model from being computed in FP8."""
    if not train.fp8 or train.loop is not None:
        return
    if train.precision != "bf16":
        yield Problem("train.fp8", 'true is for bf16; allowed: train.precision = "bf16" too, or false')
    other = "provider" if model.provider else "extra" if model.extra else None
    if other:
        instead = "; write train.recompute" if all(key.startswith("recompute_") for key in model.extra) else ""
        text = f"true is for this product's own layers, which model.{other} replaces; allowed: false"
        yield Problem("train.fp8", text + (instead if other == "extra" else ""))


def fp8_reasons(layout: Layout, width: int, model: ModelSection, train: TrainSection) -> Iterator[str]:
    """Find the dimensions of products that FP8 cannot have on each rank.

    Args:
        width: of one head.
    """
    if not train.fp8 or model.provider is not None:
        return
    heads, tp = model.num_attention_heads, layout.tp
    groups = model.query_groups
    inner, key = model.ffn_width, "ffn_hidden_size"
    if model.num_moe_experts is not None:
        inner, key = model.moe_shared_expert_intermediate_size or 0, "moe_shared_expert_intermediate_size"
    tokens = train.micro_batch_size * train.seq_length // layout.cp
    for text, size in (
        ("hidden_size", model.hidden_size),
        (f"the width of all queries, keys and values over tp{tp}", width * (heads + 2 * groups) // tp),
        (f"the width of all heads over tp{tp}", width * heads // tp),
        (f"{key} over tp{tp}", inner // tp),
        (f"the tokens of a microbatch over cp{layout.cp}", tokens),
    ):
        if size % _UNIT:
            yield f"with train.fp8, {text} must be a multiple of {_UNIT}, and is {size}"
