"""Shards of loops in worlds of one worker, in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from liver_slurm.config.schema import JobConfig, TrainSection
from liver_slurm.engine.own_loop.elastic import Elastic
from liver_slurm.engine.own_loop.shard import LoopShard
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.parallel.groups import build_world
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership

CPU = torch.device("cpu")
JOB = JobConfig(train=TrainSection(steps=6, seq_length=1, global_batch_size=4, loop="a:loop"))
_generations = itertools.count(500_000)


def plain_loop(elastic: Elastic, made: list[Any] | None = None, told: Callable[[str], None] = lambda _: None) -> None:
    """Least squares with a scheduler; tells when it has come to its end, and when it is unwound."""
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    elastic.register(model=model, optimizer=optimizer, scheduler=scheduler)
    if made is not None:
        made += [model, optimizer]
    try:
        for step in elastic.steps():
            numbers = torch.tensor([*step.samples], dtype=torch.float32)[:, None]
            loss = (model(torch.cat([numbers.sin(), numbers.cos(), numbers / 9], dim=1)) - numbers / 9).square().mean()
            optimizer.zero_grad()
            (loss * step.weight).backward()
            step.report(loss)
            optimizer.step()
            scheduler.step()
        told("end")
    finally:
        told("unwound")


@contextmanager
def shard_of(loop: Callable[[Elastic], None], fresh: bool = True, **train: Any) -> Iterator[LoopShard]:
    """One rank that is live; its loop has come to the first step."""
    config = replace(JOB, train=replace(JOB.train, **train))
    membership = Membership(next(_generations), Layout(1, 1, 1), ("me",))
    world = build_world(membership, "me", dist.HashStore(), "gloo", CPU, timedelta(minutes=1))
    try:
        shard = LoopShard(loop, config, world, CPU, fresh)
        try:
            shard.make_live()
            yield shard
        finally:
            set_default_group(None)
            shard.clear_caches()
    finally:
        world.destroy()
