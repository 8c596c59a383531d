"""The baseline: a checkpoint, the end of all processes, new processes, and the checkpoint loaded in another layout.

At its best: the faster of two checkpoint formats on a memory disk, after a warm-up save; new processes start as soon as
the last old one has ended, and do nothing but what training needs; on cards they find what was compiled before.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from liver_slurm.base import interrupts
from liver_slurm.base.errors import LiverError
from liver_slurm.bench.figures import Reconfigured, between, usual
from liver_slurm.bench.restart_worker import Orders, Report, report_file
from liver_slurm.config.load import save_job
from liver_slurm.config.schema import JobConfig
from liver_slurm.parallel.layout import Layout
from liver_slurm.scheduler.local.process import start, worker_environment

STEPS = 4
"""Usual steps of each world, beside its first."""


@dataclass
class Baseline:
    """Restarts between some layouts, and what the probe of checkpoint formats found."""

    config: JobConfig
    folder: Path
    gpus: bool
    save: str = "fastest"
    """Format; once probed, the fastest."""
    probes: dict[str, tuple[float, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def chain(self, layouts: Sequence[Layout]) -> list[Reconfigured]:
        """Train in the first layout, then restart into each of the others in turn.

        Raises:
            LiverError: a process failed.
        """
        folder = self.folder / "restart"
        shutil.rmtree(folder, ignore_errors=True)  # of a chain that failed
        folder.mkdir()
        save_job(self.config, folder / "job.json")
        worlds: list[_World] = []
        for generation, layout in enumerate(layouts):
            before = worlds[-1] if worlds else None
            last = generation == len(layouts) - 1
            orders = Orders(
                job_file=str(folder / "job.json"),
                layout=str(layout),
                gpus=self.gpus,
                port=0,
                generation=generation,
                folder=str(folder),
                step=before.reports[0].step if before else 0,
                load=before.reports[0].save if before else "",
                steps=STEPS,
                probe=self.save == "fastest",
                save="" if last else self.save,
            )
            worlds.append(_run(orders, layout, folder))
            self._learn(worlds[-1])
        shutil.rmtree(folder)
        return [_reconfigured(old, new) for old, new in itertools.pairwise(worlds)]

    def _learn(self, world: _World) -> None:
        first = world.reports[0]
        if self.save == "fastest":
            self.save, self.probes, self.failures = first.save, first.probes, first.failures


def train_alone(config: JobConfig, layout: Layout, folder: Path, gpus: bool, steps: int) -> list[float]:
    """Train so many steps in a plain loop and nothing else; when each ended, seconds since the epoch.

    Raises:
        LiverError: a process failed.
    """
    save_job(config, folder / "job.json")
    orders = Orders(
        job_file=str(folder / "job.json"),
        layout=str(layout),
        gpus=gpus,
        port=0,
        generation=0,
        folder=str(folder),
        step=0,
        steps=steps,
    )
    return _run(orders, layout, folder).reports[0].ends


@dataclass(frozen=True)
class _World:
    started: float
    """Just before its first process was started."""
    ended: float
    """When its last process had ended."""
    reports: list[Report]


def _run(orders: Orders, layout: Layout, folder: Path) -> _World:
    """Start a world's processes and wait until all have ended."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    orders = msgspec.structs.replace(orders, port=store.port)
    file = folder / "orders.json"
    file.write_bytes(msgspec.json.encode(orders))
    started = time.time()
    processes: list[subprocess.Popen[bytes]] = []
    logs = [folder / f"rank-{rank}.log" for rank in range(layout.size)]
    # Whoever ends without destructors, or is killed, leaves the temporary folders of multiprocessing.
    with interrupts.temporary_folder("liver-bench-") as temporary:
        try:
            for rank, log in enumerate(logs):
                environment = (
                    worker_environment(rank, layout.size, orders.gpus) | _compiled() | {"TMPDIR": str(temporary)}
                )
                arguments = [str(file), str(rank)]
                processes.append(start("liver_slurm.bench.restart_worker", arguments, log, environment, signal.SIGKILL))
            codes = [process.wait() for process in processes]  # without a time limit: with one, subprocess polls
            ended = time.time()
        finally:
            for process in processes:
                _end_session(process)
    if any(codes):
        raise LiverError(f"the restart baseline failed in {orders.layout}: {_last_line(logs, codes)}")
    reports = [msgspec.json.decode(report_file(orders, rank).read_bytes(), type=Report) for rank in range(layout.size)]
    return _World(started, ended, reports)


def _compiled() -> dict[str, str]:
    """Return where torch keeps what it has compiled, in spite of a TMPDIR of our own: a restart finds it there."""
    usual = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    return {"TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(usual))}


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it has started: megatron-core's helpers outlive whoever ends without destructors."""
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with contextlib.suppress(ChildProcessError):  # none is left, or none became a child of this process
        while True:
            os.waitpid(-process.pid, 0)


def _last_line(logs: Sequence[Path], codes: Sequence[int]) -> str:
    """Return what the process said that failed first, as far as can be told: others fail because it has."""
    texts = [log.read_text(errors="replace").strip() for log, code in zip(logs, codes, strict=True) if code]
    lines = [text.splitlines()[-1] if text else "no output" for text in texts]
    return next((line for line in lines if "onnection" not in line), lines[0])


def _reconfigured(old: _World, new: _World) -> Reconfigured:
    """Fold the reports of both worlds: a part ends with its slowest process, so the parts add up to the whole."""
    moments = {
        "last_step": max(report.ends[-1] for report in old.reports),
        "save_s": max(report.saved for report in old.reports),
        "end_s": old.ended,
        "interpreter_s": max(report.begun for report in new.reports),
        "imports_s": max(report.imported for report in new.reports),
        "groups_s": max(report.grouped for report in new.reports),
        "build_s": max(report.built for report in new.reports),
        "load_s": max(report.loaded for report in new.reports),
        "first_step_s": max(report.first_step for report in new.reports),
    }
    return Reconfigured(
        interval_s=moments["first_step_s"] - moments["last_step"],
        usual_s=usual(new.reports[0].ends),
        parts=between(moments),
    )
