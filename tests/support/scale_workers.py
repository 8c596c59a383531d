"""All workers of a run on many emulated nodes, in one process: ``scale_workers.py RUN_DIR --guaranteed N``.

Each speaks the real protocol over a connection of its own and trains nothing; steps are made together, as by
collectives. Standby jobs say through the pipe RUN_DIR/told when they begin and when Slurm wants their nodes back. A
second is a line of RUN_DIR/samples.jsonl.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
from fake_worker import FakeWorker

from liver_slurm.base.faults import started
from liver_slurm.base.open_files import allow_many_files
from liver_slurm.config.load import read_job
from liver_slurm.protocol import messages as m
from liver_slurm.protocol.worker_channel import WorkerChannel
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import read_run_info
from liver_slurm.rundir.worker_names import guaranteed_prefix, standby_prefix, worker_name

PACE = 0.2
"""Seconds of a step."""
TURN = 0.02
"""Seconds between two looks at all workers."""


class Line(WorkerChannel):
    """A worker's connection; all of the process share one context, which has two threads."""

    def __init__(self, run_dir: RunDir, register: Any) -> None:
        super().__init__(run_dir, register)
        self._context.term()
        self._context = zmq.Context.instance()

    def close(self, linger: float = 2.0) -> None:
        if self._socket is not None:
            self._socket.close(linger=int(linger * 1000))
            self._socket = None


class ThinWorker(FakeWorker):
    """One of many workers in a process."""

    heartbeat = 1.0

    def __init__(self, crew: Crew, name: str, job: Job | None, host: str) -> None:
        self.crew, self.job, self.host = crew, job, host
        self.run_dir, self.config, self.run_id = crew.run_dir, crew.config, crew.run_id
        self.name, self.role, self.pace = name, "live" if job is None else "standby", PACE
        self.deeds = {}
        self.begin()
        self.preparing, self.left = -1, False
        self.trace = io.StringIO()
        self.channel = Line(self.run_dir, self.registration)

    def registration(self) -> m.Register:
        return m.Register(
            run_id=self.run_id, worker=self.name, role=self.role, host=self.host, pid=os.getpid(),
            began=started(os.getpid()), job_id="live" if self.job is None else self.job.job_id, device="cpu",
            generation=self.generation, step=self.step, warm=True,
        )  # fmt: skip

    def may_step(self) -> bool:
        return self.step <= self.crew.slowest and super().may_step()

    def handle(self, message: Any) -> None:
        if isinstance(message, m.Prepare):
            self.preparing = message.generation
        super().handle(message)
        if isinstance(message, m.Commit | m.Abort) and message.generation == self.preparing:
            self.preparing = -1
            if self.noticed and self.generation < 0:
                self.leave("notice")

    def see_signals(self) -> None:
        if self.signals and self.preparing >= 0:  # one that prepares a world is asked for, as one that is in a world
            self.signals.clear()
            self.noticed = True
            self.channel.send(m.Notice(worker=self.name, reason="SIGTERM", time=time.time()))
        else:
            super().see_signals()

    def leave(self, reason: str) -> None:
        self.channel.send(m.Leaving(worker=self.name, reason=reason))
        self.channel.close()
        self.left = True
        raise SystemExit


@dataclass
class Job:
    """A standby job of which we have heard."""

    job_id: str
    shell: int
    """Descriptor of its process, which stands for no other one, as a process id may when the shell has ended."""
    nodes: int
    workers: list[ThinWorker] = field(default_factory=list)


class Crew:
    """All workers, and the jobs that they stand for."""

    def __init__(self, run_dir: RunDir, guaranteed: int) -> None:
        self.run_dir, self.config = run_dir, read_job(run_dir.job_file)
        self.run_id = read_run_info(run_dir).run_id
        self.jobs: dict[str, Job] = {}
        self.slowest = 0
        """Step of the member of the live world that has come the least far."""
        names = [worker_name(guaranteed_prefix(), number) for number in range(guaranteed)]
        self.guaranteed = [ThinWorker(self, name, None, "guaranteed") for name in names]
        self._told = os.open(run_dir.path / "told", os.O_RDWR | os.O_NONBLOCK)
        self._rest = b""
        self._shells = select.poll()
        """Says which shells have ended."""
        self._samples = (run_dir.path / "samples.jsonl").open("a", buffering=1)

    def workers(self) -> list[ThinWorker]:
        return [*self.guaranteed, *(worker for job in self.jobs.values() for worker in job.workers)]

    def run(self) -> None:
        """Go on until the run's coordinator has sent the guaranteed workers away."""
        sample_at = 0.0
        while not all(worker.left for worker in self.guaranteed):
            begun = time.monotonic()
            self.hear()
            workers = [worker for worker in self.workers() if not worker.left]
            self.slowest = min((worker.step for worker in workers if worker.generation >= 0), default=0)
            for worker in workers:
                with suppress(SystemExit):  # it leaves
                    worker.turn(0.0)
            self.end_jobs()
            if begun >= sample_at:
                sample_at = begun + 1.0
                self.sample(time.monotonic() - begun)
            time.sleep(max(0.0, begun + TURN - time.monotonic()))  # the pace of the looks

    def hear(self) -> None:
        """Take what jobs say."""
        try:
            self._rest += os.read(self._told, 1 << 16)
        except BlockingIOError:
            return
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            what, job_id, pid, nodes, host = line.decode().split()
            if what == "begun":
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    self.begin(Job(job_id, os.pidfd_open(int(pid)), int(nodes)), host)
            elif job_id in self.jobs:
                for worker in self.jobs[job_id].workers:
                    if not worker.left:
                        worker.signals.append(signal.SIGTERM)

    def begin(self, job: Job, host: str) -> None:
        """Begin a job's workers."""
        self.jobs[job.job_id] = job
        self._shells.register(job.shell, select.POLLIN)
        names = [worker_name(standby_prefix(job.job_id), number) for number in range(job.nodes)]
        job.workers = [ThinWorker(self, name, job, host) for name in names]

    def end_jobs(self) -> None:
        """End jobs whose workers have all left, and drop those of jobs that were killed."""
        ended = {shell for shell, _ in self._shells.poll(0)}
        for job in list(self.jobs.values()):
            if job.shell in ended:
                for worker in job.workers:
                    worker.channel.close(0.0)
            elif all(worker.left for worker in job.workers):
                with suppress(ProcessLookupError):  # it has ended since it was looked
                    signal.pidfd_send_signal(job.shell, signal.SIGTERM)
            else:
                continue
            self._shells.unregister(job.shell)
            os.close(job.shell)
            del self.jobs[job.job_id]

    def sample(self, took: float) -> None:
        members = sum(worker.generation >= 0 for job in self.jobs.values() for worker in job.workers)
        held = sum(job.nodes for job in self.jobs.values())
        row = {"time": time.time(), "held": held, "members": members, "step": self.slowest, "turn_s": round(took, 4)}
        self._samples.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--guaranteed", type=int, required=True)
    options = parser.parse_args()
    allow_many_files()
    zmq.Context.instance().set(zmq.MAX_SOCKETS, 4096)
    Crew(RunDir(options.run_dir), options.guaranteed).run()


if __name__ == "__main__":
    main()
