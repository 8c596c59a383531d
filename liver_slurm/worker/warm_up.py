"""What a worker pays before it is of use: imports, device, kernels. Done in a world of its own, before it is asked."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.megatron.groups import make_live
from liver_slurm.engine.megatron.initial import initialise
from liver_slurm.engine.megatron.rank_state import build_rank_state
from liver_slurm.engine.megatron.step import train_step
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.parallel.groups import Membership, build_world
from liver_slurm.parallel.layout import Layout


class _Zeros:
    """Samples of nothing."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return 1

    def batch(self, first: int, count: int) -> np.ndarray[Any, Any]:
        return np.zeros((count, self._length + 1), dtype=np.int64)


def warm_up(config: JobConfig, device: torch.device) -> None:
    """Train one step of a one-layer model of the job's kind, alone, and throw it away."""
    small = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, num_layers=1),
        train=dataclasses.replace(config.train, global_batch_size=config.train.micro_batch_size),
    )
    backend = "nccl" if device.type == "cuda" else "gloo"
    world = build_world(
        Membership(-1, Layout(1, 1, 1), ("me",)), "me", dist.HashStore(), backend, device, timedelta(minutes=5)
    )
    state = build_rank_state(small, world, device, lambda module: initialise(module, small))
    make_live(world, config.train.seed)
    train_step(state, _Zeros(config.train.seq_length), 0)
    set_default_group(None)
    world.destroy()
