"""One process of the restart baseline: ``python -m liver_slurm.bench.restart_worker ORDERS.json RANK``.

It starts, loads what it is told to, trains, saves, and ends at once, with nothing between these that a restart could do
without: no coordinator, no control thread, no waiting. When each was done goes to a file beside the orders.
"""

from __future__ import annotations

import time

BEGUN = time.time()  # before anything slow: the interpreter is up

import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import msgspec  # noqa: E402

from liver_slurm.base.imports import quick_imports  # noqa: E402
from liver_slurm.bench.restart_world import join_world  # noqa: E402


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What all processes of one world do."""

    job_file: str
    layout: str
    gpus: bool
    port: int
    """Of the store that the driver holds."""
    generation: int
    folder: str
    """Where checkpoints, and the processes' reports, lie."""
    step: int
    """Steps trained so far."""
    load: str = ""
    """Format of the checkpoint to begin with; empty: initial weights."""
    steps: int = 0
    """Steps to train after the first."""
    probe: bool = False
    """Try all formats, saving and loading, before the last step."""
    save: str = ""
    """Format to save in at the end; empty: do not. ``fastest``: what the probe found."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one process did. Times are seconds since the epoch."""

    begun: float
    imported: float
    grouped: float
    built: float
    loaded: float
    first_step: float
    """End of the first step's optimizer update."""
    ends: list[float]
    """Ends of all steps, the first included."""
    step: int
    """Steps trained in the run by now."""
    loss: float
    """Of the first step."""
    probes: dict[str, tuple[float, float]]
    """Seconds of saving and of loading in each format that was tried."""
    failures: dict[str, str]
    """Formats that failed, and why."""
    save: str
    saved: float
    """0.0: nothing was saved."""


def report_file(orders: Orders, rank: int) -> Path:
    """Return where a process's report lies."""
    return Path(orders.folder) / f"report-{orders.generation}-{rank}.json"


def _probe(state: Any, folder: Path, step: int) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Try each format: seconds of saving and of loading, and why those that failed did."""
    from liver_slurm.bench import saved

    probes: dict[str, tuple[float, float]] = {}
    failures: dict[str, str] = {}
    for name in saved.FORMATS:
        seconds, problem = saved.probe(name, state, folder, step)
        if problem:
            failures[name] = problem
        else:
            probes[name] = seconds
    return probes, failures


def main(orders: Orders, rank: int) -> None:
    """Be a rank of one world."""
    with quick_imports():
        from liver_slurm.config.load import read_job
        from liver_slurm.worker.device import choose_device

        config = read_job(Path(orders.job_file))
        device = choose_device(config)
        from liver_slurm.bench import saved
        from liver_slurm.engine.data.samples import open_samples
        from liver_slurm.engine.megatron.shard import build_shard

    imported = time.time()
    world = join_world(orders.layout, orders.generation, rank, orders.port, device)
    grouped = time.time()
    state = build_shard(config, world, device, fresh=not orders.load)
    state.make_live()
    samples = open_samples(config, ())
    built = time.time()
    folder, step = Path(orders.folder), orders.step
    if orders.load:
        saved.load(orders.load, state, folder, step)
    loaded = time.time()
    first = state.train_step(samples, step)
    step, ends = step + 1, [first.end]

    def train(steps: int) -> None:
        nonlocal step
        for _ in range(steps):
            ends.append(state.train_step(samples, step).end)
            step += 1

    train(orders.steps)
    probes, failures = _probe(state, folder, step) if orders.probe else ({}, {})
    chosen = saved.fastest(probes, world) if orders.save == "fastest" else orders.save
    if chosen:
        saved.FORMATS[chosen][0](state, folder, step)  # the first one pays for what later ones do not
        saved.clear(state, folder)
        train(2)
        saved.FORMATS[chosen][0](state, folder, step)
    report = Report(
        begun=BEGUN,
        imported=imported,
        grouped=grouped,
        built=built,
        loaded=loaded,
        first_step=first.end,
        ends=ends,
        step=step,
        loss=first.loss,
        probes=probes,
        failures=failures,
        save=chosen,
        saved=time.time() if chosen else 0.0,
    )
    report_file(orders, rank).write_bytes(msgspec.json.encode(report))
    os._exit(0)  # no destructors: this is how a job ends fastest


if __name__ == "__main__":
    main(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Orders), int(sys.argv[2]))
