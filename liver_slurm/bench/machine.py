"""Where a benchmark runs: the machine that its document describes, and a folder in memory that nothing is left of."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from liver_slurm.base import interrupts
from liver_slurm.config.fp8 import CAPABILITY

MEMORY_DISK = Path("/dev/shm")
PREFIX = "liver-bench-"
"""How names of our folders there begin; the process's number follows."""


def has_transformer_engine() -> bool:
    """Return whether Transformer Engine is installed, and has a card to run on."""
    return importlib.util.find_spec("transformer_engine") is not None and has_gpu()


def has_fp8() -> bool:
    """Return whether torch's first card has matrix products in FP8."""
    import torch

    return has_gpu() and torch.cuda.get_device_capability(0) >= CAPABILITY


def has_gpu() -> bool:
    """Does torch see a CUDA card?"""
    import torch

    return bool(torch.cuda.is_available())


def count_gpus() -> int:
    """Return CUDA cards that torch sees."""
    import torch

    return int(torch.cuda.device_count())


def describe(gpu: bool) -> dict[str, Any]:
    """Return the machine, for people who compare figures."""
    device = "cpu"
    if gpu:
        import torch

        device = torch.cuda.get_device_name(0)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": device,
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "megatron_core": importlib.metadata.version("megatron-core"),
        "transformer_engine": importlib.metadata.version("transformer_engine") if has_transformer_engine() else None,
        "load_before": round(os.getloadavg()[0], 2),
    }


@contextmanager
def memory_folder() -> Iterator[Path]:
    """Make a fresh folder on the memory disk, removed at the end: also after Ctrl-C, and when SIGTERM ends the command.

    Where there is no memory disk it lies in the folder for temporary files.
    """
    with interrupts.temporary_folder(PREFIX, MEMORY_DISK if MEMORY_DISK.is_dir() else None) as folder:
        yield folder
