"""Real workers that start in a moment: each is forked from a process that has imported everything already.

``python worker_nursery.py`` reads a line of JSON for each worker, ``{"run_dir", "name", "environment"}``, answers with
``{"pid"}``, and says ``{"pid", "code"}`` when one has ended. It ends its workers when its standard input ends.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import paced_samples


class ForkedWorker:
    """A worker of a nursery, with the methods of :class:`subprocess.Popen` that the labs use."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid, self._nursery = pid, nursery

    @property
    def returncode(self) -> int | None:
        """As that of a Popen."""
        return self._nursery.codes.get(self.pid)

    def poll(self) -> int | None:
        """As that of a Popen."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As that of a Popen."""
        with self._nursery.changed:
            if not self._nursery.changed.wait_for(lambda: self.pid in self._nursery.codes, timeout):
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0.0)
        return self._nursery.codes[self.pid]

    def send_signal(self, number: int) -> None:
        """As that of a Popen."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """As that of a Popen."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that forks, as its caller has it."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        environment["PYTHONPATH"] = paced_samples.PYTHON_PATH
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.codes: dict[int, int] = {}
        self.changed = threading.Condition()
        self._born: list[int] = []
        self._ended = False
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, run_dir: Path, name: str, environment: Mapping[str, str]) -> ForkedWorker:
        """Fork a worker."""
        assert self._process.stdin is not None
        line = {"run_dir": str(run_dir), "name": name, "environment": dict(environment)}
        with self.changed:
            count = len(self._born)
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
            if not self.changed.wait_for(lambda: len(self._born) > count or self._ended, 600.0) or self._ended:
                raise AssertionError("the nursery has ended" if self._ended else "the nursery does not answer")
            return ForkedWorker(self, self._born[-1])

    def close(self) -> None:
        """End it, and all its workers."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            with self.changed:
                if "code" in said:
                    self.codes[said["pid"]] = said["code"]
                else:
                    self._born.append(said["pid"])
                self.changed.notify_all()
        with self.changed:
            self._ended = True
            self.changed.notify_all()


def _fork(order: dict[str, Any], inherited: IO[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)  # a signal to us is none to it
    os.close(inherited.fileno())
    os.environ.update(order["environment"])
    from liver_slurm.worker import bootstrap, fault_injection

    fault = os.environ.get("LIVER_FAULT")
    fault_injection._fault = fault_injection._parse(fault) if fault else None
    bootstrap.main(Path(order["run_dir"]), order["name"].split("-")[0], order["name"])
    raise AssertionError("a worker does not return")


def _reap(alive: set[int], answers: IO[str]) -> None:
    for pid in list(alive):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            alive.discard(pid)
            answers.write(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}) + "\n")
            answers.flush()


def main() -> None:
    """Fork workers until standard input ends."""
    # What a worker imports, with all that is slow about it, and nothing that starts a thread.
    import liver_slurm.engine.megatron.engine
    import liver_slurm.worker.worker  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    alive: set[int] = set()
    rest = ""
    while True:
        _reap(alive, answers)
        if not select.select([0], [], [], 0.02)[0]:
            continue
        data = os.read(0, 1 << 16).decode()
        if not data:
            break
        *lines, rest = (rest + data).split("\n")
        for line in lines:
            pid = _fork(json.loads(line), answers)
            alive.add(pid)
            answers.write(json.dumps({"pid": pid}) + "\n")
            answers.flush()
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
