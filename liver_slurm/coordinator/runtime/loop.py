"""The coordinator's process around its state machine: messages, time and capacity in; sends, records and events out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from sqlite3 import OperationalError

from liver_slurm.base.clock import Clock
from liver_slurm.coordinator.core import status
from liver_slurm.coordinator.core.io import (
    Action,
    Emit,
    FindCheckpoint,
    Finish,
    FromPeer,
    HungUp,
    Input,
    Journal,
    RollBackMetrics,
    Send,
    Tick,
)
from liver_slurm.coordinator.core.records import Record
from liver_slurm.coordinator.core.state import RunState
from liver_slurm.coordinator.core.status import document
from liver_slurm.coordinator.core.step import plan, step
from liver_slurm.coordinator.runtime.journal import Lease
from liver_slurm.coordinator.runtime.restart import CheckpointCalls
from liver_slurm.coordinator.runtime.scheduler_calls import SchedulerCalls
from liver_slurm.observability.status import RunStatus, from_status
from liver_slurm.protocol.messages import Alive, Heartbeat, Reply, StatusRequest, ToCoordinator
from liver_slurm.protocol.rendezvous_server import RendezvousServer
from liver_slurm.protocol.server import ControlServer
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import (
    SCHEMA_VERSION,
    CoordinatorStarted,
    FilesBehind,
    MirrorDiffered,
    StepsInVain,
    StrangersRefused,
)

log = logging.getLogger(__name__)

TICK = 0.1
"""Seconds between looks at the clock; deadlines are no finer than that."""
STRANGERS_EVERY = 60.0
"""Seconds between two events about strangers."""
RETRY = 1.0
"""Seconds between two attempts to write a file that could not be written."""
COORDINATOR = "coordinator"
_LOGGED = ("time", "event")
"""Keys of an event that stand at the beginning of its line in the process's log."""


