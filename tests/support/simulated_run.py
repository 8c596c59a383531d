"""A whole run in one thread: the coordinator's core, workers that follow the real worker-side logic, and a network.

The network loses, doubles, delays and reorders messages as it is told to. A turn of the coordinator can be cut at any
of its actions; the next coordinator recovers from what the journal had by then. What workers do
together is :mod:`simulated_worlds`.

Of the worker, :class:`Session`, :class:`Orders` and :class:`Directives` are the product's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from coordinator_lab import job
from coordinator_states import START, durable, settings
from simulated_worker import GRACE, ORPHAN_TIMEOUT, Violation, Worker
from simulated_worlds import SimulatedWorlds

from liver_slurm.config.schema import JobConfig
from liver_slurm.coordinator.core.invariants import broken_invariants
from liver_slurm.coordinator.core.io import (
    Action,
    CheckpointFound,
    FindCheckpoint,
    Finish,
    FromPeer,
    HungUp,
    Journal,
    RollBackMetrics,
    Send,
    Tick,
)
from liver_slurm.coordinator.core.records import (
    AttemptAborted,
    AttemptStarted,
    Committed,
    Ended,
    EpochStarted,
    MembersLost,
    Record,
    last_outcome,
)
from liver_slurm.coordinator.core.state import RunState
from liver_slurm.coordinator.core.step import recover
from liver_slurm.coordinator.core.step import step as core_step
from liver_slurm.protocol import messages as m
from liver_slurm.rundir.worker_names import natural_key, place_of, restarted_name

BEAT, LOST_AFTER, PREPARE_TIMEOUT = 1.0, 12.0, 25.0
TICK = 1.0
SETTLED_WITHIN = 12 * PREPARE_TIMEOUT
"""Seconds after the last fault by which a run must be steady or over: several attempts, each to its deadline."""


def config(steps: int) -> JobConfig:
    """A job whose deadlines are a few heartbeats long."""
    times = {
        "heartbeat": BEAT, "lost_after": LOST_AFTER, "prepare_timeout": PREPARE_TIMEOUT,
        "orphan_timeout": ORPHAN_TIMEOUT, "start_timeout": 60.0,
    }  # fmt: skip
    made = job(workers=2, steps=steps, **times)
    train = replace(made.train, distributed_optimizer=False)
    return replace(made, standby=replace(made.standby, grace=GRACE), train=train)


@dataclass
class Fault:
    """What is to become of a message that is sent next."""

    kind: str
    """Of message; empty: any."""
    worker: str
    """That sends or receives it; empty: any."""
    fate: str
    """``lose``, ``double``, ``delay``."""
    seconds: float = 0.0


@dataclass
class Cut:
    """A turn of the coordinator that it does not survive."""

    record: type | None
    """The turn is one that writes such a record; None: the next that does anything."""
    after: int
    """Actions that are carried out."""
    away: float
    """Seconds until the next coordinator."""


@dataclass(order=True)
class _Flight:
    at: float
    number: int
    sender: str = field(compare=False)
    receiver: str = field(compare=False)
    message: Any = field(compare=False)


class SimulatedRun:
    """A run with two guaranteed workers, standbys that come and go, and a network."""

    def __init__(self, steps: int = 10**6, overlap: bool = True) -> None:
        self.config, self.now, self.overlap = config(steps), START, overlap
        if not overlap:
            self.config = replace(self.config, stream=replace(self.config.stream, mode="pause"))
        self.records: list[Record] = []
        self.workers: dict[str, Worker] = {}
        self.faults: list[Fault] = []
        self.cut: Cut | None = None
        self.noise, self.random = 0.0, Random(0)
        self.unreachable: set[str] = set()
        self.state: RunState | None = None
        self.back_at = START
        self.over = False
        self.worlds = SimulatedWorlds(self)
        self.begun_to_stream: dict[tuple[str, int], int] = {}
        self._flights: list[_Flight] = []
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._count = 0
        self._open: int | None = None
        self._names: dict[str, int] = {}
        for name in ("live-0", "live-1"):
            self.join(name)

    def number_of(self, name: str) -> int:
        return self._names[name]

    # -- what happens

    def join(self, name: str) -> None:
        """A worker comes; one of that name that is gone has left the name to it."""
        if name in self.workers and not self.workers[name].gone:
            return
        self._count += 1
        self._names[name] = self._count
        self.workers[name] = Worker(self, name)

    def kill(self, name: str, seen: bool = False) -> None:
        """A worker's process is gone without a word; ``seen``: its connection to the coordinator is closed at once."""
        if name in self.workers and not self.workers[name].gone:
            self.workers[name].gone = True
            if seen:
                self.later(1.0, lambda: self._hang_up(name, self.now))

    def current(self, place: str) -> str:
        """Name of the newest process that was started in a place."""
        return max((name for name in self.workers if place_of(name) == place), key=natural_key, default=place)

    def restart(self, place: str, told: bool) -> None:
        """A guaranteed worker dies, and another one is started in its place, unless that was given up.

        ``told``: their parent reaches the coordinator.
        """
        name = self.current(place)
        worker = self.workers[name]
        if worker.gone:
            return
        pid = worker.registration().pid
        self.kill(name)
        if told:
            self.ask(m.WorkerEnded(worker=name, reason="killed by SIGKILL", pid=pid))
        count = sum(place_of(one) == place for one in self.workers) + 1
        self.later(2.0, lambda: None if self.over else self.join(restarted_name(place, count)))

    def _hang_up(self, name: str, since: float) -> None:
        if self.state is not None and self.workers[name].gone:
            self._feed(HungUp(self.now, name.encode(), since))

    def stop(self, name: str, seconds: float) -> None:
        """A worker's process is stopped (SIGSTOP, a node that hangs) for so long."""
        if name in self.workers:
            self.workers[name].stop(seconds)

    def later(self, seconds: float, deed: Callable[[], None]) -> None:
        self._timers.append((self.now + seconds, deed))

    def ask(self, message: m.FromClient) -> None:
        """A client asks; it would try again by itself, so its message is not lost."""
        if self.state is not None and not self.over:
            self._feed(FromPeer(self.now, b"client", message))

    def post(self, sender: str, receiver: str, message: Any) -> None:
        """Put a message on the network."""
        worker = sender if receiver == "coordinator" else receiver
        if worker in self.unreachable:
            return
        for fault in self.faults:
            if fault.kind in ("", type(message).__name__) and fault.worker in ("", worker):
                self.faults.remove(fault)
                self._fly(fault.fate, fault.seconds, sender, receiver, message)
                return
        if self.noise and self.random.random() < self.noise:
            self._fly(
                self.random.choice(("lose", "double", "delay")), self.random.random() * 8, sender, receiver, message
            )
            return
        self._fly("", 0.0, sender, receiver, message)

    def _fly(self, fate: str, seconds: float, sender: str, receiver: str, message: Any) -> None:
        delays = {"lose": [], "double": [0.0, seconds], "delay": [seconds]}.get(fate, [0.0])
        for delay in delays:
            self._count += 1
            self._flights.append(_Flight(self.now + delay, self._count, sender, receiver, message))

    def pass_time(self, seconds: float) -> None:
        """Let time pass: messages arrive, steps are trained, the clock ticks."""
        until = self.now + seconds
        while self.now < until and not (self.over and all(worker.gone for worker in self.workers.values())):
            self.now += TICK
            for at, deed in [timer for timer in self._timers if timer[0] <= self.now]:
                self._timers.remove((at, deed))
                deed()
            if self.state is None and not self.over and self.now >= self.back_at:
                self._start_coordinator()
            for worker in list(self.workers.values()):
                worker.beat()
            self.worlds.go_on()
            self._deliver()
            if self.state is not None:
                self._feed(Tick(self.now))
                self._deliver()

    def _deliver(self) -> None:
        while due := sorted(flight for flight in self._flights if flight.at <= self.now):
            for flight in due:
                self._flights.remove(flight)
                if flight.receiver == "coordinator":
                    if self.state is not None:
                        self._feed(FromPeer(self.now, self._peer(flight.sender), flight.message))
                elif flight.receiver in self.workers and self.workers[flight.receiver].still:
                    self._flights.append(replace(flight, at=self.workers[flight.receiver].still_until))
                elif flight.receiver in self.workers:
                    self.workers[flight.receiver].receive(flight.message)

    def _peer(self, name: str) -> bytes:
        return name.encode()

    # -- the coordinator

    def _start_coordinator(self) -> None:
        if last_outcome(self.records) is not None:
            self.over = True
            return
        epoch = 1 + sum(isinstance(record, EpochStarted) for record in self.records)
        self.state = recover(self.records, settings(self.config, epoch=epoch, standby_workers=4), self.now)
        self.records.append(EpochStarted(epoch=epoch))

    def crash(self, away: float) -> None:
        """The coordinator is killed; another one comes later."""
        self.state, self.back_at = None, self.now + away

    def _feed(self, given: Any) -> None:
        assert self.state is not None
        before = self.state
        self.state, actions = core_step(self.state, given)
        broken = broken_invariants(self.state)
        if broken:
            raise Violation(f"after {given}: {broken}")
        if not any(isinstance(action, Journal) for action in actions) and before is not self.state:
            assert durable(self.state) == durable(before, over=self.state.over)
        self._perform(actions)

    def _perform(self, actions: list[Action]) -> None:
        cut = self.cut
        if cut is not None and actions and self._is_cut(cut, actions):
            self.cut = None
            for action in actions[: cut.after]:
                self._do(action)
            if not self.over:
                self.crash(cut.away)
            return
        for action in actions:
            self._do(action)
        for action in actions:
            if isinstance(action, FindCheckpoint) and self.state is not None:
                found = self.worlds.newest_checkpoint(action.at_most)
                if found is None:
                    self._feed(CheckpointFound(self.now))
                else:
                    self._feed(CheckpointFound(self.now, f"step-{found}", found))

    @staticmethod
    def _is_cut(cut: Cut, actions: list[Action]) -> bool:
        if cut.record is None:
            return len(actions) > 1
        return any(isinstance(action, Journal) and isinstance(action.record, cut.record) for action in actions)

    def _do(self, action: Action) -> None:
        if isinstance(action, Journal):
            self.records.append(action.record)
            self._judge(action.record)
        elif isinstance(action, Send) and action.peer != b"client":
            if isinstance(action.message, m.Commit) and action.message.generation not in self.worlds.committed:
                raise Violation("the commit record comes before the word")
            if isinstance(action.message, m.Abort) and action.message.generation in self.worlds.committed:
                raise Violation(f"generation {action.message.generation} is committed, and aborted")
            self.post("coordinator", action.peer.decode(), action.message)
        elif isinstance(action, RollBackMetrics):
            self.worlds.roll_back(action.step)
        elif isinstance(action, Finish):
            self.over, self.state = True, None

    def _judge(self, record: Record) -> None:
        if isinstance(record, AttemptStarted):
            self._open = record.generation
        elif isinstance(record, Committed):
            if record.generation != self._open or record.generation in self.worlds.committed:
                raise Violation(f"generation {record.generation} is committed, {self._open} is prepared")
            self.worlds.commit(record)
        elif isinstance(record, AttemptAborted) and record.generation in self.worlds.committed:
            raise Violation("there is no way back from a commit record")
        elif isinstance(record, Ended | MembersLost) and "did not enter generation" in record.reason:
            members = self.worlds.members[max(self.worlds.members)]
            if not any(member.gone or member.was_still for member in members):
                raise Violation(f"a healthy run is ended, or a healthy worker is lost: {record.reason}")

    # -- after the faults

    def settle(self) -> None:
        """End all faults; the run is steady or over within a bound, and nobody waits.

        Raises:
            Violation: it is not.
        """
        self.faults, self.cut, self.noise = [], None, 0.0
        self.unreachable.clear()
        self.back_at = min(self.back_at, self.now + 5.0)
        begun, ages = self.now, None
        while self.now < begun + SETTLED_WITHIN:
            self.pass_time(1.0)
            if all(worker.gone for worker in self.workers.values()):
                return
            if not self._is_calm():
                ages = None
                continue
            live = [self.workers[name].step for name in self.state.world.members] if self.state is not None else []
            ages = ages or (self.now, min(live))
            if min(live) >= ages[1] + 3:
                return
        raise Violation(f"after {SETTLED_WITHIN:g} s: {self.why()}")

    def _is_calm(self) -> bool:
        state = self.state
        if state is None or not state.steady or state.world.attempt is not None:
            return False
        barriers, numbers = state.barriers, set()
        if barriers.cutover is not None:
            if barriers.cutover.request < 0 or barriers.cutover.step <= state.step:
                return False
            numbers.add(barriers.cutover.number)
        if barriers.checkpoint is not None or barriers.checkpoint_wanted:
            return False
        for worker in self.workers.values():
            if worker.gone:
                continue
            known = state.membership.get(worker.name)
            waits = (
                worker.doing in ("streaming", "verdict") or worker.targets or set(worker.directives.held()) - numbers
            )
            outside = worker.generation >= 0 and worker.name not in state.world.members
            if waits or outside or known is None or known.dismissed:
                return False
        return True

    def why(self) -> str:
        """What each worker does, for people."""
        told = [f"ended: {[record.reason for record in self.records if isinstance(record, Ended)]}"]
        if self.state is not None:
            state = self.state
            told += [
                f"{state.phase.value}, step {state.step}, attempt {state.world.attempt}",
                f"barriers {state.barriers}",
                f"members {state.world.members}, known {sorted(state.membership.workers)}, goals {state.resizes.goals}",
            ]
        for worker in self.workers.values():
            stages = {number: target.stage for number, target in worker.targets.items()}
            told.append(
                f"{worker.name}: {'gone' if worker.gone else worker.doing} {worker.about}, "
                f"generation {worker.generation}, step {worker.step}, {stages}, holds {worker.directives.held()}"
            )
        return "\n".join(told)
