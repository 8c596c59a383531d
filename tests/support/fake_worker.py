"""A worker that speaks the real protocol over real sockets and trains nothing: it counts steps at a fixed pace.

``python fake_worker.py RUN_DIR --name live-0 --role live [--step-seconds S] [--at POINT=DEED]…``

POINT: prepare, confirm, halt, commit (a message arrived; not for world 0), streamed (the vote is about to go out).
DEED: die, fail, hang.
Every step it counts is a line in RUN_DIR/trace/NAME: GENERATION STEP.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from liver_slurm.base.faults import started
from liver_slurm.config.load import read_job
from liver_slurm.protocol import messages as m
from liver_slurm.protocol.worker_channel import WorkerChannel
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import read_run_info

HEARTBEAT = 0.1


class FakeWorker:
    """One loop: messages, then a step if nothing holds it."""

    heartbeat = HEARTBEAT

    def __init__(self, options: argparse.Namespace) -> None:
        self.run_dir = RunDir(options.run_dir)
        self.config, self.run_id = read_job(self.run_dir.job_file), read_run_info(self.run_dir).run_id
        self.name, self.role, self.pace = options.name, options.role, options.step_seconds
        self.deeds = dict(text.split("=") for text in options.at)
        self.begin()
        trace = self.run_dir.path / "trace"
        trace.mkdir(exist_ok=True)
        self.trace = (trace / self.name).open("a", buffering=1)
        signal.signal(signal.SIGTERM, lambda number, _frame: self.signals.append(number))
        self.channel = WorkerChannel(self.run_dir, self.registration)

    def begin(self) -> None:
        """Be in no world yet, and have heard nothing."""
        self.generation, self.rank, self.step = -1, -1, 0
        self.prepared: m.Prepare | None = None
        self.boundaries: dict[int, tuple[int, str, int, bool]] = {}
        self.verdict_for = -1  # generation whose Commit or Abort is awaited
        self.finished = self.noticed = self.halted = False
        self.signals: list[int] = []
        self.ended_at = self.moved_at = self.beat_at = self.step_at = 0.0

    def registration(self) -> m.Register:
        return m.Register(
            run_id=self.run_id,
            worker=self.name,
            role=self.role,
            host=os.uname().nodename,
            pid=os.getpid(),
            began=started(os.getpid()),
            job_id=self.name if self.role == "standby" else "live",
            device="cpu",
            generation=self.generation,
            step=self.step,
            warm=True,
        )

    def run(self) -> None:
        while True:
            self.turn(0.005)

    def turn(self, wait: float) -> None:
        """What there is to do now; waits so long for messages."""
        for message in self.channel.poll(wait):
            self.handle(message)
        self.see_signals()
        self.meet_boundary()
        now = time.monotonic()
        if now >= self.beat_at:
            self.beat_at = now + self.heartbeat
            self.beat()
        if now >= self.step_at and self.may_step():
            self.step_at = now + self.pace
            self.trace.write(f"{self.generation} {self.step}\n")
            self.step += 1
            self.ended_at = self.moved_at = time.time()
            if self.step == self.config.train.steps:
                self.finished = True
                self.channel.send(m.Finished(worker=self.name, step=self.step))

    def beat(self) -> None:
        self.channel.send(
            m.Heartbeat(
                worker=self.name, generation=self.generation, step=self.step, step_seconds=self.pace, warm=True,
                since_step=time.time() - self.moved_at,
            )
        )  # fmt: skip

    def may_step(self) -> bool:
        held = any(step == self.step for step, *_rest in self.boundaries.values())
        return self.generation >= 0 and not (held or self.halted or self.finished) and self.verdict_for < 0

    def handle(self, message: Any) -> None:
        if isinstance(message, m.HeartbeatRequest):
            self.beat()
        elif isinstance(message, m.Prepare):
            self.prepared = message
            ok = self.deed("prepare")
            if ok is not None:
                self.channel.send(
                    m.Prepared(worker=self.name, generation=message.generation, ok=ok, error="" if ok else "told to")
                )
        elif isinstance(message, m.ProposeBoundary):
            accepted = message.step >= self.step and not self.finished
            if accepted:
                self.boundaries[message.boundary] = (message.step, message.purpose, message.generation, False)
            else:
                self.boundaries.pop(message.boundary, None)
            self.channel.send(
                m.BoundaryVote(
                    worker=self.name,
                    boundary=message.boundary,
                    step=message.step,
                    accepted=accepted,
                    current_step=self.step,
                )
            )
        elif isinstance(message, m.ConfirmBoundary):
            self.deed("confirm")
            self.boundaries[message.boundary] = (message.step, message.purpose, message.generation, True)
        elif isinstance(message, m.WithdrawBoundary):
            self.boundaries.pop(message.boundary, None)
        elif isinstance(message, m.Commit):
            self.commit(message)
        elif isinstance(message, m.Abort):
            self.boundaries = {
                number: held
                for number, held in self.boundaries.items()
                if held[1] != "cutover" or held[2] != message.generation
            }
            if self.verdict_for == message.generation:
                self.verdict_for = -1
        elif isinstance(message, m.Halt):
            self.halt(message)
        elif isinstance(message, m.Leave | m.Refused):
            self.leave(message.reason)

    def meet_boundary(self) -> None:
        for number, (step, purpose, generation, confirmed) in list(self.boundaries.items()):
            due = confirmed and (self.step == step or self.generation < 0)
            if not due:
                continue
            del self.boundaries[number]
            if purpose == "checkpoint":
                if self.rank == 0:
                    self.channel.send(m.CheckpointWritten(worker=self.name, step=step, ok=True, path=f"step-{step}"))
                continue
            ok = self.deed("streamed")
            self.verdict_for = generation
            if ok is not None:
                paused = self.ended_at if self.generation >= 0 else 0.0
                self.channel.send(
                    m.Streamed(
                        worker=self.name,
                        generation=generation,
                        ok=ok,
                        error="" if ok else "told to",
                        report=m.TransferReport(
                            bytes_received=10,
                            bytes_local=5,
                            staging_peak_bytes=7,
                            digests_checked=3,
                            paused_at=paused,
                            gap_seconds=0.001,
                        ),
                    )
                )

    def halt(self, message: m.Halt) -> None:
        if message.generation != self.generation or self.deed("halt") is None:
            return
        self.boundaries, self.verdict_for, self.halted = {}, -1, True
        self.channel.send(m.Parked(worker=self.name, generation=self.generation, step=self.step, error="told to"))

    def commit(self, message: m.Commit) -> None:
        if (
            self.prepared is None
            or message.generation != self.prepared.generation
            or (message.generation == self.generation)
        ):
            return
        if message.generation > 0 and self.deed("commit") is None:
            return
        self.verdict_for, self.halted = -1, False
        self.boundaries = {number: held for number, held in self.boundaries.items() if held[1] != "checkpoint"}
        if self.name not in self.prepared.members:
            self.generation = self.rank = -1
            if self.noticed:
                self.leave("notice")
            return
        self.generation, self.step, self.moved_at = message.generation, message.step, time.time()
        self.rank = self.prepared.members.index(self.name)
        self.channel.send(
            m.WorldEntered(worker=self.name, generation=self.generation, step=self.step, time=time.time())
        )

    def deed(self, point: str) -> bool | None:
        """True: go on; False: say that it failed; None: say nothing."""
        deed = self.deeds.pop(point, "")
        if deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return None if deed == "hang" else deed != "fail"

    def see_signals(self) -> None:
        while self.signals:
            self.signals.pop()
            self.noticed = True
            self.channel.send(m.Notice(worker=self.name, reason="SIGTERM", time=time.time()))
            if self.generation < 0:
                self.leave("SIGTERM")

    def leave(self, reason: str) -> None:
        self.channel.send(m.Leaving(worker=self.name, reason=reason))
        self.channel.close()
        sys.exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--role", required=True)
    parser.add_argument("--step-seconds", type=float, default=0.02)
    parser.add_argument("--at", action="append", default=[])
    FakeWorker(parser.parse_args()).run()


if __name__ == "__main__":
    main()
