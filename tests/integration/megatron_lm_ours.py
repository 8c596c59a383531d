"""One rank that begins with what was imported: ``megatron_lm_ours.py FOLDER``.

It writes down the logits, and what a third step makes of a model that has its moments, and one that has not.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hf_worker import logits
from megatron_lm import EPSILON, LR, MODELS, OPTIMIZERS, SEQUENCE, WEIGHT_DECAY, batch, tokens

from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection
from liver_slurm.engine.checkpoint import load_start
from liver_slurm.engine.megatron.engine import MegatronEngine
from liver_slurm.parallel.groups import build_world
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.rundir.checkpoints import read_meta


class Samples:
    """The batches of the tests, one a step."""

    def __len__(self) -> int:
        return 100

    def batch(self, first: int, count: int) -> Any:
        """The samples from number ``first`` on."""
        found = torch.cat([batch(number) for number in range((first + count) // 2 + 1)])
        return found[first : first + count].numpy()


def whole(boxes: Any) -> dict[str, torch.Tensor]:
    """The weights, put together."""
    shapes: dict[str, tuple[int, ...]] = {}
    for piece, _ in boxes:
        ends = tuple(a + b for a, b in zip(piece.offset, piece.shape, strict=True))
        shapes[piece.tensor] = tuple(map(max, zip(shapes.get(piece.tensor, ends), ends, strict=True)))
    found = {name: torch.zeros(shape) for name, shape in shapes.items() if "@" not in name}
    for piece, view in boxes:
        if piece.tensor in found:
            place = tuple(slice(a, a + b) for a, b in zip(piece.offset, piece.shape, strict=True))
            found[piece.tensor][place] = view.float()
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    for generation, name in enumerate(MODELS):
        start = folder / name / "imported"
        config = JobConfig(
            model=ModelSection(**read_meta(start)["model"]),
            train=TrainSection(
                steps=9,
                seq_length=SEQUENCE,
                micro_batch_size=2,
                global_batch_size=2,
                lr=LR,
                lr_decay_style="constant",
                weight_decay=WEIGHT_DECAY,
                adam_eps=EPSILON,
            ),
        )
        membership = Membership(generation, Layout(1, 1, 1), ("0",))
        world = build_world(membership, "0", dist.HashStore(), "gloo", torch.device("cpu"), timedelta(minutes=10))
        shard = MegatronEngine().build(config, world, torch.device("cpu"), fresh=True)
        shard.make_live()
        with world.scope():
            load_start(shard, start, optimizer=False)
            torch.save(logits(shard, tokens()), folder / name / "ours.pt")
            for optimizer in (False, True) if name in OPTIMIZERS else ():
                load_start(shard, start, optimizer)
                shard.train_step(Samples(), 2)
                torch.save(whole(shard.boxes()), folder / name / f"ours-{'loaded' if optimizer else 'fresh'}.pt")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
