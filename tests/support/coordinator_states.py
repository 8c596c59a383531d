"""States and inputs of the coordinator's machine, for tests without processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from zlib import crc32

from coordinator_lab import job

from liver_slurm.config.schema import JobConfig
from liver_slurm.coordinator.core.invariants import broken_invariants
from liver_slurm.coordinator.core.io import Action, Emit, FromPeer, Journal, Send, Tick
from liver_slurm.coordinator.core.records import Record
from liver_slurm.coordinator.core.state import RunState, Settings
from liver_slurm.coordinator.core.step import recover, step
from liver_slurm.coordinator.core.worlds import ReconfigurationPhase
from liver_slurm.parallel.membership import World
from liver_slurm.protocol import messages as m
from liver_slurm.rundir.events import to_document

START = 1000.0


def settings(config: JobConfig | None = None, workers: int = 2, epoch: int = 1, **changes: Any) -> Settings:
    """Settings of a small run."""
    fields: dict[str, Any] = {
        "config": config or job(workers=workers),
        "run_id": "r",
        "run_dir": "/runs/r",
        "epoch": epoch,
        "live_workers": workers,
        "store_host": "h",
        "store_port": 1,
    }
    return Settings(**{**fields, **changes})


def durable(state: RunState, over: bool | None = None) -> dict[str, Any]:
    """What outlives a coordinator: of two states that are equal in this, a run can go on from either.

    Args:
        state: the state.
        over: the run, or this coordinator's part of it, is over, and nobody waits for a committed world to be entered.
    """
    world, barriers, resizes, release = state.world, state.barriers, state.resizes, state.release
    gone = state.over if over is None else over
    entering = None
    if world.attempt is not None and world.attempt.committed and not gone:
        source = world.attempt.source
        left = (source.generation, source.layout, source.members) if source is not None else None
        entering = (world.attempt.target, left, world.attempt.cause, world.attempt.reason, world.attempt.stats)
    ceiling = resizes.size_ceiling
    return {
        "origin": (state.settings.checkpoint, state.settings.start_step),
        "world": (
            world.live,
            world.processes,
            world.next_generation,
            world.lost_below,
            world.unresolved,
            world.committed,
            entering,
        ),
        "barriers": (barriers.next_number, barriers.unclosed),
        "checkpoint": None if gone else (barriers.checkpoint_wanted, barriers.agreed_checkpoint),
        "goals": [replace(goal, failures=0) for goal in resizes.goals],
        "ceiling": ceiling and replace(ceiling, failures=0),
        "next_request": resizes.next_number,
        "release": (release.nodes_left, release.spent),
        "history": state.history,
    }


class Run:
    """A machine with its clock and everything that it has done so far."""

    def __init__(self, state: RunState | None = None, **options: Any) -> None:
        self.state = state or recover([], settings(**options), START)
        self.whole_journal = state is None
        """All records since the run's beginning are in ``actions``."""
        self.now = self.state.now
        self.actions: list[Action] = []

    def say(self, message: m.ToCoordinator, peer: bytes | None = None) -> list[Action]:
        """A message comes from its worker (or from ``peer``)."""
        sender = peer if peer is not None else getattr(message, "worker", "client").encode()
        return self.feed(FromPeer(self.now, sender, message))

    def tick(self, seconds: float = 0.0) -> list[Action]:
        """Time passes."""
        self.now += seconds
        return self.feed(Tick(self.now))

    def feed(self, given: Any) -> list[Action]:
        """Any input; what holds after every step is checked."""
        before = self.state
        self.state, actions = step(self.state, given)
        self.actions += actions
        assert broken_invariants(self.state) == []
        if not any(isinstance(action, Journal) for action in actions):
            assert durable(self.state) == durable(before, over=self.state.over), (
                "what outlives the coordinator changes with a record only"
            )
        elif self.whole_journal:
            recovered = recover(self.records, self.state.settings, self.now)
            assert durable(self.state) == durable(recovered, over=self.state.over), "another one would go on from here"
        return actions

    def register(self, name: str, generation: int = -1, steps: int = 0, **changes: Any) -> list[Action]:
        """A warm worker comes."""
        fields: dict[str, Any] = {
            "run_id": "r", "worker": name, "role": name.split("-")[0], "host": "h", "pid": crc32(name.encode()) % 10**6,
            "job_id": name, "device": "cpu", "generation": generation, "step": steps, "warm": True,
        }  # fmt: skip
        return self.say(m.Register(**{**fields, **changes}))

    def train(self, *names: str, **changes: Any) -> None:
        """Bring the run to world 0 with these live workers."""
        for name in names:
            self.register(name, **changes)
        for name in names:
            self.say(m.Prepared(worker=name, generation=0, ok=True))
        for name in names:
            self.say(m.WorldEntered(worker=name, generation=0, step=0, time=self.now))
        assert self.state.generation == 0

    @property
    def live(self) -> World:
        """The live world."""
        assert self.state.world.live is not None
        return self.state.world.live

    def sent(self, kind: type[Any], actions: list[Action] | None = None) -> list[tuple[str, Any]]:
        """(receiver, message) of every message of a kind."""
        return [
            (action.peer.decode(), action.message)
            for action in (self.actions if actions is None else actions)
            if isinstance(action, Send) and isinstance(action.message, kind)
        ]

    def journaled(self, kind: type[Any]) -> list[Any]:
        """Records of a kind."""
        return [record for record in self.records if isinstance(record, kind)]

    @property
    def records(self) -> list[Record]:
        """The journal."""
        return [action.record for action in self.actions if isinstance(action, Journal)]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Events of a name, without it and the time, which is not known before they are written."""
        told = [to_document(action.event) for action in self.actions if isinstance(action, Emit)]
        mine = [document for document in told if document["event"] == name]
        return [{key: document[key] for key in document if key not in ("event", "time")} for document in mine]

    def agree(self) -> None:
        """All voters accept the open cutover boundary."""
        held = self.state.barriers.cutover
        assert held is not None
        for name in sorted(held.voters):
            self.say(m.BoundaryVote(worker=name, boundary=held.number, step=held.step, accepted=True, current_step=0))

    def prepare_all(self) -> None:
        """All involved have prepared."""
        attempt = self.state.world.attempt
        assert attempt is not None
        for name in attempt.involved:
            self.say(m.Prepared(worker=name, generation=attempt.target.generation, ok=True))

    def stream_all(self, names: tuple[str, ...] | None = None) -> None:
        """All involved (or only some) have streamed."""
        attempt = self.state.world.attempt
        assert attempt is not None
        for name in attempt.involved if names is None else names:
            old = attempt.source is not None and name in attempt.source.members
            paused = self.now if old else 0.0
            self.say(
                m.Streamed(
                    worker=name,
                    generation=attempt.target.generation,
                    ok=True,
                    report=m.TransferReport(paused_at=paused, gap_seconds=0.01),
                )
            )

    def enter_all(self, after: float = 0.5) -> None:
        """All members enter the committed world."""
        self.now += after
        for name in self.live.members:
            self.say(m.WorldEntered(worker=name, generation=self.live.generation, step=self.live.step, time=self.now))

    def begin_to_grow(self) -> None:
        """Two standbys come, and the policy wants them."""
        self.register("standby-a")
        self.register("standby-b")
        self.tick(0.3)
        assert self.state.phase is ReconfigurationPhase.PREPARE

    def stand(self) -> None:
        """The new world's members are held before their first step: they say by a heartbeat that they are in it."""
        for name in self.live.members:
            generation, step = self.live.generation, self.live.step
            self.say(m.Heartbeat(worker=name, generation=generation, step=step, step_seconds=0.0, warm=True))

    def restarted(self) -> Run:
        """The coordinator dies, and another one recovers from the journal a second later."""
        return Run(recover(self.records, settings(epoch=2), self.now + 1))
