"""A model in a world of one, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.megatron.shard import MegatronShard, build_shard
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.parallel.groups import build_world
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership

CPU = torch.device("cpu")
ONE = Layout(1, 1, 1)


@contextmanager
def shard_of(config: JobConfig) -> Iterator[MegatronShard]:
    """The whole model, live."""
    world = build_world(Membership(0, ONE, ("me",)), "me", dist.HashStore(), "gloo", CPU, timedelta(minutes=5))
    made = build_shard(config, world, CPU, fresh=True)
    made.make_live()
    yield made
    set_default_group(None)
    world.destroy()
