"""A real coordinator and real workers as plain processes, each of which may be told to fail at a point."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import paced_samples
import psutil
from coordinator_lab import Lab

from liver_slurm.config.schema import (
    CheckpointSection,
    ComponentSection,
    DataSection,
    ElasticSection,
    JobConfig,
    JobSection,
    LiveSection,
    ModelSection,
    StandbySection,
    TrainSection,
)
from liver_slurm.protocol.messages import WorkerEnded
from liver_slurm.rundir.metrics import read_metrics

STARTUP = 600.0
"""Seconds that real workers may take to start, on a machine that has other things to do."""

WHOLE_RUN = 900.0
"""Seconds that a run at full speed may take there."""


def job(folder: Path, steps: int = 80, live: int = 2, **changes: Any) -> JobConfig:
    """A tiny model, fp32; worlds of one to four data parallel workers."""
    config = JobConfig(
        job=JobSection(run_root=str(folder), heartbeat=0.2, lost_after=30.0, prepare_timeout=300.0),
        model=ModelSection(
            num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=48, vocab_size=61
        ),
        data=DataSection(provider="paced_samples:provide"),
        train=TrainSection(steps=steps, seq_length=16, micro_batch_size=1, global_batch_size=12, lr=1e-3),
        live=LiveSection(component=(ComponentSection(tasks_per_node=live),)),
        standby=StandbySection(max_jobs=4),
        elastic=ElasticSection(layouts=("tp1pp1dp1", "tp1pp1dp2", "tp1pp1dp3", "tp1pp1dp4"), settle=0.2),
        checkpoint=CheckpointSection(at_end=False),
    )
    return replace(config, **changes)


class WorkerLab(Lab):
    """One run. Workers are named ``live-0``, ``standby-a`` and so on."""

    def __init__(self, config: JobConfig, resume: Lab | None = None) -> None:
        super().__init__(Path(config.job.run_root), config, resume.run_dir if resume is not None else None)
        self.killed: set[str] = set()
        self.slow = Path(config.job.run_root) / paced_samples.SLOW

    def begin(self, *arguments: str) -> None:
        """Start the coordinator, with these arguments, and the live workers."""
        self.coordinator(*arguments)
        for index in range(self.config.live.component[0].tasks_per_node):
            self.real_worker(f"live-{index}")

    def real_worker(self, name: str, fault: str = "") -> subprocess.Popen[bytes]:
        """Start a worker; ``fault`` is ``ACTION@POINT`` or ``delay@POINT:SECONDS``."""
        action, _, seconds = fault.partition(":")
        value = f"{action}:{name}{':' if seconds else ''}{seconds}" if fault else ""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": self.config.stream.interface or "lo",
            "PYTHONPATH": paced_samples.PYTHON_PATH,
            "LIVER_FAULT": value,
        }
        command = ["-m", "liver_slurm.worker", str(self.run_dir.path), "--role", name.split("-")[0], "--name", name]
        self.processes[name] = subprocess.Popen([*self.launcher(name), sys.executable, *command], env=environment)
        return self.processes[name]

    def pid(self, name: str) -> int:
        """Process id of a worker, as the coordinator has it."""
        status = self.status()
        return next(one["pid"] for one in status["workers"] + status["standbys"] if one["worker"] == name)

    def notice(self, *names: str) -> None:
        """What Slurm sends before it takes a node."""
        for pid in [self.pid(name) for name in names]:
            os.kill(pid, signal.SIGTERM)

    def report_end(self, name: str) -> None:
        """Wait until a worker is dead, and tell the coordinator, as whoever launched it does."""
        code = self.processes[name].wait(timeout=STARTUP)
        assert code == -signal.SIGKILL, f"{name} ended with {code}"
        self.killed.add(name)
        assert self.ask(WorkerEnded(worker=name, reason="killed by SIGKILL")).ok

    def committed_to(self, layout: str) -> dict[str, Any]:
        """The status once the run trains in the layout."""
        return self.steady(layout, STARTUP)

    def finish(self, code: int = 0) -> dict[int, float]:
        """Let the run go at full speed to its end; checks what holds for every run. Returns each step's loss."""
        self.slow.unlink(missing_ok=True)
        assert self.processes["coordinator"].wait(timeout=WHOLE_RUN) == code, self.events("run_ended")
        for name, process in self.processes.items():
            expected = {"coordinator": code}.get(name, -signal.SIGKILL if name in self.killed else 0)
            assert process.wait(timeout=STARTUP) == expected, name
        assert not self.left()
        return self.losses()

    def losses(self) -> dict[int, float]:
        """Each step's loss so far; each step is there once, in order."""
        lines = list(read_metrics(self.run_dir.metrics))
        steps = [line.step for line in lines]
        assert steps == list(range(steps[0], steps[-1] + 1)), "every step once"
        return {line.step: line.loss for line in lines}

    def wait_step(self, step: int) -> None:
        """Wait until so many steps are trained."""
        self.until(lambda: self.status().get("step", -1) >= step, f"step {step}", STARTUP)

    def left(self) -> list[str]:
        """Command lines of the run's processes that still live."""
        lines = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or ())
            if str(self.run_dir.path) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
                lines.append(line)
        return lines
