"""Digests of boxes: what source and target compare to prove that state arrived bit for bit.

Two kinds. ``xxh3`` hashes the bytes where they lie in host memory. ``mix`` is a sum that a GPU can compute where the
tensor lies, without copying it to the host; it gives the same value on a CPU. Both depend on the order of the elements
and on nothing but their bytes, and both ends of a move must use the same kind.

``mix`` is multilinear hashing modulo 2^64 (Dietzfelbinger 1996; Lemire and Kaser 2014): each word times an odd factor
of its place, added up. Two kernels for a box: on a GPU that trains, the thread that compares digests shares the
interpreter with the one that launches training's kernels, so their number counts. One word that differs always shows;
several cancel out by chance only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import xxhash

if TYPE_CHECKING:
    import torch

Kind = Literal["xxh3", "mix"]

_CHUNK = 1 << 20
"""Elements that are made contiguous, or multiplied, at a time: what bounds the extra memory."""

_BLOCK = 1 << 20
"""Places whose factors are kept, 8 MiB for each device; a place beyond has them times a factor of its block."""

# SplitMix64 (Steele, Lea, Flood 2014), as signed 64-bit numbers: torch has no unsigned arithmetic on 64 bits.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FACTORS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
_LAST_SHIFT = 31


def digest(view: torch.Tensor | Any, kind: Kind | None = None) -> int:
    """64-bit digest of a box.

    Args:
        view: a torch tensor on any device or a numpy array, contiguous or not.
        kind: default: ``mix`` for what lies on a GPU, ``xxh3`` for the rest.
    """
    return digests([view], kind)[0]


def digests(views: Iterable[torch.Tensor | Any], kind: Kind | None = None) -> list[int]:
    """:func:`digest` of each view; those on a GPU are waited for once and not one by one."""
    import torch

    found: list[int] = []
    mixed: list[tuple[int, int, torch.Tensor]] = []
    for view in views:
        tensor = view.detach() if isinstance(view, torch.Tensor) else torch.from_numpy(view)
        if (kind or ("mix" if tensor.is_cuda else "xxh3")) == "xxh3":
            found.append(_xxh3(tensor))
        else:
            mixed += [(len(found), factor, part) for factor, part in _mix(tensor)]
            found.append(tensor.numel())  # or more zeros would not show
    if mixed:
        for (index, factor, _), part in zip(mixed, torch.stack([part for *_, part in mixed]).tolist(), strict=True):
            found[index] = (found[index] + factor * part) % (1 << 64)
    return found


def memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor in host memory; valid for as long as the tensor is.

    Not ``Tensor.numpy()``: that bars the storage from being resized, which is how state is freed in place.
    """
    return memoryview((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")


def signed(word: int) -> int:
    """A digest as torch stores it."""
    return word - (1 << 64) if word >= 1 << 63 else word


def _runs(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The elements in row-major order, as contiguous flat tensors of at most :data:`_CHUNK` elements."""
    if tensor.is_contiguous():
        # Not view(-1): a single element, which is contiguous, keeps the stride that it had among others.
        yield from tensor.as_strided((tensor.numel(),), (1,)).split(_CHUNK)
    elif tensor.numel() <= _CHUNK:
        yield tensor.contiguous().view(-1)
    else:
        rows = max(1, _CHUNK // max(1, tensor[0].numel()))
        for part in tensor.split(rows):
            yield from _runs(part if part.shape[0] > 1 else part[0])


def _xxh3(tensor: torch.Tensor) -> int:
    # Hashing lets go of the interpreter, and little else happens under it: a thread that trains may wait for it.
    if tensor.is_contiguous() and not tensor.is_cuda:
        return xxhash.xxh3_64_intdigest(memory(tensor))
    state = xxhash.xxh3_64()
    for run in _runs(tensor):
        host = run.cpu()
        state.update(memory(host))
    return state.intdigest()


def _mix(tensor: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Sums where the tensor lies, and what each is still to be multiplied by."""
    import torch

    # Words of at most 32 bits: the highest bits of two 64-bit words would cancel out whatever their factors are.
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}[tensor.element_size()]
    factors = _factors(tensor.device)
    position = 0
    for run in _runs(tensor):
        words = run.view(kind)
        while words.numel():
            block, place = divmod(position, _BLOCK)
            part, words = words[: _BLOCK - place], words[_BLOCK - place :]
            yield _block_factor(block), (factors[place : place + part.numel()] * part).sum()
            position += part.numel()


@lru_cache(maxsize=8)
def _factors(device: torch.device) -> torch.Tensor:
    """Of the places of a block; odd."""
    import torch

    return _scramble(torch.arange(1, _BLOCK + 1, dtype=torch.int64, device=device) * _GOLDEN) | 1


@lru_cache(maxsize=1024)
def _block_factor(block: int) -> int:
    """Of all places of a block; odd."""
    import torch

    return int(_scramble(torch.tensor([-block], dtype=torch.int64) * _GOLDEN) | 1) if block else 1


def _scramble(word: torch.Tensor) -> torch.Tensor:
    for shift, factor in _FACTORS:
        word = (word ^ _shift_right(word, shift)) * factor
    return word ^ _shift_right(word, _LAST_SHIFT)


def _shift_right(word: torch.Tensor, by: int) -> torch.Tensor:
    """Shift in zeros: torch shifts in copies of the sign."""
    return (word >> by) & ((1 << (64 - by)) - 1)
