"""One rank that begins with imported models and writes down their logits:
``hf_worker.py RANK LAYOUT PRECISION FOLDER NAME…``."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hf_models import SEQUENCE

from liver_slurm.config.from_hf import read_hf_model
from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection
from liver_slurm.engine.checkpoint import load_start
from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.dimensions import own_part
from liver_slurm.engine.megatron.engine import MegatronEngine
from liver_slurm.engine.megatron.shard import MegatronShard
from liver_slurm.parallel.groups import build_world
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership

with compat.imports():
    from megatron.core.pipeline_parallel import get_forward_backward_func


def logits(shard: MegatronShard, tokens: torch.Tensor) -> torch.Tensor | None:
    """Logits [batch, sequence, padded vocabulary] on the last stage; None elsewhere."""
    world, sequence = shard.world, tokens.shape[1]
    own = own_part(sequence, world.layout.cp, world.place.cp)
    positions = torch.arange(sequence).expand(tokens.shape)

    def forward(_batch: Any, model: Any) -> tuple[torch.Tensor, Any]:
        return model(tokens[:, own], positions[:, own], None), lambda output, non_loss_data=False: output

    with torch.no_grad():
        found = get_forward_backward_func(pp_size=world.layout.pp, vp_size=None)(
            forward_step_func=forward,
            data_iterator=None,
            model=shard.chunks,
            num_microbatches=1,
            seq_length=sequence,
            micro_batch_size=len(tokens),
            forward_only=True,
            collect_non_loss_data=True,
            p2p_communicator=shard.pipeline,
            pg_collection=shard.groups,
        )
    if not world.is_last_stage:
        return None
    return gathered(gathered(found[0], world.groups["tp"], -1), world.groups["cp"], 1)


def gathered(part: torch.Tensor, group: Any, axis: int) -> torch.Tensor:
    parts = [torch.empty_like(part) for _ in range(group.size())]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, axis)


def main() -> None:
    rank, layout, precision, folder = int(sys.argv[1]), Layout.parse(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    names = tuple(map(str, range(layout.size)))
    for generation, name in enumerate(sys.argv[5:]):
        here = folder / name
        store = dist.FileStore(str(here / f"store-{layout}-{precision}"), layout.size)
        membership = Membership(generation, layout, names)
        world = build_world(membership, str(rank), store, "gloo", torch.device("cpu"), timedelta(minutes=10))
        config = JobConfig(
            model=ModelSection(**read_hf_model(here / "hf").section),
            train=TrainSection(
                steps=1, seq_length=SEQUENCE, micro_batch_size=2, global_batch_size=2, precision=precision
            ),
        )
        shard = MegatronEngine().build(config, world, torch.device("cpu"), fresh=True)
        shard.make_live()
        with world.scope():
            load_start(shard, here / "imported", optimizer=False)
            found = logits(shard, torch.load(here / "tokens.pt"))
        if found is not None and world.place.tp == world.place.cp == 0:
            torch.save(found, here / f"{layout}-{precision}.pt")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
