"""One process of the run that restarts: ``python -m liver_slurm.bench.replay.restart_worker ORDERS.json RANK``.

It starts, loads a checkpoint, trains and saves as often as told, and ends after one more checkpoint when it is told to:
with nothing between these that a restart could do without.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import msgspec

from liver_slurm.base.imports import quick_imports
from liver_slurm.bench.replay.restart_orders import Orders, Step, steps_file, stop_file
from liver_slurm.bench.restart_world import join_world


def main(orders: Orders, rank: int) -> None:
    """Be a rank of one world, until it is told to end."""
    with quick_imports():
        from liver_slurm.bench import saved
        from liver_slurm.config.load import read_job
        from liver_slurm.engine.api import StepFlags
        from liver_slurm.engine.data.prepare import resolve_data
        from liver_slurm.engine.data.samples import open_samples
        from liver_slurm.engine.megatron.shard import build_shard
        from liver_slurm.rundir.paths import RunDir
        from liver_slurm.worker.device import choose_device

        config = read_job(Path(orders.job_file))
        device = choose_device(config)
    world = join_world(orders.layout, orders.generation, rank, orders.port, device)
    state = build_shard(config, world, device, fresh=True)
    state.make_live()
    samples = open_samples(config, resolve_data(config, RunDir(Path(orders.folder))))
    folder, step = Path(orders.folder), orders.step
    if orders.load:
        saved.load_boxes(state, folder, step)
    stop, steps = stop_file(orders), steps_file(orders).open("a", buffering=1)
    saved_at = time.monotonic()
    while True:
        # Flags are reduced together with the loss: all ranks save, and end, after the same step.
        is_due = orders.every_s is not None and time.monotonic() > saved_at + orders.every_s
        flags = StepFlags(stop=rank == 0 and stop.exists(), save=rank == 0 and is_due)
        done = state.train_step(samples, step, flags)
        step += 1
        save_s = 0.0
        if done.flags.stop or done.flags.save:
            begun = time.monotonic()
            saved.save_boxes(state, folder, step)
            saved_at = time.monotonic()
            save_s = saved_at - begun
        if rank == 0:
            steps.write(msgspec.json.encode(Step(step, done.start, done.end, save_s)).decode() + "\n")
        if done.flags.stop:
            os._exit(0)  # no destructors: this is how a job ends fastest


if __name__ == "__main__":
    main(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Orders), int(sys.argv[2]))
