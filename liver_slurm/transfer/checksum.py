"""Digests of boxes: what source and target compare to prove that state arrived bit for bit.

Two kinds. ``xxh3`` hashes the bytes where they lie in host memory. ``mix`` is a sum that a GPU computes where the boxes
lie, at the speed of its memory and all boxes together; :mod:`liver_slurm.transfer.multilinear` defines it, says what it
proves, and computes the same on a CPU. Both depend on the order of the bytes and on nothing else, and both ends of a
move must use the same kind.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import xxhash

from liver_slurm.transfer.multilinear import multilinear, runs

if TYPE_CHECKING:
    import torch

Kind = Literal["xxh3", "mix"]


def digest(view: torch.Tensor | Any, kind: Kind | None = None) -> int:
    """64-bit digest of a box.

    Args:
        view: a torch tensor on any device or a numpy array, contiguous or not.
        kind: default: ``mix`` for what lies on a GPU, ``xxh3`` for the rest.
    """
    return digests([view], kind)[0]


def digests(views: Iterable[torch.Tensor | Any], kind: Kind | None = None) -> list[int]:
    """Return :func:`digest` of each view; those on a GPU are computed together and waited for once.

    To wait elsewhere than where they are launched, use :class:`liver_slurm.transfer.digest_plan.DigestPlan`.
    """
    import torch

    found: list[int] = []
    planned: defaultdict[torch.device, list[tuple[int, torch.Tensor]]] = defaultdict(list)
    for view in views:
        tensor = view.detach() if isinstance(view, torch.Tensor) else torch.from_numpy(view)
        if (kind or ("mix" if tensor.is_cuda else "xxh3")) == "xxh3":
            found.append(_xxh3(tensor))
        elif tensor.is_cuda:
            planned[tensor.device].append((len(found), tensor))
            found.append(0)
        else:
            found.append(multilinear(tensor))
    for index, word in _on_gpus(planned.values()):
        found[index] = word
    return found


def memory(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor in host memory; valid for as long as the tensor is.

    Not ``Tensor.numpy()``: that bars the storage from being resized, which is how state is freed in place.
    """
    return memoryview((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")


def signed(word: int) -> int:
    """Return a digest as torch stores it."""
    return word - (1 << 64) if word >= 1 << 63 else word


def _xxh3(tensor: torch.Tensor) -> int:
    # Hashing lets go of the interpreter, and little else happens under it: a thread that trains may wait for it.
    if tensor.is_contiguous() and not tensor.is_cuda:
        return xxhash.xxh3_64_intdigest(memory(tensor))
    state = xxhash.xxh3_64()
    for run in runs(tensor):
        host = run.cpu()
        state.update(memory(host))
    return state.intdigest()


def _on_gpus(groups: Iterable[list[tuple[int, torch.Tensor]]]) -> list[tuple[int, int]]:
    """Return the pairs of index and digest, from pairs of index and view; a group's views are on one GPU."""
    from liver_slurm.transfer.digest_plan import DigestPlan

    pending = [(group, DigestPlan([view for _, view in group]).launch()) for group in groups]
    return [
        (index, word) for group, launched in pending for (index, _), word in zip(group, launched.result(), strict=True)
    ]
