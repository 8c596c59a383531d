"""Where in a checkpoint of Megatron-LM's a tensor of ours lies. Pure.

Both have megatron-core's names. A checkpoint may have layers, and experts, as axes of one tensor or by their numbers in
the names, halves of a gated MLP's first matrix as two tensors, and two names for a norm before a linear layer, which
Transformer Engine may make a part of that layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from liver_slurm.engine.hf.tensors import Shape, Unit

VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
"""Tensors whose rows are tokens, padded to different numbers."""
_LAYERS, _EXPERTS = "decoder.layers.", ".experts.experts."
_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}
"""Where a norm is in a name, and where it is if it is no part of the linear layer."""


class Source(NamedTuple):
    """Rows of a unit of ours, from ``first`` on: a part of a tensor of theirs, after the indices ``place``."""

    tensor: str
    place: Shape
    first: int
    rows: int


def spellings(tensor: str) -> Iterator[str]:
    """Yield the names that a tensor of ours may have."""
    yield tensor
    for fused, apart in _NORMS.items():
        if fused in tensor:
            yield tensor.replace(fused, apart)


def find_sources(there: Collection[str], unit: Unit, kind: str = "") -> list[Source]:
    """Find a unit of ours among their tensors; empty: it is not there.

    Args:
        kind: what their names begin with, of the optimizer's state.
    """
    found = (sources_of(there, name, unit, kind) for name in spellings(unit.tensor))
    return next(filter(None, found), [])


def sources_of(there: Collection[str], name: str, unit: Unit, kind: str = "") -> list[Source]:
    """Find a unit of ours under one of its names; arguments and result as of :func:`find_sources`."""
    rows = unit.shape[0]
    for spelled, place in _places(kind + name, unit.place):
        if spelled in there:
            return [Source(spelled, place, 0, rows)]
        halves = [f"{spelled}_{half}" for half in ("w", "v")]
        if all(half in there for half in halves):
            return [Source(one, place, number * rows // 2, rows // 2) for number, one in enumerate(halves)]
    return []


def _places(name: str, place: Shape) -> Iterator[tuple[str, Shape]]:
    """Yield the names that number less and less by axes, and what is left of the place."""
    yield name, place
    if place:
        name = name.replace(_LAYERS, f"{_LAYERS}{place[0]}.", 1)
        yield name, place[1:]
    if len(place) > 1:
        yield name.replace(_EXPERTS, f"{_EXPERTS}{place[1]}.", 1), ()
