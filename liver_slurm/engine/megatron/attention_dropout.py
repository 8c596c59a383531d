"""Attention with dropout of its weights: what is dropped is a function of sample, layer, head and the two places.

Fused kernels draw from torch's random state, whose numbers depend on how ranks divide heads and sequences. So the
weights are computed as such here, which takes memory and time with the square of the sequence, and the generator is
that of :mod:`liver_slurm.engine.megatron.dropout`: alike in every layout.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.megatron.dimensions import own_part
from liver_slurm.engine.megatron.dropout import GOLDEN_32, keys, limits, mixed, to_device
from liver_slurm.parallel.groups import ProcessGroups


class HeadStreams(NamedTuple):
    """What decides which attention weights of a microbatch are dropped, on one rank. Tensors alone, as in
    :class:`liver_slurm.engine.megatron.dropout.Streams`."""

    threshold: Tensor
    """int32 []; a weight is dropped if its number is less."""
    scale: Tensor
    """fp32 []; factor of those that are kept."""
    places: Tensor
    """int32 [own]; where in their sequences this rank's queries are."""
    heads: Tensor
    """int32 [heads]; numbers of this rank's heads among all."""
    keys: Tensor
    """int32 [layers, batch, 2]; of each layer and sample. A layer has its own alone, [batch, 2]."""

    def of_layer(self, number: int) -> HeadStreams:
        """Return those of a layer; numbers begin with 1."""
        return self._replace(keys=self.keys[number - 1])


def attend_dropping(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, by: HeadStreams) -> Tensor:
    """Return what torch's ``scaled_dot_product_attention`` does, with some of the weights dropped after the softmax.

    Args:
        query: [batch, heads, own, width].
        key, value: [batch, groups, sequence, width].
        seen: which tokens each query attends to, [own, sequence] or [batch, 1, own, sequence]; None: all before it.
    """
    batch, heads, own, width = query.shape
    groups, sequence = key.shape[1], key.shape[2]
    if seen is None:
        seen = by.places[:, None] >= torch.arange(sequence, dtype=torch.int32, device=query.device)
    grouped = query.reshape(batch, groups, heads // groups * own, width)
    scores = (grouped @ key.transpose(-1, -2)).view(batch, heads, own, sequence).float() * width**-0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    kept = torch.where(numbers(by, sequence) >= by.threshold, weights * by.scale, 0.0).to(value.dtype)
    attended = kept.view(batch, groups, heads // groups * own, sequence) @ value
    return attended.view(batch, heads, own, width)


def numbers(by: HeadStreams, sequence: int) -> Tensor:
    """Return each weight's number, int32 [batch, heads, own, sequence]."""
    one = mixed(by.places + by.keys[:, None, None, 0])
    row = mixed((one + by.heads[:, None] * GOLDEN_32) ^ by.keys[:, None, None, 1])
    other = mixed(row ^ by.keys[:, None, None, 0]) | 1
    columns = torch.arange(sequence, dtype=torch.int32, device=by.places.device) * GOLDEN_32
    return mixed(row[..., None] + columns, other[..., None])


class AttentionDropout:
    """Makes the streams of one rank's microbatches."""

    def __init__(self, config: JobConfig, world: ProcessGroups, device: torch.device) -> None:
        model, layout, place = config.model, world.layout, world.place
        self._rate, self._layers = model.attention_dropout, model.num_layers
        self._seed, self._device = config.train.seed, device
        self._size = config.train.micro_batch_size
        part = own_part(config.train.seq_length, layout.cp, place.cp)
        self._places = torch.arange(part.start, part.stop, dtype=torch.int32, device=device)
        heads = model.num_attention_heads // layout.tp
        self._heads = torch.arange(place.tp * heads, (place.tp + 1) * heads, dtype=torch.int32, device=device)

    def streams(self, first: int, microbatches: int, training: bool) -> list[HeadStreams | None]:
        """Return those of each of a rank's microbatches; see
        :meth:`liver_slurm.engine.megatron.dropout.Dropout.streams`."""
        if not self._rate:
            return [None] * microbatches
        samples = np.arange(first, first + microbatches * self._size, dtype=np.uint64)
        found = to_device(keys(self._seed, samples, self._layers, "attention dropout"), self._device)
        by = limits(self._rate if training else 0.0, self._device)
        return [HeadStreams(*by, self._places, self._heads, part) for part in found.split(self._size, 1)]


def head_streams_like(config: JobConfig, tokens: int, heads: int) -> HeadStreams:
    """Make streams of one layer, of their shapes on a rank with so many tokens and heads, which drop nothing."""
    places, own = torch.arange(tokens, dtype=torch.int32), torch.arange(heads, dtype=torch.int32)
    return HeadStreams(*limits(0.0), places, own, torch.zeros(config.train.micro_batch_size, 2, dtype=torch.int32))
