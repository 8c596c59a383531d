"""Dropout whose masks are a function of seed, sample, layer, place in the sequence and channel: alike in every layout.

The generator counts (Salmon et al. 2011): each number is a hash of what it is for. So there is no random state to move,
to save, or to put back before a layer is computed again, and a rank draws its own part of a mask alone.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.megatron.dimensions import own_part
from liver_slurm.parallel.groups import ProcessGroups

EMBEDDING = slice(0, 1)
"""Where the embedding's keys are."""
_LOWEST = -(1 << 31)
_GOLDEN = 0x9E3779B97F4A7C15
"""2⁶⁴ over the golden ratio, odd: multiples of it are far apart."""


class Streams(NamedTuple):
    """What decides which elements of a microbatch's hidden states are dropped, on one rank.

    Tensors alone, so that a compiled layer is the same graph for all of them, and for none dropped.
    """

    threshold: Tensor
    """int32 []; an element is dropped if its number is less."""
    scale: Tensor
    """fp32 []; factor of those that are kept."""
    places: Tensor
    """int32 [own]; where in their sequences this rank's tokens are."""
    keys: Tensor
    """int32 [sites, batch, 2]; of the embedding, then two of each layer, of attention and of the MLP, for each sample.
    A layer has its own alone."""

    def of_layer(self, number: int) -> Streams:
        """Return those of a layer; numbers begin with 1."""
        return self._replace(keys=self.keys[2 * number - 1 : 2 * number + 1])


def drop(x: Tensor, streams: Streams | None, site: int) -> Tensor:
    """Drop some of [own, batch, hidden] (Srivastava et al. 2014); without streams the model has none."""
    if streams is None:
        return x
    key = streams.keys[site]
    one = mixed(streams.places[:, None] + key[:, 0])
    other = mixed(one ^ key[:, 1]) | 1
    channels = torch.arange(x.shape[-1], dtype=torch.int32, device=x.device) * GOLDEN_32
    numbers = mixed(one[..., None] + channels, other[..., None])
    return torch.where(numbers >= streams.threshold, x * streams.scale, 0.0)


def _signed(word: int) -> int:
    """Return the lowest 32 bits, as an int32 has them."""
    word &= (1 << 32) - 1
    return word - (1 << 32) if word >> 31 else word


GOLDEN_32 = _signed(_GOLDEN >> 32)
"""Multiples of it are far apart among 32-bit numbers."""
_FACTORS = _signed(0x7FEB352D), _signed(0x846CA68B)


def mixed(x: Tensor, factor: Tensor | int = _FACTORS[0]) -> Tensor:
    """Hash int32 numbers, to all of int32 (Wellons 2018, ``lowbias32``); ``factor`` is odd."""
    x = (x ^ _shifted(x, 16)) * factor
    x = (x ^ _shifted(x, 15)) * _FACTORS[1]
    return x ^ _shifted(x, 16)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift to the right, without the sign."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)


class Dropout:
    """Makes the streams of one rank's microbatches."""

    def __init__(self, config: JobConfig, world: ProcessGroups, device: torch.device) -> None:
        layout, place = world.layout, world.place
        self._rate, self._sites = config.model.hidden_dropout, 2 * config.model.num_layers + 1
        self._seed, self._device = config.train.seed, device
        self._size = config.train.micro_batch_size
        part = own_part(config.train.seq_length, layout.cp, place.cp)
        tokens = (part.stop - part.start) // layout.tp
        first = part.start + place.tp * tokens
        self._places = torch.arange(first, first + tokens, dtype=torch.int32, device=device)

    def streams(self, first: int, microbatches: int, training: bool) -> list[Streams | None]:
        """Return those of each of a rank's microbatches.

        Args:
            first: number of the first sample in the run.
            training: drop something.
        """
        if not self._rate:
            return [None] * microbatches
        samples = np.arange(first, first + microbatches * self._size, dtype=np.uint64)
        found = to_device(keys(self._seed, samples, self._sites), self._device)
        by = limits(self._rate if training else 0.0, self._device)
        # Strides that are alike for any number of microbatches: a layer is compiled for each set of strides.
        return [Streams(*by, self._places, part.contiguous()) for part in found.split(self._size, 1)]


def to_device(found: NDArray[np.int32], device: torch.device) -> Tensor:
    """Return keys where they are used."""
    host = torch.from_numpy(found)
    # A copy from other memory to a card waits for all that was launched before it.
    host = host.pin_memory() if device.type == "cuda" else host
    return host.to(device, non_blocking=True)


def limits(rate: float, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return the number below which one drops, and the factor of what is kept: see :class:`Streams`."""
    threshold = torch.full((), round(rate * (1 << 32)) + _LOWEST, dtype=torch.int32, device=device)
    return threshold, torch.full((), 1 / (1 - rate), device=device)


def keys(seed: int, samples: NDArray[np.uint64], sites: int, what: str = "dropout") -> NDArray[np.int32]:
    """Return keys of each site and sample, int32 [sites, samples, 2]; others for each ``what``."""
    start = int.from_bytes(hashlib.blake2b(f"{what}/{seed}".encode(), digest_size=8).digest(), "little")
    of_samples = _mixed_64(np.uint64(start) + samples * np.uint64(_GOLDEN))
    of_sites = np.arange(1, sites + 1, dtype=np.uint64)[:, None] * np.uint64(_GOLDEN)
    words = _mixed_64(of_samples + of_sites)[..., None]
    return words.view(np.int32)


def _mixed_64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash 64-bit numbers (Steele et al. 2014, ``splitmix64``)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def dropout_like(config: JobConfig, tokens: int) -> Streams:
    """Make streams of one layer, of their shapes on a rank with so many tokens, which drop nothing."""
    keys = torch.zeros(2, config.train.micro_batch_size, 2, dtype=torch.int32)
    return Streams(*limits(0.0), torch.zeros(tokens, dtype=torch.int32), keys)
