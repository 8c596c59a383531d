"""A worker's second thread: talks to the coordinator, sees signals, and starts preparing target worlds.

In steady state it does nothing but heartbeats and writing metrics.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from liver_slurm.protocol.messages import (
    Abort,
    BoundaryVote,
    Commit,
    ConfirmBoundary,
    FromWorker,
    Heartbeat,
    Leave,
    Leaving,
    Notice,
    Prepare,
    ProposeBoundary,
    Refused,
    Register,
    ToWorker,
    WithdrawBoundary,
)
from liver_slurm.protocol.worker_channel import WorkerChannel
from liver_slurm.rundir.paths import RunDir
from liver_slurm.worker import fault_injection
from liver_slurm.worker.directives import Directives
from liver_slurm.worker.signals import NOTICES, RESUMED, SUSPEND_DELAY, SUSPENDED

log = logging.getLogger(__name__)


class WorkerPort(Protocol):
    """What the companion must know of, and may ask from, the worker that it belongs to."""

    name: str

    def registration(self) -> Register:
        """Who the worker is and where it stands now."""

    def heartbeat(self, rejected: int) -> Heartbeat:
        """How it does."""

    def engaged(self) -> bool:
        """Is it in a live world, or on its way into one? Then only the coordinator may let it go."""

    def prepare(self, message: Prepare) -> None:
        """Start building a target world, in a thread of its own."""

    def confirmed(self, message: ConfirmBoundary) -> None:
        """The step of a cutover is final: state may begin to leave or to arrive."""

    def expects(self, generation: int) -> bool:
        """Is a target world of this generation prepared here, or being so?"""

    def give_up(self, generation: int) -> bool:
        """Throw away a target world (-1: all); whether training waits for the verdict on it."""

    def noticed(self) -> None:
        """A notice has come while the worker is engaged."""

    def orphaned(self) -> None:
        """The coordinator has been away for too long."""


class ControlThread(threading.Thread):
    """Owns the control channel; training reaches it through :meth:`post` and :meth:`run_soon`."""

    def __init__(
        self,
        run_dir: RunDir,
        subject: WorkerPort,
        agenda: Directives,
        signals: int,
        heartbeat: float,
        orphan_timeout: float,
    ) -> None:
        """``signals``: file descriptor that yields a byte, the signal's number, for each signal that came."""
        super().__init__(name="companion", daemon=True)
        self._run_dir, self._subject, self._agenda = run_dir, subject, agenda
        self._signals, self._heartbeat, self._orphan_timeout = signals, heartbeat, orphan_timeout
        self._work: queue.SimpleQueue[Callable[[WorkerChannel], None]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._closing = threading.Event()
        self._suspended = False
        self.failure: BaseException | None = None

    def post(self, message: FromWorker) -> None:
        """Send a message, in the order of the calls."""
        self._soon(lambda channel: channel.send(message))

    def run_soon(self, work: Callable[[], None]) -> None:
        """Run something of the kind that must not hold up training, such as appending a line to a file."""
        self._soon(lambda _channel: work())

    def beat(self) -> None:
        """Send a heartbeat now: something that it carries has changed."""
        self._soon(lambda channel: channel.send(self._subject.heartbeat(channel.rejected)))

    def drain(self) -> None:
        """Wait until everything posted so far is done."""
        done = threading.Event()
        self._soon(lambda _channel: done.set())
        while not done.wait(1.0):
            if not self.is_alive():
                raise RuntimeError("the companion has died") from self.failure

    def close(self) -> None:
        """Send what is left and end the thread."""
        self._closing.set()
        self._wake()
        self.join()

    def _soon(self, work: Callable[[WorkerChannel], None]) -> None:
        self._work.put(work)
        self._wake()

    def _wake(self) -> None:
        os.write(self._wake_write, b"\0")

    def run(self) -> None:
        """The thread."""
        try:
            self._run()
        except BaseException as error:
            # Without its companion a worker can neither be told nor tell anything: training must not go on unseen.
            self.failure = error
            log.exception("the companion failed")
            self._agenda.leave(f"companion failed: {error}")

    def _run(self) -> None:
        channel = WorkerChannel(self._run_dir, self._subject.registration)
        next_beat = 0.0
        orphaned = False
        try:
            while not self._closing.is_set():
                begun = time.monotonic()
                wait = max(0.0, next_beat - begun)
                for message in channel.poll(wait, (self._wake_read, self._signals)):
                    self._handle(message, channel)
                self._see_signals(channel)
                self._do_work(channel)
                if time.monotonic() >= next_beat:
                    channel.send(self._subject.heartbeat(channel.rejected))
                    next_beat = time.monotonic() + self._heartbeat
                if time.monotonic() - begun > wait + self._orphan_timeout / 2:
                    channel.excuse_silence()  # it was this process that stood still, not the coordinator
                if not orphaned and channel.seconds_since_contact > self._orphan_timeout:
                    orphaned = True
                    self._subject.orphaned()
            self._do_work(channel)
        finally:
            channel.close()

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

    def _see_signals(self, channel: WorkerChannel) -> None:
        try:
            numbers = os.read(self._signals, 64)
        except BlockingIOError:
            return
        if fault_injection.ignores("notice", self._subject.name):
            return
        for number in numbers:
            if number in NOTICES:
                self._will_go(channel, signal.Signals(number).name)
            elif number == SUSPENDED:
                log.info("this worker will be suspended")
                self._suspended, now = True, time.time()
                self._notice(channel, SUSPENDED.name, now, deadline=now + SUSPEND_DELAY, suspended=True)
            elif number == RESUMED and self._suspended:
                log.info("this worker runs again")
                self._suspended = False
                self._notice(channel, RESUMED.name, time.time(), withdrawn=True)

    def _will_go(self, channel: WorkerChannel, name: str) -> None:
        log.info("%s: this worker will go away", name)
        self._notice(channel, name, time.time())
        if self._subject.engaged():
            self._subject.noticed()
        else:
            channel.send(Leaving(worker=self._subject.name, reason=name))
            self._agenda.leave(name)

    def _notice(self, channel: WorkerChannel, reason: str, now: float, **details: Any) -> None:
        channel.send(Notice(worker=self._subject.name, reason=reason, time=now, **details))

    def _handle(self, message: ToWorker, channel: WorkerChannel) -> None:
        agenda = self._agenda
        if isinstance(message, Prepare):
            self._subject.prepare(message)
        elif isinstance(message, ProposeBoundary):
            accepted, current = agenda.propose(message)
            channel.send(
                BoundaryVote(
                    worker=self._subject.name,
                    boundary=message.boundary,
                    step=message.step,
                    accepted=accepted,
                    current_step=current,
                )
            )
        elif isinstance(message, ConfirmBoundary):
            self._subject.confirmed(message)
            agenda.confirm(message)
        elif isinstance(message, WithdrawBoundary):
            agenda.withdraw(message.boundary)
        elif isinstance(message, Commit):
            if not (self._subject.expects(message.generation) and agenda.decide(message)):
                channel.rejected += 1  # said again, or of a world that this worker never heard of
        elif isinstance(message, Abort):
            waited_for = self._subject.give_up(message.generation)
            agenda.abort(message, waited_for)
        elif isinstance(message, Leave | Refused):
            log.info("told to leave: %s", message.reason)
            agenda.leave(message.reason)
            self._subject.give_up(-1)
