"""One rank that evaluates checkpoints: ``python -m liver_slurm.worker.evaluation FOLDER RANK``.

It builds its shard as for a run, loads one checkpoint after the other, and takes the loss of the job's validation data
of each, as :mod:`liver_slurm.worker.validation` does in a run. No coordinator, and nothing is trained.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import msgspec

from liver_slurm.base.errors import LiverError
from liver_slurm.config.load import read_job
from liver_slurm.parallel.layout import Layout
from liver_slurm.rundir.checkpoints import checkpoint_step
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.validation import ValidationMetrics
from liver_slurm.worker.bootstrap import engine_of

PATIENCE = timedelta(minutes=10)
"""For which ranks wait for each other."""


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What all ranks do; ``orders.json`` of their folder, which is a run directory as far as data goes."""

    layout: str
    checkpoints: list[str]
    """Folders, of one model."""
    averages: bool = False
    """Of the moving averages of the weights, not of the weights."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a rank could not do it, where a user can act on that; ``problem.json``."""

    exit_code: int
    message: str


def orders_file(folder: Path) -> Path:
    """Return where the orders lie, which say what to do."""
    return folder / "orders.json"


def results_file(folder: Path) -> Path:
    """Return where the results lie: :class:`ValidationMetrics`, a line for each checkpoint."""
    return folder / "results.jsonl"


def problem_file(folder: Path) -> Path:
    """Return where it is said why it cannot be done."""
    return folder / "problem.json"


def evaluate(folder: Path, rank: int) -> None:
    """Evaluate all checkpoints, as one rank of the layout.

    Raises:
        BadInput: the job has no such data, or a checkpoint is not of its model.
        RuntimeError: a peer is gone.
    """
    orders = msgspec.json.decode(orders_file(folder).read_bytes(), type=Orders)
    run_dir = RunDir(folder)
    config = read_job(run_dir.job_file)
    device, engine = engine_of(config)
    import torch.distributed as dist

    from liver_slurm.engine.checkpoint import load_checkpoint
    from liver_slurm.parallel.groups import build_world
    from liver_slurm.parallel.membership import Membership
    from liver_slurm.worker.validation import Validation

    layout = Layout.parse(orders.layout)
    names = tuple(map(str, range(layout.size)))
    # In a folder that only this user can read: nothing listens for strangers.
    store = dist.FileStore(str(folder / "store"), layout.size)
    backend = "nccl" if device.type == "cuda" else "gloo"
    world = build_world(Membership(0, layout, names), str(rank), store, backend, device, PATIENCE)
    samples = engine.open_validation(config, run_dir)
    assert samples is not None, "whoever gave the orders has looked"
    shard = engine.build(config, world, device, fresh=True)
    shard.make_live()
    validation = Validation(config, samples, run_dir.validations, lambda: None)
    with world.scope():
        for path in map(Path, orders.checkpoints):
            load_checkpoint(shard, path, orders.averages)
            validation.run(shard, checkpoint_step(path), lambda: False)
            if rank == 0:
                found = validation.metrics(0, orders.layout)
                assert found is not None, "nothing interrupts it"
                _report(folder, found)


def _report(folder: Path, found: ValidationMetrics) -> None:
    with results_file(folder).open("ab") as file:
        file.write(msgspec.json.encode(found) + b"\n")


if __name__ == "__main__":
    code = 0
    try:
        evaluate(Path(sys.argv[1]), int(sys.argv[2]))
    except LiverError as error:
        problem = Problem(exit_code=int(error.exit_code), message=str(error))
        problem_file(Path(sys.argv[1])).write_bytes(msgspec.json.encode(problem))
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # destructors of communication libraries may wait for peers that are gone
