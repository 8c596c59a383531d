"""A training loop of the user's own, as an engine."""

from __future__ import annotations

from typing import Any

import torch

from liver_slurm.base.errors import LiverError
from liver_slurm.config.providers import load_function
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import Samples
from liver_slurm.engine.own_loop.shard import LoopShard
from liver_slurm.parallel.groups import ProcessGroups
from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.shard_spec import ShardSpec
from liver_slurm.rundir.paths import RunDir


class _OwnSamples:
    """Samples of a loop that reads them itself, by the numbers that each step gives it."""

    def __len__(self) -> int:
        return 0

    def batch(self, first: int, count: int) -> Any:
        raise LiverError("a loop of one's own reads its samples by itself")


class LoopEngine:
    """Implements :class:`liver_slurm.engine.api.Engine`, which documents the methods."""

    def build(self, config: JobConfig, world: ProcessGroups, device: torch.device, *, fresh: bool) -> LoopShard:
        assert config.train.loop is not None, "this engine is chosen by train.loop"
        return LoopShard(load_function(config.train.loop), config, world, device, fresh)

    def rehearsal(self, config: JobConfig) -> JobConfig | None:
        """Import the loop, and train nothing: a whole model may have no room on one worker."""
        assert config.train.loop is not None, "this engine is chosen by train.loop"
        load_function(config.train.loop)
        return None

    def compile_layouts(self, config: JobConfig, device: torch.device) -> None:
        """Compile nothing: what a loop compiles is its own."""

    def token_flops(self, config: JobConfig) -> float | None:
        return None

    def shard_spec(self, config: JobConfig, layout: Layout, rank: int) -> ShardSpec:
        raise LiverError("what a loop of one's own holds is known where it has declared it only")

    def gradient_bucket(self, config: JobConfig, layout: Layout) -> int | None:
        return None

    def open_samples(self, config: JobConfig, run_dir: RunDir) -> Samples:
        return _OwnSamples()

    def open_validation(self, config: JobConfig, run_dir: RunDir) -> Samples | None:
        return None
