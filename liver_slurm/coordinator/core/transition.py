"""One turn of the state machine: a draft of the next state, and the actions collected on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec

from liver_slurm.coordinator.core.io import Action, Emit, Journal, Send
from liver_slurm.coordinator.core.records import Record
from liver_slurm.coordinator.core.state import Phase, RunState, Worker
from liver_slurm.protocol.messages import Message
from liver_slurm.rundir.events import Event


class Transition:
    """Handlers change ``state`` through the methods here; the state that came in stays as it was."""

    def __init__(self, state: RunState, now: float) -> None:
        self.state = replace(state, now=now)
        self.now = now
        self.actions: list[Action] = []

    def update(self, **changes: Any) -> None:
        """Replace fields of the state."""
        self.state = replace(self.state, **changes)

    def stir(self) -> None:
        """Let the policy look at the run at the end of this turn."""
        self.update(replan=True)

    def enter(self, phase: Phase) -> None:
        """Change the phase."""
        self.update(phase=phase)

    def change_worker(self, name: str, **changes: Any) -> None:
        """Replace fields of one registered worker."""
        self.put_worker(replace(self.state.workers[name], **changes))

    def put_worker(self, worker: Worker) -> None:
        """Add or replace one worker."""
        self.update(workers={**self.state.workers, worker.name: worker})

    def forget_worker(self, name: str) -> None:
        """Remove one worker."""
        self.update(workers={other: worker for other, worker in self.state.workers.items() if other != name})

    def reject(self, kind: str) -> None:
        """Count a message that changes nothing."""
        rejected = self.state.rejected
        self.update(rejected={**rejected, kind: rejected.get(kind, 0) + 1})

    def send(self, names: Iterable[str], message: Message) -> None:
        """Send to those of the named workers that are registered."""
        workers = self.state.workers
        self.actions.extend(Send(workers[name].peer, message) for name in names if name in workers)

    def answer(self, peer: bytes, message: Message) -> None:
        """Send to a peer, registered or not."""
        self.actions.append(Send(peer, message))

    def emit(self, event: Event, generation: int | None = None) -> None:
        """Append to the event log; ``generation`` is the live world's unless another is meant."""
        number = self.state.generation if generation is None else generation
        self.actions.append(Emit(msgspec.structs.replace(event, generation=number)))

    def journal(self, record: Record) -> None:
        """Make a record durable before whatever comes after it in this turn."""
        self.actions.append(Journal(record))
