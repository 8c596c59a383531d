"""The checkpoints that a restart goes through: the product's own boxes, and megatron-core's dist_checkpointing."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from liver_slurm.base.errors import first_line
from liver_slurm.engine.checkpoint import Checkpointer, Written, load_checkpoint
from liver_slurm.engine.megatron.model import unwrap
from liver_slurm.engine.megatron.shard import MegatronShard
from liver_slurm.engine.replica import every_layer
from liver_slurm.engine.storage import Moments
from liver_slurm.parallel.groups import ProcessGroups
from liver_slurm.rundir.checkpoints import checkpoint_path

Save = Callable[[MegatronShard, Path, int], None]
Load = Callable[[MegatronShard, Path, int], None]


def save_boxes(state: MegatronShard, folder: Path, step: int) -> None:
    """Save as the product does, training standing still."""
    written: list[Written] = []
    Checkpointer(state, folder, keep=0, asynchronous=False, train=state.config.train).save(step, written.append)
    if written[0].error:
        raise RuntimeError(f"the checkpoint failed: {written[0].error}")
    dist.barrier(group=state.world.groups["host"])


def load_boxes(state: MegatronShard, folder: Path, step: int) -> None:
    """Load as the product does."""
    load_checkpoint(state, checkpoint_path(folder, step))


def save_torch_dist(state: MegatronShard, folder: Path, step: int) -> None:
    """Save by megatron-core's torch_dist with two threads.

    Without its fully parallel saving, which took twice as long on one host (15M, dp2, distributed optimizer).
    """
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

    path = folder / f"torch_dist-{step}"
    if state.world.rank == 0:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    dist.barrier(group=state.world.groups["host"])
    strategy = TorchDistSaveShardedStrategy("torch_dist", 1, thread_count=2)
    dist_checkpointing.save(_sharded(state, is_loading=False), str(path), strategy, validate_access_integrity=False)
    dist.barrier(group=state.world.groups["host"])


def load_torch_dist(state: MegatronShard, folder: Path, step: int) -> None:
    """Load by megatron-core's torch_dist, into any layout."""
    from megatron.core import dist_checkpointing

    loaded = dist_checkpointing.load(
        _sharded(state, is_loading=True), str(folder / f"torch_dist-{step}"), validate_access_integrity=False
    )
    for name, chunk in _chunks(state).items():
        chunk.load_state_dict(loaded[name], strict=False)  # without Transformer Engine no _extra_state
    held = loaded["optimizer"]
    if not state.config.train.distributed_optimizer:
        state.optimizer.load_state_dict(held)
    else:
        # In one piece megatron-core 0.16.1 fails on the step counter of torch's own Adam.
        tensors, _kind = held.pop("param_state"), held.pop("param_state_sharding_type")
        state.optimizer.load_state_dict(held)
        (inner,) = state.inner_optimizers()
        for moments in inner.optimizer.state.values():
            moments.pop("step")
        inner.load_parameter_state_from_fully_reshardable(tensors)
    state.set_step(step)


FORMATS: dict[str, tuple[Save, Load]] = {
    "boxes": (save_boxes, load_boxes),
    "torch_dist": (save_torch_dist, load_torch_dist),
}
"""The product's own first: its step counter is the one that is compared."""


def load(name: str, state: MegatronShard, folder: Path, step: int) -> None:
    """Load a checkpoint into a shard that was not built fresh, whose moments have no storage yet."""
    Moments(state, None).allocate(every_layer)
    FORMATS[name][1](state, folder, step)


def clear(state: MegatronShard, folder: Path) -> None:
    """Remove all checkpoints: the memory disk is memory."""
    dist.barrier(group=state.world.groups["host"])
    if state.world.rank == 0:
        for path in [path for path in folder.iterdir() if path.is_dir()]:
            shutil.rmtree(path)
    dist.barrier(group=state.world.groups["host"])


def probe(name: str, state: MegatronShard, folder: Path, step: int) -> tuple[tuple[float, float], str]:
    """Try one format: seconds that it takes to save this state and to load it again, here, once it is warm.

    Returns:
        the seconds, and why it cannot be used; empty: it can.
    """
    save, load = FORMATS[name]
    try:
        save(state, folder, step)
        clear(state, folder)
        begun = time.perf_counter()
        save(state, folder, step)
        between = time.perf_counter()
        load(state, folder, step)
        loaded = time.perf_counter()
        clear(state, folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, the format is no candidate, and the document says why
        return (0.0, 0.0), first_line(error)
    return (between - begun, loaded - between), ""


def fastest(probes: dict[str, tuple[float, float]], world: ProcessGroups) -> str:
    """Return the format whose saving and loading takes least, on the slowest rank of each; the same on all ranks."""
    seconds = torch.tensor([sum(probes.get(name, (math.inf,))) for name in FORMATS], dtype=torch.float64)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX, group=world.groups["host"])
    return list(FORMATS)[int(seconds.argmin())]


def _sharded(state: MegatronShard, is_loading: bool) -> dict[str, Any]:
    metadata = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
    models = {name: chunk.sharded_state_dict(metadata=metadata) for name, chunk in _chunks(state).items()}
    optimizer = state.optimizer.sharded_state_dict(models, is_loading=is_loading, metadata=metadata)
    return {**models, "optimizer": optimizer}


def _chunks(state: MegatronShard) -> dict[str, Any]:
    """Return the chunks of the model by names in a state dict."""
    return {f"model{number}": unwrap(chunk) for number, chunk in enumerate(state.chunks)}
