"""One transition of the state: a draft of the next state, the actions and the signals collected on the way.

News travels in two ways. A module calls those below it (barriers, the journal, messages) directly. What concerns its
neighbours or those above it becomes a signal; :data:`~.step.REACTIONS` says who reacts to it, in which order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from liver_slurm.base.frozen import replace
from liver_slurm.coordinator.core.io import Action, Emit, Journal, Send
from liver_slurm.coordinator.core.records import Record
from liver_slurm.coordinator.core.signals import Signal, WorkerGone, WorkersGone
from liver_slurm.coordinator.core.state import PARTS, Phase, RunPhase, RunState
from liver_slurm.coordinator.core.worlds import ReconfigurationPhase
from liver_slurm.protocol.messages import Message
from liver_slurm.rundir.events import Event

REMEMBERED = 40
"""Inputs, records and changes of phase that a state remembers for its story."""
LONGEST = 300
"""Characters of an entry of the story, when it is told."""

# ---- changes of phase ----------------------------------------------------------------------------------------------

_GOING_ON = (RunPhase.STARTING, RunPhase.RECOVERING, RunPhase.TRAINING, RunPhase.FINISHING)
_STARTING, _RECOVERING, _TRAINING, _FINISHING = _GOING_ON
_STEADY, _PREPARE, _STREAM, _CUTOVER, _RETIRE = ReconfigurationPhase
TRANSITIONS: dict[tuple[Phase, Phase], str] = {
    (_STARTING, _TRAINING): "commit record of world 0",
    (_RECOVERING, _TRAINING): "every member has registered again",
    (_TRAINING, _FINISHING): "a member has trained the last step",
    (_RECOVERING, _FINISHING): "a member has trained the last step",
    (_FINISHING, _TRAINING): "a member is lost, or hangs, before all have trained the last step",
    (_TRAINING, RunPhase.FINISHED): "all members have trained the last step",
    (_FINISHING, RunPhase.FINISHED): "all members have trained the last step",
    (_TRAINING, RunPhase.HANDED_OVER): "the successor job goes on",
    **{(phase, RunPhase.FAILED): "it cannot go on" for phase in _GOING_ON},
    **{(phase, RunPhase.CANCELLED): "cancelled on request or by a signal" for phase in _GOING_ON},
    **{(phase, RunPhase.INTERRUPTED): "the guaranteed job starts again" for phase in _GOING_ON},
    **{(phase, RunPhase.STOPPED): "time limit, and no successor" for phase in _GOING_ON if phase is not _RECOVERING},
    (_STEADY, _PREPARE): "a target world is chosen",
    (_PREPARE, _STREAM): "all are prepared, and all stop at one step",
    (_PREPARE, _CUTOVER): "commit record of world 0, which has nothing to stream",
    (_STREAM, _CUTOVER): "commit record, as every vote is yes",
    (_CUTOVER, _RETIRE): "all members have entered",
    (_RETIRE, _STEADY): "old state is freed",
    (_PREPARE, _STEADY): "abort",
    (_STREAM, _STEADY): "abort",
    (_CUTOVER, _STEADY): "the run ends, or a member is lost, before all have entered",
}
"""Every change of phase that there is, of a run and of a reconfiguration, and what brings it about."""


class Told(NamedTuple):
    """One entry of a state's story."""

    time: float
    what: Any
    """An input, a record, or a pair of phases."""

    def __str__(self) -> str:
        if isinstance(self.what, tuple):
            return f"{self.time:.3f} {' → '.join(phase.value for phase in self.what)}"
        text = repr(self.what)
        return f"{self.time:.3f} {text if len(text) <= LONGEST else text[:LONGEST] + '…'}"


class InvalidTransition(Exception):
    """A change of phase that the protocol does not have: a defect. It carries the way that led to it."""

    def __init__(self, before: Phase, after: Phase, story: Iterable[Told]) -> None:
        self.before, self.after, self.story = before, after, tuple(story)
        lines = "\n".join(f"  {told}" for told in self.story)
        super().__init__(f"there is no way from {before.value} to {after.value}; what came before:\n{lines}")


