"""Private functions of torch that the product uses, other than those of torch.distributed (see ``c10d``)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch

from liver_slurm.base.errors import BadInput

KNOWN = "2.11 to 2.14"
"""Versions that have been seen to work."""


def check_names(*paths: str) -> None:
    """Check that this version of torch has names that the product needs, such as ``_foreach_copy_``.

    Raises:
        BadInput: one of them is missing.
    """
    for path in paths:
        if reduce(_part, path.split("."), torch) is None:
            raise BadInput(
                f"torch {torch.__version__} has no torch.{path}, which is needed here; known to work: {KNOWN}"
            )


def _part(whole: Any, name: str) -> Any:
    return getattr(whole, name, None)


check_names(
    "_foreach_copy_",
    "_foreach_norm",
    "_foreach_mul_",
    "_C._construct_storage_from_data_pointer",
)


def copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy each source to its target; on a GPU in a few launches where they lie alike."""
    torch._foreach_copy_(list(targets), list(sources))


def compile_without_limit() -> None:
    """Let torch compile a function as often as it is called with other shapes, in all of this process.

    It takes more than eight times for a mistake; a run with as many layouts has a graph for each.

    Raises:
        BadInput: this version of torch calls its limits otherwise.
    """
    limits = ("recompile_limit", "accumulated_recompile_limit")
    check_names(*(f"_dynamo.config.{limit}" for limit in limits))
    for limit in limits:
        setattr(torch._dynamo.config, limit, sys.maxsize)


def scaled_product(
    left: torch.Tensor, right: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype, fast: bool
) -> torch.Tensor:
    """Return ``left @ right`` of matrices in FP8, times their factors.

    What ``torch.nn.functional.scaled_mm`` calls for factors of whole matrices; torch 2.11 cannot compile that one.
    """
    made: torch.Tensor = torch._scaled_mm(left, right, *factors, out_dtype=dtype, use_fast_accum=fast)
    return made


def place_in_file(file: str, start: int, length: int) -> Any:
    """Return what torch's metadata of a checkpoint says of ``length`` bytes of a file, from byte ``start`` on."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    return _StorageInfo(file, start, length)


def storage_at(address: int, nbytes: int, device: torch.device) -> torch.UntypedStorage:
    """Return a storage over memory that somebody else owns, and keeps for as long as the storage is used."""
    return torch._C._construct_storage_from_data_pointer(address, device, nbytes)