class Loop:
    """Feeds one run's state machine until it says that the process may end."""

    def __init__(
        self,
        state: RunState,
        server: ControlServer,
        store: RendezvousServer,
        lease: Lease,
        events: EventLog,
        calls: SchedulerCalls,
        checkpoints: CheckpointCalls,
        clock: Clock,
    ) -> None:
        self._checkpoints = checkpoints
        self._state, self._server, self._store, self._lease = state, server, store, lease
        self._events, self._calls, self._clock = events, calls, clock
        self._finish: Finish | None = None
        self._files: dict[str, str] = {}
        self._postponed: list[tuple[bytes, ToCoordinator]] = []
        self._next_flush = 0.0
        self._next_in_vain = 1
        self._mirrors_differed: dict[str, int] = {}
        self._said, self._next_word = (0, 0), clock.now() + STRANGERS_EVERY

    def announce(self, host: str, job_started: float = 0.0) -> None:
        """Say in the event log that this coordinator has started, on ``host``, and when Slurm started its job."""
        state = self._state
        started = CoordinatorStarted(
            generation=state.generation,
            epoch=state.settings.epoch,
            phase=state.phase.value,
            host=host,
            schema_version=SCHEMA_VERSION,
            job_started=job_started,
        )
        self.perform(Emit(started))

    def status(self) -> RunStatus:
        """Return what the run is doing; other threads may ask, as nobody changes the state in place."""
        return from_status(document(self._state))

    def run(self) -> Finish:
        """Serve until the run is over.

        Raises:
            Fenced: Slurm has started the guaranteed job again, and this coordinator is of an earlier start.
            RuntimeError: the rendezvous store has broken down.
        """
        next_tick = 0.0
        while self._finish is None:
            self._lease.fence.check()
            self._store.check()
            postponed, self._postponed = self._postponed, []
            messages = [*postponed, *self._server.receive(0.0 if postponed else TICK)]
            for peer, message in messages:
                self._hear(peer, message)
            if messages:
                self._plan()
            for peer, ago in self._server.hung_up(Alive(epoch=self._state.settings.epoch)):
                now = self._clock.now()
                self._feed(HungUp(now, peer, now - ago), planned=False)
            for given in (*self._calls.poll(self._clock.now()), *self._checkpoints.poll(self._clock.now())):
                self._feed(given)
            # After the messages: whoever has just been heard of is not silent.
            if self._clock.now() >= next_tick:
                self._feed(Tick(self._clock.now()))
                next_tick = self._clock.now() + TICK
                self._speak_of_strangers()
                self._look_at_files()
        return self._finish

    def _hear(self, peer: bytes, message: ToCoordinator) -> None:
        if isinstance(message, Heartbeat):
            self._files_behind(message.worker, message.files_waiting, message.files_error)
            self._in_vain(message)
            self._mirror_differed(message)
        if isinstance(message, StatusRequest):
            rejected = {**self._state.rejected, **self._rejected()}
            self._state = replace(self._state, rejected=rejected, files=dict(self._files))
        self._feed(FromPeer(self._clock.now(), peer, message), planned=False)

    def _in_vain(self, message: Heartbeat) -> None:
        """Say that steps change nothing, once and after each tenfold; all members of the world say the same."""
        if message.generation != self._state.generation or message.generation < 0:
            return
        if not message.in_vain:
            self._next_in_vain = 1
        elif message.in_vain >= self._next_in_vain:
            while self._next_in_vain <= message.in_vain:
                self._next_in_vain *= 10
            news = StepsInVain(generation=message.generation, step=message.step, in_a_row=message.in_vain)
            self.perform(Emit(news))

    def _mirror_differed(self, message: Heartbeat) -> None:
        """Say that a mirror was not what its owner had, of each worker that keeps some as often as that is so."""
        differed, last = message.mirror_proofs[1], message.mirror_differed
        if last is not None and differed > self._mirrors_differed.get(message.worker, 0):
            news = MirrorDiffered(
                generation=message.generation,
                worker=message.worker,
                owner=last.owner,
                step=last.step,
                boxes=last.boxes,
                differed=differed,
            )
            self.perform(Emit(news))
        if differed != self._mirrors_differed.get(message.worker, 0):  # a process that has its name has restarted
            self._mirrors_differed[message.worker] = differed

    def _files_behind(self, process: str, waiting: int, error: str) -> None:
        """Note that a process cannot write its lines, or can again."""
        if error == self._files.get(process, ""):
            return
        rest = {each: why for each, why in self._files.items() if each != process}
        self._files = {**rest, process: error} if error else rest
        generation = self._state.generation
        self.perform(Emit(FilesBehind(generation=generation, worker=process, waiting=waiting, error=error)))

    def _look_at_files(self) -> None:
        """Write the events that wait, and say so if they still do."""
        if self._clock.now() >= self._next_flush:
            self._next_flush = self._clock.now() + RETRY
            self._events.flush()
            self._files_behind(COORDINATOR, self._events.waiting, self._events.trouble)

    def _write_down(self, what: str, write: Callable[[], object]) -> None:
        """Do what must be on disk before anything else is decided.

        While that cannot be, as where a disk is full or gone, workers are answered, and train on if they have a world.

        Args:
            what: that is written, for people.
            write: writes it, all of it or nothing.
        """
        while error := _error_of(write):
            self._lease.fence.check()
            if self._files.get(COORDINATOR) != error:
                log.error("%s cannot be written (%s): nothing is decided until that is possible", what, error)
            self._files = {**self._files, COORDINATOR: error}
            for peer, message in self._server.receive(RETRY):
                self._postpone(peer, message)

    def _postpone(self, peer: bytes, message: ToCoordinator) -> None:
        """Answer what cannot wait, and keep the rest."""
        if isinstance(message, Heartbeat):
            self._server.send(peer, Alive(epoch=self._state.settings.epoch))
            # Of each worker the last one will do: it says that it was not silent.
            self._postponed = [one for one in self._postponed if not (one[0] == peer and isinstance(one[1], Heartbeat))]
        elif isinstance(message, StatusRequest):
            state = replace(self._state, files=dict(self._files))
            self._server.send(peer, Reply(ok=True, result=status.document(state)))
            return
        self._postponed.append((peer, message))

    def _speak_of_strangers(self) -> None:
        """Say in the event log, once a minute at most, how many callers without the run's key there were."""
        counts = self._server.rejected["strangers"], self._store.strangers
        if self._clock.now() >= self._next_word and sum(counts) > sum(self._said):
            self._said, self._next_word = counts, self._clock.now() + STRANGERS_EVERY
            generation = self._state.generation
            self.perform(Emit(StrangersRefused(generation=generation, control=counts[0], store=counts[1])))

    def _rejected(self) -> dict[str, int]:
        """Return what came to this process's ports and was none of the run's."""
        store = {"store_strangers": self._store.strangers, "store_malformed": self._store.malformed}
        return {**self._server.rejected, **store}

    def perform(self, action: Action) -> None:
        """Carry out one action."""
        if isinstance(action, Send):
            self._server.send(action.peer, action.message)
        elif isinstance(action, Journal):
            self._journal([action.record])
        elif isinstance(action, Emit):
            line = self._events.append(action.event)
            log.info("%s %s", line["event"], {key: line[key] for key in line if key not in _LOGGED})
        elif isinstance(action, Finish):
            self._finish = action
        elif isinstance(action, FindCheckpoint):
            self._checkpoints.find(action)
        elif isinstance(action, RollBackMetrics):
            # Before the commit record: the next world's writer takes what is in the file for steps that need no line.
            self._write_down("the metrics", partial(self._checkpoints.roll_back, action))
        else:
            self._calls.perform(action)

    def _feed(self, given: Input, *, planned: bool = True) -> None:
        if self._finish is None:
            self._state, actions = step(self._state, given, planned=planned)
            self._perform_all(actions)

    def _plan(self) -> None:
        """Do what the run does by itself, once for all messages that came together."""
        if self._finish is None:
            self._state, actions = plan(self._state, self._clock.now())
            self._perform_all(actions)

    def _perform_all(self, actions: Sequence[Action]) -> None:
        for kind, group in groupby(actions, key=type):
            if kind is Journal:
                self._journal([action.record for action in group if isinstance(action, Journal)])
            else:
                for action in group:
                    self.perform(action)

    def _journal(self, records: Sequence[Record]) -> None:
        """Write down records that follow one another: of thousands the disk is waited for once."""
        self._write_down("the journal", partial(self._lease.journal.append, *records))


def _error_of(write: Callable[[], object]) -> str:
    """Try to write; returns why it cannot be, for people; empty: it is written."""
    try:
        write()
    except OSError as error:
        return str(error.strerror or error)
    except OperationalError as error:
        return str(error)
    return ""
