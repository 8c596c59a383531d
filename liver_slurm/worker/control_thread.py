"""Control thread of a worker: talks to the coordinator, reads signals, and starts the preparation of target worlds.

In steady state it only sends heartbeats.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from liver_slurm.protocol.messages import FromWorker, Heartbeat, Leaving, Notice
from liver_slurm.protocol.worker_channel import WorkerChannel
from liver_slurm.rundir.paths import RunDir
from liver_slurm.worker import fault_injection
from liver_slurm.worker.directives import Directives
from liver_slurm.worker.orders import Orders, WorkerPort
from liver_slurm.worker.signals import NOTICES, RESUMED, SUSPEND_DELAY, SUSPENDED

log = logging.getLogger(__name__)

STUCK, STUCK_STEPS = 10.0, 20.0
"""Seconds, and usual steps, that a step may take after the worker was told to leave."""


def is_stuck(beat: Heartbeat, leaving_for: float) -> bool:
    """Return whether a worker that was told to leave so many seconds ago is in a step that does not end.

    A world's first step is not judged: its layers may be compiled in it.
    """
    enough = max(STUCK, STUCK_STEPS * beat.step_seconds)
    return beat.computing and beat.step_seconds > 0 and leaving_for > enough and (beat.since_step or 0.0) > enough


class ControlThread(threading.Thread):
    """Owns the control channel; training reaches it through :meth:`post` and :meth:`beat`."""

    def __init__(
        self,
        run_dir: RunDir,
        worker: WorkerPort,
        directives: Directives,
        signals: int,
        heartbeat: float,
        orphan_timeout: float,
    ) -> None:
        """
        Args:
            signals: file descriptor that yields a byte, the signal's number, for each signal that came.
            heartbeat: seconds between heartbeats.
            orphan_timeout: seconds without a coordinator after which the worker is told.
        """
        super().__init__(name="control", daemon=True)
        self._run_dir, self._worker, self._directives = run_dir, worker, directives
        self._orders = Orders(worker, directives)
        self._signals, self._heartbeat, self._orphan_timeout = signals, heartbeat, orphan_timeout
        self._work: queue.SimpleQueue[Callable[[WorkerChannel], None]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._closing = threading.Event()
        self._suspended = False
        self._told = math.inf
        """When it was first seen that this worker is to leave."""
        self.failure: BaseException | None = None

    def post(self, message: FromWorker) -> None:
        """Send a message to the coordinator; messages keep the order of the calls."""
        self._soon(lambda channel: channel.send(message))

    def beat(self) -> None:
        """Send a heartbeat now, because something that it carries has changed."""
        self._soon(lambda channel: channel.send(self._worker.heartbeat(channel.rejected, channel.voted)))

    def drain(self) -> None:
        """Wait until everything posted so far is done."""
        done = threading.Event()
        self._soon(lambda _channel: done.set())
        while not done.wait(1.0):
            if not self.is_alive():
                raise RuntimeError("the control thread has died") from self.failure

    def close(self) -> None:
        """Send what is left, and end the thread."""
        self._closing.set()
        self._wake()
        self.join()

    def _soon(self, work: Callable[[WorkerChannel], None]) -> None:
        self._work.put(work)
        self._wake()

    def _wake(self) -> None:
        os.write(self._wake_write, b"\0")

    def run(self) -> None:
        """Run the body of the thread."""
        try:
            self._run()
        except BaseException as error:
            # Without this thread a worker can neither hear nor say anything: training must not go on unseen.
            self.failure = error
            log.exception("the control thread failed")
            self._directives.leave(f"control thread failed: {error}")

    def _run(self) -> None:
        channel = WorkerChannel(self._run_dir, self._worker.registration)
        next_beat = 0.0
        orphaned = False
        try:
            while not self._closing.is_set():
                begun = time.monotonic()
                wait = max(0.0, next_beat - begun)
                for message in channel.poll(wait, (self._wake_read, self._signals)):
                    self._orders.obey(message, channel)
                self._read_signals(channel)
                self._do_work(channel)
                if time.monotonic() >= next_beat:
                    beat = self._worker.heartbeat(channel.rejected, channel.voted)
                    channel.send(beat)
                    self._end_if_stuck(beat)
                    next_beat = time.monotonic() + max(self._heartbeat, channel.every)
                if time.monotonic() - begun > wait + self._orphan_timeout / 2:
                    channel.excuse_silence()  # this process was stalled, not the coordinator
                if not orphaned and channel.seconds_since_contact > self._orphan_timeout:
                    orphaned = True
                    self._worker.orphaned()
            self._do_work(channel)
        finally:
            channel.close()

    def _end_if_stuck(self, beat: Heartbeat) -> None:
        """End this process where it was told to leave and its training thread cannot: a card, or a collective, hangs.

        Whoever started it starts another one, which can have the card.
        """
        if self._directives.leaving:
            self._told = min(self._told, time.monotonic())
        if is_stuck(beat, time.monotonic() - self._told):
            log.error("told to leave, and step %d, which it is in, does not end: this process ends itself", beat.step)
            logging.shutdown()
            os.kill(os.getpid(), signal.SIGKILL)

    def _do_work(self, channel: WorkerChannel) -> None:
        while True:
            try:
                work = self._work.get_nowait()
            except queue.Empty:
                break
            work(channel)
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            return
        if not self._work.empty():
            self._wake()  # posted between the last look and the read

    def _read_signals(self, channel: WorkerChannel) -> None:
        try:
            numbers = os.read(self._signals, 64)
        except BlockingIOError:
            return
        if fault_injection.ignores("notice", self._worker.name):
            return
        for number in numbers:
            if number in NOTICES:
                self._own_notice(channel, signal.Signals(number).name)
            elif number == SUSPENDED:
                log.info("this worker will be suspended")
                self._suspended, now = True, time.time()
                self._notice(channel, SUSPENDED.name, now, deadline=now + SUSPEND_DELAY, suspended=True)
            elif number == RESUMED and self._suspended:
                log.info("this worker runs again")
                self._suspended = False
                self._notice(channel, RESUMED.name, time.time(), withdrawn=True)

    def _own_notice(self, channel: WorkerChannel, name: str) -> None:
        log.info("%s: this worker will go away", name)
        self._notice(channel, name, time.time())
        if self._worker.engaged():
            self._worker.noticed()
        else:
            channel.send(Leaving(worker=self._worker.name, reason=name))
            self._directives.leave(name)

    def _notice(self, channel: WorkerChannel, reason: str, now: float, **details: Any) -> None:
        channel.send(Notice(worker=self._worker.name, reason=reason, time=now, **details))
