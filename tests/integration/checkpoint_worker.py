"""One worker of the table of checkpoints: what one layout saved, every other loads bit for bit.

The same state also moves from layout to layout as it does in a run, which is the other side of each comparison.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from stores import open_plain
from transition_worker import DEVICE, Patterned, Walker, job

from liver_slurm.engine.api import TrainingShard
from liver_slurm.engine.checkpoint import Checkpointer, Written
from liver_slurm.engine.megatron.engine import MegatronEngine
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.protocol.messages import Prepare
from liver_slurm.rundir.checkpoints import checkpoint_path
from liver_slurm.transfer.mirror.host_room import Rooms
from liver_slurm.worker.preparation import Preparation
from liver_slurm.worker.target_world import TargetWorld, prepare

STEPS = 3


def save(walker: Walker, store: dist.Store, folder: Path) -> None:
    """Write the state of the walker's world; nobody goes on before the checkpoint is complete."""
    written: list[Written] = []
    if walker.state is not None:
        train = walker.config.train
        Checkpointer(walker.state, folder, keep=0, asynchronous=False, train=train).save(STEPS, written.append)
        assert not written[0].error, written[0].error
        if walker.state.world.rank == 0:
            store.set(f"saved/{folder}", "")
    store.wait([f"saved/{folder}"])


def load(walker: Walker, layout: Layout, path: Path) -> TrainingShard | None:
    """The checkpoint as a fresh world of the layout has it."""
    members = [f"w{index}" for index in range(layout.size)]
    message = Prepare(
        epoch=0,
        generation=walker.generation,
        layout=str(layout),
        members=members,
        source_generation=-1,
        store_host="127.0.0.1",
        store_port=walker.port,
        checkpoint=str(path),
    )
    walker.generation += 1
    if walker.name not in members:
        return None
    target = TargetWorld(Membership(message.generation, layout, tuple(members)))
    prepare(
        target,
        Preparation(message, walker.name, walker.config, MegatronEngine(), None, DEVICE, open_plain, Rooms(None)),
    )
    return target.state


def compare(loaded: TrainingShard, moved: TrainingShard) -> int:
    """How many boxes were compared."""
    pairs = list(zip(loaded.boxes(), moved.boxes(), strict=True))
    for (piece, view), (other, expected) in pairs:
        assert piece == other
        assert torch.equal(view.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)), piece
    assert loaded.steps() == moved.steps()
    return len(pairs)


def main() -> None:
    name, port, layouts, precision, distributed, model, folder = sys.argv[1:]
    config = job(precision, distributed == "True", tied=True, **json.loads(model))
    walker = Walker(name, config, int(port), first_generation=0)
    store = dist.TCPStore("127.0.0.1", int(port), is_master=False)
    table = [Layout.parse(text) for text in layouts.split(",")]
    walker.go(table[0])
    for step in range(STEPS if walker.state else 0):
        walker.state.train_step(Patterned(), step)
    compared = 0
    for source in table:
        if walker.membership is None or walker.membership.layout != source:
            walker.go(source)
        save(walker, store, Path(folder) / str(source))
        for target in [layout for layout in table if layout != source]:
            walker.go(target)
            loaded = load(walker, target, checkpoint_path(Path(folder) / str(source), STEPS))
            if loaded is not None:
                assert walker.state is not None
                compared += compare(loaded, walker.state)
                loaded.world.destroy()
    print(compared, flush=True)
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
