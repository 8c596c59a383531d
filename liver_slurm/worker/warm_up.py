"""Warm-up: pay for imports, the device and its kernels before the worker is asked to join a world."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import Engine
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.parallel.groups import build_world
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.transfer import digest_plan, local_copies


class _Zeros:
    """Samples of zeros."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return 1

    def batch(self, first: int, count: int) -> np.ndarray[Any, Any]:
        return np.zeros((count, self._length + 1), dtype=np.int64)


def warm_up(config: JobConfig, engine: Engine, device: torch.device) -> None:
    """Train one step of what the engine rehearses with, in a world of one worker, and throw it away.

    Then compile what other layouts need, and what proves state after a reconfiguration.
    """
    small = engine.rehearsal(config)
    if small is not None:
        _rehearse(small, engine, device)
    engine.compile_layouts(config, device)
    if device.type == "cuda":
        digest_plan.warm_up(device)
        local_copies.warm_up(device)


def _rehearse(small: JobConfig, engine: Engine, device: torch.device) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    world = build_world(
        Membership(-1, Layout(1, 1, 1), ("me",)), "me", dist.HashStore(), backend, device, timedelta(minutes=5)
    )
    shard = engine.build(small, world, device, fresh=True)
    shard.make_live()
    shard.train_step(_Zeros(small.train.seq_length), 0)
    set_default_group(None)
    world.destroy()
