"""Training on megatron-core, as an engine."""

from __future__ import annotations

from dataclasses import astuple, replace

import torch

from liver_slurm.base.flops import token_flops
from liver_slurm.config.layouts import live_workers
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.shapes import head_width, idle_expert_weights
from liver_slurm.config.units import most_workers
from liver_slurm.engine.api import Samples
from liver_slurm.engine.data.prepare import resolve_data
from liver_slurm.engine.data.samples import open_samples
from liver_slurm.engine.megatron.fp8 import check_device
from liver_slurm.engine.megatron.shard import MegatronShard, build_shard
from liver_slurm.engine.megatron.spec import gradient_bucket, parameter_count, shard_spec
from liver_slurm.engine.megatron.warm_up import compile_layouts
from liver_slurm.parallel.groups import ProcessGroups
from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.shard_spec import ShardSpec
from liver_slurm.rundir.paths import RunDir


class MegatronEngine:
    """Implements :class:`liver_slurm.engine.api.Engine`, which documents the methods."""

    def __init__(self) -> None:
        self._specs: dict[tuple[int, ...], tuple[JobConfig, ShardSpec]] = {}
        """What was found, by sizes and place, with the job that it was found for: survivors wait for each of them."""

    def build(self, config: JobConfig, world: ProcessGroups, device: torch.device, *, fresh: bool) -> MegatronShard:
        shard = build_shard(config, world, device, fresh=fresh)
        self._specs[_key(config, world.layout, world.rank)] = config, shard.spec
        return shard

    def rehearsal(self, config: JobConfig) -> JobConfig | None:
        size = config.train.micro_batch_size
        train = replace(config.train, global_batch_size=size, rampup_batch_size=(), earlier_batches=())
        return replace(config, model=replace(config.model, num_layers=1), train=train)

    def compile_layouts(self, config: JobConfig, device: torch.device) -> None:
        if config.train.fp8:
            check_device(device)
        compile_layouts(config, device, live_workers(config.live) + most_workers(config.standby))

    def token_flops(self, config: JobConfig) -> float | None:
        model = config.model
        if model.provider is not None:
            return None
        width = model.num_attention_heads * head_width(model)
        return token_flops(
            parameter_count(config) - idle_expert_weights(model), model.num_layers, width, config.train.seq_length
        )

    def shard_spec(self, config: JobConfig, layout: Layout, rank: int) -> ShardSpec:
        known = self._specs.get(_key(config, layout, rank))
        if known is not None and known[0] is config:
            return known[1]
        found = shard_spec(config, layout, *layout.shard_key(rank))
        self._specs[_key(config, layout, rank)] = config, found
        return found

    def gradient_bucket(self, config: JobConfig, layout: Layout) -> int | None:
        return gradient_bucket(config, layout)

    def open_samples(self, config: JobConfig, run_dir: RunDir) -> Samples:
        return open_samples(config, resolve_data(config, run_dir))

    def open_validation(self, config: JobConfig, run_dir: RunDir) -> Samples | None:
        if not config.validation.wanted:
            return None
        return open_samples(config, resolve_data(config, run_dir, "validation"), "validation")


def _key(config: JobConfig, layout: Layout, rank: int) -> tuple[int, ...]:
    """Return what a rank's parameters depend on: in this product's own model on nothing else, in a user's who knows."""
    alike = layout.unreplicated if config.model.provider is None else layout
    return *astuple(alike), *layout.shard_key(rank)
