"""Multilinear digest of a box's bytes, modulo 2^64: the definition, and how torch computes it on any device.

The bytes in row-major order are read as little-endian words of 32 bits, the last filled up with zero bytes. The digest
is their number plus the sum of word(i) * factor(i), modulo 2^64. So it depends on nothing but the bytes and their
order: not on strides, offset, device or type, nor on the order in which a GPU adds up.

factor(i) is MurmurHash3's 32-bit finalizer (Appleby 2011) of i + 1. The finalizer is a bijection of 32-bit numbers that
maps 0 to 0, so in a block of 2^31 words factors are below 2^32, differ from each other, and none is 0. It follows:

- One word that differs always shows: the sum changes by d * factor(i), with 0 < abs(d) < 2^32 and 0 < factor(i) < 2^32,
  which is neither 0 nor as large as 2^64.
- Two words that change places always show, if they differ: so is (word(i) - word(j)) * (factor(i) - factor(j)).
- The same bit flipped in any two words always shows: so is 2^bit * (±factor(i) ± factor(j)), with bit < 32.
- Zero bytes that were appended show in the number of bytes.

Other differences, such as several words that are permuted or shifted, cancel out by chance only. This is multilinear
hashing (Dietzfelbinger 1996; Lemire and Kaser, "Strongly universal string hashing is fast", 2014) with factors that are
known instead of random: it finds errors, not forgeries. Words have half as many bits as the sum, because the high bits
of two 64-bit words would cancel out whatever their factors are.

A block beyond the first has all its factors multiplied by an odd 64-bit number of its own. One word that differs shows
there too: an odd number has an inverse modulo 2^64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORD_BYTES = 4
BLOCK_WORDS = 1 << 31
"""Words of a block, 8 GiB: their numbers, and one more, are 32-bit numbers, also with a sign."""

_RUN = 1 << 20
"""Elements that are made contiguous at a time; with :data:`_PIECE` what bounds the extra memory."""

_PIECE = 1 << 16
"""Elements that are multiplied at a time: their 64-bit products stay in a CPU's cache."""

_MASK = (1 << 32) - 1


def multilinear(tensor: torch.Tensor) -> int:
    """Compute a tensor's digest with torch alone, where the tensor lies, in bounded extra memory.

    On a GPU it is slow, and waits for each piece: :class:`liver_slurm.transfer.digest_plan.DigestPlan` is for those.

    Args:
        tensor: any shape, strides and type.
    """
    total: int = tensor.nbytes
    place = 0
    for run in runs(tensor):
        elements, per_word = _as_integers(run)
        while elements.numel():
            block, at = divmod(place, BLOCK_WORDS * per_word)
            part, elements = elements.tensor_split([BLOCK_WORDS * per_word - at])
            total += block_factor(block) * _sum(part, at, per_word)
            place += part.numel()
    return total % (1 << 64)


def block_factor(block: int) -> int:
    """Return a block's odd 64-bit factor: 1 for the first, SplitMix64 (Steele, Lea and Flood 2014) for the others."""
    if block == 0:
        return 1
    word = block * 0x9E3779B97F4A7C15 % (1 << 64)
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ word >> shift) * multiplier % (1 << 64)
    return word ^ word >> 31 | 1


def runs(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the elements in row-major order, as contiguous flat tensors of a bounded number of elements."""
    if tensor.is_contiguous():
        # Not view(-1): a single element, which is contiguous, keeps the stride that it had among others.
        yield from tensor.as_strided((tensor.numel(),), (1,)).split(_RUN)
    elif tensor.numel() <= _RUN:
        yield tensor.contiguous().view(-1)
    else:
        rows = max(1, _RUN // max(1, tensor[0].numel()))
        for part in tensor.split(rows):
            yield from runs(part if part.shape[0] > 1 else part[0])


def _as_integers(run: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return a flat contiguous tensor as integers of at most 32 bits, and how many of them make a word."""
    import torch

    size = min(run.element_size(), WORD_BYTES)
    return run.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[size]), WORD_BYTES // size


def _sum(integers: torch.Tensor, first: int, per_word: int) -> int:
    """Return the sum of the integers' products, modulo 2^64.

    The sum is linear, so an integer is multiplied for itself: by its word's factor and by its place in the word.

    Args:
        integers: flat, inside one block.
        first: number of the first, counted from the start of the block.
        per_word: integers in a word.
    """
    import torch

    bits = 32 // per_word
    total = 0
    for piece in integers.split(_PIECE):
        place = torch.arange(first, first + piece.numel(), device=piece.device)
        values = piece.to(torch.int64) & ((1 << bits) - 1)
        if per_word > 1:
            # Bit operations: division of 64-bit numbers is slow, and there are 1, 2 or 4 in a word.
            values <<= (place & (per_word - 1)) * bits
            place >>= per_word.bit_length() - 1
        total += int(values.mul_(_finalize(place.add_(1))).sum())
        first += piece.numel()
    return total


def _finalize(numbers: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's finalizer of 32-bit numbers, kept in 64 bits; changes ``numbers``."""
    for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        numbers ^= numbers >> shift
        # The lower 32 bits of the product are right, whatever became of those above the 64th.
        numbers.mul_(multiplier).bitwise_and_(_MASK)
    numbers ^= numbers >> 16
    return numbers
