"""The coordinator's process around its state machine: messages, time and capacity in; sends, records and events out."""

from __future__ import annotations

import logging
from dataclasses import replace

from liver_slurm.base.clock import Clock
from liver_slurm.coordinator.core.io import (
    Action,
    Emit,
    Finish,
    FromPeer,
    Input,
    Journal,
    Send,
    Tick,
)
from liver_slurm.coordinator.core.state import RunState
from liver_slurm.coordinator.core.step import step
from liver_slurm.coordinator.runtime.ownership import Lease
from liver_slurm.coordinator.runtime.scheduler_calls import SchedulerCalls
from liver_slurm.protocol.messages import StatusRequest
from liver_slurm.protocol.server import ControlServer
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import SCHEMA_VERSION, CoordinatorStarted

log = logging.getLogger(__name__)

TICK = 0.1
"""Seconds between looks at the clock; deadlines are no finer than that."""
_LOGGED = ("time", "event")
"""Keys of an event that stand at the beginning of its line in the process's log."""


class Loop:
    """Feeds one run's state machine until it says that the process may end."""

    def __init__(
        self,
        state: RunState,
        server: ControlServer,
        lease: Lease,
        events: EventLog,
        calls: SchedulerCalls,
        clock: Clock,
    ) -> None:
        self._state, self._server, self._lease = state, server, lease
        self._events, self._calls, self._clock = events, calls, clock
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
            Fenced: Slurm has started the guaranteed job again, and this coordinator is of an earlier start.
        """
        next_tick = 0.0
        while self._finish is None:
            self._lease.fence.check()
            for peer, message in self._server.receive(TICK):
                if isinstance(message, StatusRequest):
                    self._state = replace(self._state, rejected={**self._state.rejected, **self._server.rejected})
                self._feed(FromPeer(self._clock.now(), peer, message))
            for given in self._calls.poll(self._clock.now()):
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
            self._lease.journal.append(action.record)
        elif isinstance(action, Emit):
            document = self._events.append(action.event)
            log.info("%s %s", document["event"], {key: document[key] for key in document if key not in _LOGGED})
        elif isinstance(action, Finish):
            self._finish = action
        else:
            self._calls.perform(action)

    def _feed(self, given: Input) -> None:
        if self._finish is None:
            self._state, actions = step(self._state, given)
            for action in actions:
                self.perform(action)
