"""Runs that are made up, for tests of the ledger: their events and steps, as files would tell them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from event_samples import committed

from liver_slurm.observability.ledger.facts import Facts, Job, how_it_stands, in_order
from liver_slurm.observability.ledger.step_table import StepTable, make_table
from liver_slurm.rundir import events as e
from liver_slurm.rundir.validation import ValidationMetrics

PARTITIONS = ("scavenger", "preempt", "night")


def steps_of(rows: list[dict[str, Any]]) -> StepTable:
    """A table of steps; what a row leaves out is as an old file has it."""
    defaults = {"generation": 0, "tokens": 1024}
    integers = {
        name: np.array([row.get(name, defaults.get(name)) for row in rows], dtype=np.int64)
        for name in ("step", "generation", "tokens")
    }
    floats = {
        name: np.array([row.get(name, np.nan) for row in rows], dtype=np.float64)
        for name in ("start", "end", "loss", "data_s", "mfu")
    }
    return make_table({**integers, **floats})


def validated(step: int, seconds: float, end: float) -> ValidationMetrics:
    """A validation after a step."""
    return ValidationMetrics(
        step=step, loss=1.0, perplexity=2.7, tokens=1, samples=1, best_step=step, best_loss=1.0, since_best=0,
        seconds=seconds, generation=0, layout="tp1pp1dp2", end=end,
    )  # fmt: skip


def job(**changes: Any) -> Job:
    """Two guaranteed devices and up to four of standby jobs in three partitions."""
    usual = Job(
        guaranteed=2,
        most_standbys=4,
        most=6,
        partitions=("batch", "batch"),
        standby_partition="",
        on_slurm=True,
        steps=1000,
    )
    return replace(usual, **changes)


def facts(events: list[Any], rows: list[dict[str, Any]], created: float = 0.0, **changes: Any) -> Facts:
    """Facts of a run with these events, each with its time, and these steps."""
    ordered = in_order(tuple(events), created)
    steps = steps_of(rows)
    last = max([created, *(event.time for event in ordered[-1:]), *steps.end[-1:].tolist()])
    known: dict[str, Any] = {
        "run": "/runs/one",
        "resumed_from": "",
        "created": created,
        "until": last,
        "outcome": how_it_stands(ordered),
        "job": job(),
        "events": ordered,
        "steps": steps,
    }
    return Facts(**{**known, **changes})


@dataclass
class Story:
    """A run that is told event by event; each method is something that happens to it."""

    now: float = 1000.0
    detailed: bool = True
    """Events that older versions did not write are there."""
    events: list[Any] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    validations: list[ValidationMetrics] = field(default_factory=list)
    created: float = 1000.0
    generation: int = -1
    world: tuple[str, ...] = ()
    idle: list[str] = field(default_factory=list)
    guaranteed: tuple[str, ...] = ("live-0", "live-1")
    jobs: int = 0
    trained: int = 0

    def say(self, event: Any) -> None:
        """Write one event."""
        generation = self.generation if event.generation == -1 else event.generation
        self.events.append(type(event)(**{**_fields(event), "time": self.now, "generation": generation}))

    def facts(self, **changes: Any) -> Facts:
        """All of it so far."""
        return facts(self.events, self.rows, self.created, **{"validations": tuple(self.validations), **changes})

    def start(self, queue: float, boot: float, prepare: float) -> None:
        """The guaranteed job starts, and its first world trains."""
        began = self.now + queue
        self.now = began + boot / 4
        self.say(e.CoordinatorStarted(phase="starting", job_started=began if self.detailed else 0.0))
        self.now += boot * 3 / 4
        if self.detailed:
            for name in self.guaranteed:
                self.say(e.WorkerRegistered(worker=name, role="live", host="n1", warm=True))
        self.now += prepare
        self.generation += 1
        self.world = self.guaranteed
        self.say(
            e.WorldLive(
                layout=f"tp1pp1dp{len(self.world)}",
                members=self.world,
                step=self.trained,
                prepare_s=prepare if self.detailed else 0.0,
            )
        )

    def train(self, count: int, seconds: float = 1.0, gap: float = 0.01, first: float = 0.0) -> None:
        """Train steps; the first one of them may take longer."""
        for index in range(count):
            end = self.now + seconds + (first if index == 0 else 0.0)
            self.trained += 1
            self.rows.append({"step": self.trained, "start": self.now, "end": end, "generation": self.generation})
            self.now = end + gap

    def validate(self, seconds: float) -> None:
        """Training stands still for a validation."""
        self.now += seconds
        self.validations.append(validated(self.trained, seconds, self.now))

    def arrive(self, partition: int, boot: float) -> None:
        """A standby job starts, and its worker is warm."""
        self.jobs += 1
        job_id, name = str(self.jobs), f"standby-{self.jobs}-0"
        if self.detailed:
            self.say(e.StandbyJobChanged(job_id=job_id, state="running", partition=PARTITIONS[partition], workers=1))
        self.now += boot / 2
        if self.detailed:
            self.say(e.WorkerRegistered(worker=name, role="standby", host="n2", job_id=job_id))
        self.now += boot / 2
        self.say(e.StandbyReady(worker=name, host="n2", job_id=job_id))
        self.idle.append(name)

    def change(self, pause: float, cause: str = "capacity", leavers: tuple[str, ...] = (), commit: bool = True) -> None:
        """The next world takes the idle standbys in, or leaves members out; or it is given up."""
        joiners = () if leavers else tuple(self.idle)
        members = tuple(name for name in (*self.world, *joiners) if name not in leavers)
        source, to = f"tp1pp1dp{len(self.world)}", f"tp1pp1dp{len(members)}"
        route = {"source": source, "to": to, "cause": cause, "members": members, "joiners": joiners, "leavers": leavers}
        generation = self.generation + 1
        self.say(e.ReconfigurationStarted(**route, reason="told", generation=generation))
        if not commit:
            self.train(1)
            self.say(e.ReconfigurationAborted(**route, reason="told", generation=generation))
            self.generation += 1  # a number is used once; the old world trains on under its own
            self.generation -= 1
            return
        self.train(2)
        cut = self.trained
        if self.rows:
            self.now = self.rows[-1]["end"] + 0.01 + pause
        self.generation = generation
        self.world = members
        self.idle = [*(name for name in self.idle if name not in joiners), *leavers]
        done = committed(
            **route, generation=generation, cutover_step=cut, pause_s=pause, gate_s=pause / 10, hook_s=pause / 20,
            plan_s=0.1, prepare_s=0.5, stream_s=0.3, mode="overlap", reason="told",
        )  # fmt: skip
        self.say(done)
        self.say(e.WorldLive(layout=to, members=members, step=cut))

    def notice(self, name: str) -> None:
        """A worker will go away."""
        self.say(e.Notice(worker=name, host="n2", in_world=name in self.world, deadline=self.now + 30))

    def leave(self, name: str) -> None:
        """A worker in no world has exited."""
        self.idle.remove(name)
        self.say(e.WorkerLeft(worker=name, host="n2", reason="told"))

    def interrupt(self, away: float, keep: int, boot: float) -> None:
        """Slurm takes the guaranteed job away and starts it again; steps beyond ``keep`` are trained again."""
        self.say(e.Interrupted(reason="preempted", step=self.trained))
        until, reached = self.now, self.trained
        self.now += 0.1
        for name in (*self.world, *self.idle):
            self.say(e.WorkerLeft(worker=name, reason="preempted"))
        self.idle = []
        self.now += away
        self.begin_again(keep, reached, until, boot)

    def die(self, away: float, keep: int, boot: float) -> None:
        """All processes are killed at once, nobody says so, and the job is started again."""
        until, reached = self.now, self.trained
        self.idle = []
        self.now += away
        self.begin_again(keep, reached, until, boot)

    def begin_again(self, keep: int, reached: int, until: float, boot: float) -> None:
        """The run goes on from a checkpoint."""
        keep = min(keep, reached)
        self.rows = [row for row in self.rows if row["step"] <= keep]
        self.validations = [one for one in self.validations if one.step <= keep]
        self.trained = keep
        self.say(
            e.BegunAnew(
                step=keep, steps_lost=reached - keep, reason="requeued", trained_until=until if self.detailed else 0.0
            )
        )
        self.start(0.0, boot, 0.2)

    def lose(self, name: str, found: float, recovery: float) -> None:
        """A member dies in the middle of a step; the survivors go on from the last one."""
        self.now += 0.4
        self.world = tuple(member for member in self.world if member != name)
        self.now += found
        self.say(e.WorkerLost(worker=name, in_world=True, detected_s=found))
        route = {"to": "tp1pp1dp2", "members": self.world}
        self.generation += 1
        self.say(
            e.RecoveryPlanned(
                **route, lost=(name,), state_from="survivors", step=self.trained, reason="gone", known_for_s=0.0
            )
        )
        self.now += recovery
        self.say(
            committed(
                **route, source="tp1pp1dp3", cause="loss", joiners=(), leavers=(name,), generation=self.generation,
                cutover_step=self.trained, pause_s=9.0,
            )
        )  # fmt: skip
        self.say(e.WorldLive(layout="tp1pp1dp2", members=self.world, step=self.trained))

    def hand_over(self, boot: float) -> None:
        """A successor job takes the run over; its workers take the place of the old job's."""
        self.jobs += 1
        new = tuple(f"live-{self.jobs}-{number}" for number in range(len(self.guaranteed)))
        old, self.guaranteed = self.guaranteed, new
        self.now += boot
        if self.detailed:
            for name in new:
                self.say(e.WorkerRegistered(worker=name, role="live", host="n3", warm=True))
        kept = tuple(name for name in self.world if name not in old)
        self.idle += [*new]
        self.change(0.2, "successor")
        self.world = (*new, *kept)
        generation = self.generation + 1
        self.generation = generation
        self.say(e.WorldLive(layout=f"tp1pp1dp{len(self.world)}", members=self.world, step=self.trained))
        self.say(e.HandedOver(reason="time limit", step=self.trained))
        for name in old:
            self.say(e.WorkerLeft(worker=name, reason="handed over"))
        self.now += 0.5
        self.say(e.CoordinatorStarted(phase="recovering", epoch=2))
        self.say(e.Recovered(layout="tp1pp1dp2", members=self.world, step=self.trained))

    def end(self, outcome: str = "finished") -> None:
        """The run ends, and its workers leave."""
        self.say(e.RunEnded(outcome=outcome, reason="told", step=self.trained))
        self.now += 0.05
        for name in (*self.world, *self.idle):
            self.say(e.WorkerLeft(worker=name, reason="told"))


def _fields(event: Any) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__struct_fields__}
