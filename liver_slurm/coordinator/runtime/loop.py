"""The coordinator's process around its state machine: messages, time and capacity in; sends, records and events out."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from liver_slurm.coordinator.core.io import (
    Action,
    Emit,
    Finish,
    FromPeer,
    GiveBack,
    Input,
    Journal,
    Launch,
    Release,
    Send,
    SubmitSuccessor,
    Tick,
)
from liver_slurm.coordinator.core.state import RunState
from liver_slurm.coordinator.core.step import step
from liver_slurm.coordinator.runtime.background_calls import SupplyWatch
from liver_slurm.coordinator.runtime.claim import Claim
from liver_slurm.coordinator.runtime.journal import Journal as JournalFile
from liver_slurm.coordinator.runtime.live_job_watch import LiveJobWatch
from liver_slurm.coordinator.runtime.node_return import NodeReturn
from liver_slurm.coordinator.runtime.stopping import Stopping
from liver_slurm.protocol.messages import StatusRequest
from liver_slurm.protocol.server import ControlServer
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import SCHEMA_VERSION, CoordinatorStarted

log = logging.getLogger(__name__)

TICK = 0.1
"""Seconds between looks at the clock; deadlines are no finer than that."""
_LOGGED = ("time", "event")
"""Keys of an event that stand at the beginning of its line in the process's log."""


class Clock:
    """Seconds since the epoch that never jump: a corrected system clock must not make everybody look silent."""

    def __init__(self) -> None:
        self._base = time.time() - time.monotonic()

    def now(self) -> float:
        """The time."""
        return self._base + time.monotonic()


class Loop:
    """Feeds one run's state machine until it says that the process may end."""

    def __init__(
        self,
        state: RunState,
        server: ControlServer,
        journal: JournalFile,
        events: EventLog,
        watch: SupplyWatch | None,
        live_job: LiveJobWatch | None,
        stopping: Stopping,
        claim: Claim,
        clock: Clock,
        node_return: NodeReturn | None,
    ) -> None:
        self._state, self._server, self._journal, self._events = state, server, journal, events
        self._watch, self._live_job, self._stopping = watch, live_job, stopping
        self._claim, self._clock = claim, clock
        self._node_return = node_return
        self._finish: Finish | None = None

    def announce(self, host: str) -> None:
        """Say in the event log that this coordinator has started, on ``host``."""
        state = self._state
        started = CoordinatorStarted(
            generation=state.generation,
            epoch=state.settings.epoch,
            phase=state.phase.value,
            host=host,
            schema_version=SCHEMA_VERSION,
        )
        self.perform(Emit(started))

    def run(self) -> Finish:
        """Serve until the run is over.

        Raises:
            Outdated: Slurm has started the live job again, and this coordinator is of an earlier start.
        """
        next_tick = 0.0
        while self._finish is None:
            self._claim.check()
            for peer, message in self._server.receive(TICK):
                if isinstance(message, StatusRequest):
                    self._state = replace(self._state, rejected={**self._state.rejected, **self._server.rejected})
                self._feed(FromPeer(self._clock.now(), peer, message))
            for source in (self._watch, self._live_job, self._stopping, self._node_return):
                for given in source.poll(self._clock.now()) if source is not None else ():
                    self._feed(given)
            # After the messages: whoever has just been heard of is not silent.
            if self._clock.now() >= next_tick:
                self._feed(Tick(self._clock.now()))
                next_tick = self._clock.now() + TICK
        return self._finish

    def perform(self, action: Action) -> None:
        """Carry out one action."""
        if isinstance(action, Send):
            self._server.send(action.peer, action.message)
        elif isinstance(action, Journal):
            self._journal.append(action.record)
        elif isinstance(action, Emit):
            document = self._events.append(action.event)
            log.info("%s %s", document["event"], {key: document[key] for key in document if key not in _LOGGED})
        elif isinstance(action, Finish):
            self._finish = action
        elif isinstance(action, SubmitSuccessor):
            assert self._live_job is not None, "whoever has seen the live job can submit"
            self._live_job.submit()
        elif isinstance(action, GiveBack):
            assert self._node_return is not None, "asked of heterogeneous jobs only"
            self._node_return.give_back(action)
        elif self._watch is None:
            log.warning("there is nobody to do %s", action)
        elif isinstance(action, Launch):
            self._watch.launch(action.count, action.unit, action.partition)
        elif isinstance(action, Release):
            self._watch.release(action.job_id)

    def _feed(self, given: Input) -> None:
        if self._finish is None:
            self._state, actions = step(self._state, given)
            for action in actions:
                self.perform(action)
