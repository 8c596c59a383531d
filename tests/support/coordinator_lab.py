"""A real coordinator process and fake workers around it, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from liver_slurm.base.errors import ControlError
from liver_slurm.config.schema import (
    ComponentSection,
    ElasticSection,
    JobConfig,
    JobSection,
    LiveSection,
    ModelSection,
    StandbySection,
    TrainSection,
)
from liver_slurm.config.validation import ValidationSection
from liver_slurm.protocol.client import request
from liver_slurm.protocol.messages import FromClient, Reply, StatusRequest
from liver_slurm.rundir.event_log import read_documents
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
T = TypeVar("T")


def job(workers: int = 2, steps: int = 1_000_000, **job: Any) -> JobConfig:
    """A job whose model can have any small layout."""
    config = JobConfig(
        job=JobSection(heartbeat=0.1, lost_after=5.0),
        model=ModelSection(num_layers=8, hidden_size=64, num_attention_heads=8, vocab_size=256),
        train=TrainSection(steps=steps, seq_length=64, micro_batch_size=1, global_batch_size=8),
        live=LiveSection(component=(ComponentSection(tasks_per_node=workers),)),
        standby=StandbySection(max_jobs=4, poll=0.2),
        elastic=ElasticSection(max_tp=2, settle=0.2),
    )
    return replace(config, job=replace(config.job, **job))


def with_validation(config: JobConfig) -> JobConfig:
    """The job, which has something to validate with."""
    return replace(config, validation=ValidationSection(provider="held:out"))


PATIENCE = 300.0
"""Seconds for what takes one or two where nothing else runs."""


def until(condition: Callable[[], T], what: str, timeout: float = PATIENCE) -> T:
    """Wait for a condition to hold; returns its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.02)


class Lab:
    """The processes of one run; :meth:`close` leaves none."""

    def __init__(self, folder: Path, config: JobConfig, resume: RunDir | None = None) -> None:
        self.config = replace(config, job=replace(config.job, run_root=str(folder)))
        self.run_dir: RunDir = create_run(self.config, resume)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.launcher: Callable[[str], list[str]] = lambda _name: []
        """What the command of a process begins with, by its name."""

    def coordinator(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the coordinator (again)."""
        command = ["-m", "liver_slurm.coordinator", str(self.run_dir.path), "--source", "none", *arguments]
        return self._start("coordinator", command)

    def worker(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a fake worker; its name says its role."""
        role = name.split("-")[0]
        return self._start(name, [str(FAKE_WORKER), str(self.run_dir.path), "--name", name, "--role", role, *arguments])

    def ask(self, message: FromClient) -> Reply:
        """Ask the coordinator."""
        return request(self.run_dir, message)

    def status(self) -> dict[str, Any]:
        """The status document; empty while there is no coordinator."""
        try:
            return request(self.run_dir, StatusRequest(), timeout=1.0).result
        except ControlError:
            return {}

    def events(self, name: str) -> list[dict[str, Any]]:
        """Events of one name so far."""
        return [event for event in read_documents(self.run_dir.events) if event["event"] == name]

    def wait_event(self, name: str, count: int = 1, timeout: float = PATIENCE) -> dict[str, Any]:
        """The ``count``-th event of a name, once it is there."""

        def there() -> list[dict[str, Any]]:
            events = self.events(name)
            return events if len(events) >= count else []

        return self.until(there, f"event {name}", timeout)[count - 1]

    def steady(self, layout: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """The status once the run trains in ``layout``."""

        def there() -> dict[str, Any]:
            status = self.status()
            return status if (status.get("phase"), status.get("layout")) == ("steady", layout) else {}

        return self.until(there, f"steady in {layout}; last: {self.status()}", timeout)

    def trace(self, name: str) -> list[tuple[int, int]]:
        """(generation, step) of each step that a fake worker made."""
        lines = (self.run_dir.path / "trace" / name).read_text().splitlines()
        return [(int(generation), int(step)) for generation, step in map(str.split, lines)]

    def kill(self, name: str) -> None:
        """kill -9."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def close(self) -> None:
        """End whatever still lives."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()

    def until(self, condition: Callable[[], T], what: str, timeout: float) -> T:
        """Wait for what a coordinator brings about: once it has ended, nothing more will come."""

        def there() -> T:
            ended = self.processes["coordinator"].poll()
            value = condition()
            assert value or ended is None, (
                f"the coordinator ended with {ended} before {what}: {self.events('run_ended')}"
            )
            return value

        return until(there, what, timeout)

    def _start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.run_dir.logs / f"{name}.log").open("ab") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                [*self.launcher(name), sys.executable, *command], stdout=log, stderr=log, env=environment
            )
        self.processes[name] = process
        return process