# ---- the draft -----------------------------------------------------------------------------------------------------

P = TypeVar("P")


class Transition:
    """A draft of the next state. Parts are changed by their owner's :class:`Writer`, or by a record."""

    def __init__(self, state: RunState, now: float) -> None:
        self._state = replace(state, now=now)
        self._signals: list[Signal] = []
        self.now = now
        self.actions: list[Action] = []

    @property
    def state(self) -> RunState:
        """The state as it is by now."""
        return self._state

    def signal(self, signal: Signal) -> None:
        """Tell the other modules; they react when the caller is done."""
        self._signals.append(signal)

    def gone(self, worker: WorkerGone) -> None:
        """Tell the other modules that a worker is gone, together with those told of just before."""
        last = self._signals.pop() if self._signals and isinstance(self._signals[-1], WorkersGone) else None
        self._signals.append(WorkersGone((*(last.workers if isinstance(last, WorkersGone) else ()), worker)))

    def take_signals(self) -> list[Signal]:
        """Return what was signalled since the last call."""
        taken, self._signals = self._signals, []
        return taken

    def request_replan(self) -> None:
        """Request a policy evaluation at the end of this transition."""
        self._state = replace(self._state, replan=True)

    def replanned(self) -> None:
        """Withdraw the request for a policy evaluation: it was made."""
        self._state = replace(self._state, replan=False)

    def explain(self, reason: str) -> None:
        """Say why the run is as it is."""
        self._state = replace(self._state, reason=reason)

    def reject(self, kind: str) -> None:
        """Count a message that changes nothing."""
        rejected = self._state.rejected
        self._state = replace(self._state, rejected={**rejected, kind: rejected.get(kind, 0) + 1})

    def send(self, names: Iterable[str], message: Message) -> None:
        """Send to those of the named workers that are registered."""
        self.actions.extend(Send(worker.peer, message) for worker in self._state.membership.of(names))

    def answer(self, peer: bytes, message: Message) -> None:
        """Send to a peer, registered or not."""
        self.actions.append(Send(peer, message))

    def emit(self, event: Event, generation: int | None = None) -> None:
        """Append to the event log; ``generation`` is the live world's unless another is meant."""
        number = self._state.generation if generation is None else generation
        self.actions.append(Emit(msgspec.structs.replace(event, generation=number)))

    def journal(self, record: Record) -> None:
        """Fold a record into the state, and make it durable before whatever comes after it in this transition."""
        self.remember(record)
        self._become(self._state.apply(record))
        self.actions.append(Journal(record))

    def replace_part(self, writer: Writer[P], part: P) -> None:
        """Replace the part that a writer may write."""
        changes: dict[str, Any] = {writer.field: part}
        self._become(replace(self._state, **changes))

    def remember(self, what: Any) -> None:
        """Add to the story."""
        story = (*self._state.story, Told(self.now, what))[-REMEMBERED:]
        self._state = replace(self._state, story=story)

    def _become(self, state: RunState) -> None:
        """Take over another draft, if its phases may follow the present ones."""
        before = self._state
        self._state = state
        moves: list[tuple[Phase, Phase]] = [
            (before.lifecycle.phase, state.lifecycle.phase),
            (before.world.phase, state.world.phase),
        ]
        for move in moves:
            if move[0] is not move[1]:
                if move not in TRANSITIONS:
                    raise InvalidTransition(*move, state.story)
                self.remember(move)


class Writer(Generic[P]):
    """The right to replace a part of the state, which only the part's owner can have."""

    def __init__(self, part: type[P], module: str) -> None:
        """Claim a part.

        Args:
            part: type of the part.
            module: ``__name__`` of the module that claims it.

        Raises:
            TypeError: the part belongs to another module.
        """
        field, owner = PARTS[part]
        if module.rpartition(".")[2] != owner:
            raise TypeError(f"{part.__name__} is written by {owner}, not by {module}")
        self.field = field

    def __call__(self, t: Transition, part: P) -> None:
        """Replace the part."""
        t.replace_part(self, part)
