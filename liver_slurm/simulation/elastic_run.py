"""One run of the product on a simulated cluster: its coordinator's core, policies and Slurm adapter are the real ones.

Nothing happens between two events: training goes on in closed form, and the coordinator's clock ticks when it waits for
something. It looks at Slurm on the grid of its query budget; a look that could tell nothing new is left out.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import msgspec

from liver_slurm.config.layouts import live_workers
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.units import most_workers, standby_units
from liver_slurm.coordinator.core import history
from liver_slurm.coordinator.core.io import (
    Action,
    CapacitySeen,
    CheckpointFound,
    Emit,
    FindCheckpoint,
    Finish,
    FromPeer,
    HungUp,
    Input,
    Launch,
    Launched,
    Release,
    Send,
    Tick,
)
from liver_slurm.coordinator.core.state import RunState, Settings
from liver_slurm.coordinator.core.step import plan, recover, step
from liver_slurm.policy.survival import resting
from liver_slurm.protocol import messages as m
from liver_slurm.rundir.events import Event, ReconfigurationCommitted
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.ports import CapacitySnapshot
from liver_slurm.scheduler.slurm.standby import SlurmStandbys
from liver_slurm.simulation.account import Account
from liver_slurm.simulation.clock import EventQueue
from liver_slurm.simulation.cluster import SimulatedCluster
from liver_slurm.simulation.costs import Costs
from liver_slurm.simulation.fleet import GUARANTEED_JOB, LATENCY, RUN, Fleet
from liver_slurm.simulation.progress import Progress
from liver_slurm.simulation.setting import BEGIN, Setting, conditions

ENDLESS = 10**9
"""Steps of a simulated run: it never comes to its end."""
URGENT = 0.25
"""Seconds between two ticks while somebody is dead, or a world is broken."""
SELDOM = 300.0
"""Seconds between two ticks, and two looks at Slurm, while nothing is under way."""


@dataclass(frozen=True)
class ElasticResult:
    """What became of a run."""

    account: Account
    changes: int
    """Worlds after the first."""
    causes: Counter[str]
    """Changes by cause."""
    end: str
    """Why the run ended before its trace did; empty: it did not."""
    sizes: tuple[tuple[float, int], ...]
    """Workers of the live world, from which second of the trace on."""


class ElasticRun:
    """One run from the beginning of a trace to its end."""

    def __init__(
        self,
        config: JobConfig,
        setting: Setting,
        costs: Costs,
        policy: str,
        mode: str,
        heard: Callable[[Event], object] = lambda event: None,
    ) -> None:
        """
        Args:
            config: the job; its steps, policy and mode are not those of the run.
            setting: the trace, and how the cluster treats jobs.
            costs: what things take.
            policy: as ``standby.policy``.
            mode: as ``stream.mode``.
            heard: gets the coordinator's events, with their times.
        """
        self.run_id = run_id(setting, policy, mode)
        self._heard_event = heard
        self._config = config = replace(
            config,
            train=replace(config.train, steps=ENDLESS),
            standby=replace(config.standby, policy=policy),
            stream=replace(config.stream, mode=mode),  # type: ignore[arg-type]
        )
        self._costs, self._setting = costs, setting
        self._events = EventQueue(BEGIN)
        random = Random(setting.seed)
        self._cluster = SimulatedCluster(self._events, setting.trace, conditions(config, setting, random))
        self._standbys = SlurmStandbys(
            config, RunDir(Path("/") / RUN), self._cluster, str, self._events.now, launcher=self._cluster.launch
        )
        self._account = Account()
        self._progress = Progress(self._account, self._events.now, costs.stall_s / costs.save_every_s)
        self._fleet = Fleet(self._events, self._cluster, self._progress, costs, config, self._say, self._hang_up)
        self._cluster.attach(self._fleet)
        self._state: RunState = recover([], self._settings(), BEGIN)
        self._causes: Counter[str] = Counter()
        self._sizes: list[tuple[float, int]] = []
        self._end = ""
        self._ticked = self._heard = BEGIN
        self._next_tick = math.inf
        self._looked = -math.inf
        self._to_plan = False
        """Something has come since the run has last done what it does by itself."""
        self._seen: CapacitySnapshot | None = None
        self._news = True
        """Something has happened since the last look at Slurm."""
        self._rests: tuple[object, float, float] = (None, 0.0, math.inf)
        """What the run remembered, and when it last looked, when it was told until when partitions rest."""
        self._seen_changes = -1
        self._look_every = look_seconds(config)
        self._saved: list[tuple[float, int]] = []
        """When each of the checkpoints is written, in simulated time, and its step."""

    def goes_at(self, job_id: str) -> float:
        """Return when the first of a standby job's nodes goes, which no run knows; infinity: it has none that does."""
        nodes, now = self._cluster.nodes_of(job_id), self._events.now() - BEGIN
        ends = [one.end for one in self._setting.trace.spans if one.node in nodes and one.begin <= now < one.end]
        return BEGIN + min(ends) if ends else math.inf

    def run(self, until: float = math.inf) -> ElasticResult:
        """Simulate the whole trace, or its first ``until`` seconds."""
        scheduler = logging.getLogger("liver_slurm.scheduler")
        before = scheduler.level
        scheduler.setLevel(logging.ERROR)  # what it warns of has happened in simulated time, and is no news for people
        try:
            return self._run(until)
        finally:
            scheduler.setLevel(before)

    def _run(self, until: float) -> ElasticResult:
        workers = live_workers(self._config.live)
        per_node = max(1, self._config.live.component[0].tasks_per_node) if self._config.live.component else 1
        self._fleet.begin(workers, [f"guaranteed{number // per_node}" for number in range(workers)], self.run_id)
        self._events.at(BEGIN + self._setting.phase * self._look_every, self._look_if_due)
        self._events.after(self._costs.save_every_s, self._save)
        self._events.run_until(BEGIN + min(until, self._setting.trace.seconds))
        self._progress.finish()
        changes = sum(self._causes.values())
        return ElasticResult(self._account, changes, self._causes, self._end, tuple(self._sizes))

    def _settings(self) -> Settings:
        standby = self._config.standby
        return Settings(
            config=self._config,
            run_id=self.run_id,
            run_dir=f"/{RUN}",
            epoch=1,
            live_workers=live_workers(self._config.live),
            store_host="",
            store_port=0,
            automatic=standby.max_jobs > 0,
            standby_workers=most_workers(standby),
            job_id=GUARANTEED_JOB,
        )

    # ---- inputs

    def _say(self, name: str, message: m.FromWorker) -> None:
        if not isinstance(message, m.Heartbeat):
            self._news = True
        self._feed(FromPeer(self._events.now(), name.encode(), message))

    def _hang_up(self, name: str, since: float) -> None:
        self._news = True
        if name in self._fleet.members:  # what is being written lacks its part
            self._saved = [(written, step) for written, step in self._saved if written <= since]
        self._feed(HungUp(self._events.now(), name.encode(), since))

    def _feed(self, given: Input) -> None:
        if self._end:
            return
        if self._events.now() > self._ticked + URGENT and not isinstance(given, Tick):
            self._tick()  # a real one has ticked a moment ago, whatever comes
        before = self._state.world.live
        self._state, actions = step(self._state, given, planned=False)
        if not self._to_plan:  # what comes at one and the same time has come together
            self._to_plan = True
            self._events.after(0.0, self._plan)
        for action in actions:
            self._perform(action)
        live = self._state.world.live
        if live is not None and live is not before:
            self._sizes.append((self._events.now() - BEGIN, live.layout.size))

    def _plan(self) -> None:
        self._to_plan = False
        if not self._end:
            self._state, actions = plan(self._state, self._events.now())
            for action in actions:
                self._perform(action)
            self._plan_tick()

    def _perform(self, action: Action) -> None:
        if isinstance(action, Send):
            self._fleet.receive(action.peer.decode(), action.message)
        elif isinstance(action, Emit):
            if isinstance(action.event, ReconfigurationCommitted):
                self._causes[action.event.cause] += 1
            self._heard_event(msgspec.structs.replace(action.event, time=self._events.now()))
        elif isinstance(action, Launch):
            after = max(0.0, action.until - self._events.now())
            ids = tuple(self._standbys.launch(action.count, action.unit, action.partition, after))
            unit, place = action.unit, action.partition
            # In no time: portions that follow each other come together, as one order did.
            self._events.after(0.0, lambda: self._feed(Launched(self._events.now(), ids, unit, place)))
        elif isinstance(action, Release):
            self._standbys.release(action.job_id)
        elif isinstance(action, FindCheckpoint):
            at_most = action.at_most if action.at_most is not None else self._progress.completed()
            self._events.after(LATENCY, lambda: self._find_checkpoint(at_most))
        elif isinstance(action, Finish):
            self._end = action.reason

    def _save(self) -> None:
        """Write a checkpoint on the way; none is written while training stands."""
        self._events.after(self._costs.save_every_s, self._save)
        if not self._progress.stands:
            self._saved.append((self._events.now() + self._costs.save_s, self._progress.completed()))

    def _find_checkpoint(self, at_most: int) -> None:
        """Find the newest of the checkpoints that are written on the way, or the run's beginning."""
        now = self._events.now()
        found = max((step for written, step in self._saved if written <= now and step <= at_most), default=0)
        self._feed(CheckpointFound(now, path=f"step-{found}", step=found))

    # ---- time

    def _plan_tick(self) -> None:
        """Have the clock tick when the coordinator waits for it next."""
        wanted = self._events.now() + self._patience()
        again = self._state.planning.look_again
        if again is not None and again > self._ticked:  # one that is past was seen, or is not looked at now
            wanted = min(wanted, max(again, self._events.now()))
        window = history.next_window(self._state.history)
        if window > self._ticked:
            wanted = min(wanted, max(window, self._events.now()))
        if wanted < self._next_tick - 1e-9 or self._next_tick <= self._events.now():
            self._next_tick = wanted
            self._events.at(wanted, lambda: self._tick_as_planned(wanted))

    def _patience(self) -> float:
        """Return the seconds until the next tick, but for what the policy waits for."""
        state = self._state
        dead = len(state.membership.workers) > len(self._fleet.workers)
        if dead or state.damage.broken or state.phase.value == "starting":
            return URGENT
        barriers = state.barriers
        if state.world.attempt is not None or barriers.cutover is not None or barriers.checkpoint is not None:
            return self._config.job.lost_after / 2 + 1.0
        return SELDOM

    def _tick_as_planned(self, planned: float) -> None:
        if planned == self._next_tick:  # none came in between
            self._tick()

    def _tick(self) -> None:
        now, lost_after = self._events.now(), self._config.job.lost_after
        self._next_tick = math.inf
        if now - self._ticked > lost_after / 2:
            self._heard += now - self._ticked  # the coordinator takes it for a stall of its own
        overdue = now - self._heard > lost_after / 3
        if overdue:
            self._heard = now
        self._ticked = now
        self._fleet.beat(everybody=overdue)
        self._feed(Tick(now))

    # ---- looks at Slurm

    def _look_if_due(self) -> None:
        if self._end:
            return
        self._events.after(self._look_every, self._look_if_due)
        now, pool = self._events.now(), self._state.standbys
        changed = self._cluster.changes != self._seen_changes
        if self._news or changed or pool.useless_since or now >= self._looked + SELDOM or self._rested() <= now:
            self._fleet.beat(everybody=False)
            before = now - self._look_every
            if self._looked < before - 1e-6 and self._seen is not None:
                # The look before this one, which was left out: it saw what the last one had seen.
                self._feed(CapacitySeen(now, replace(self._seen, time=before)))
            self._looked, self._seen_changes, self._news = now, self._cluster.changes, False
            self._seen = self._standbys.observe()
            self._feed(CapacitySeen(now, self._seen))

    def _rested(self) -> float:
        """Return when the first partition has rested that did when Slurm was last looked at; infinity: none did."""
        now_history = self._state.history
        known, looked, until = self._rests
        if known is not now_history or looked != self._looked:
            hold, back_off = self._config.standby.hold, self._config.standby.back_off
            rests = resting(now_history.spans, self._looked, hold, back_off) if self._looked > 0 else {}
            left = history.left_alone(now_history, self._looked)
            until = min((*(end for end, _ in rests.values()), *left.values()), default=math.inf)
            self._rests = (now_history, self._looked, until)
        return until


def run_id(setting: Setting, policy: str, mode: str) -> str:
    """Return the id of a run: another setting, policy or mode has another one, and the same ones have the same."""
    trace = setting.trace
    what = f"{trace.name} {trace.seconds} {trace.events} {setting.notice} {setting.queue_wait}"
    return f"{RUN}-{policy}-{mode}-{setting.seed}-{zlib.crc32(what.encode()):08x}"


def look_seconds(config: JobConfig) -> float:
    """Return the seconds between two looks at Slurm.

    It is the budget's, of four queries and two more for each further partition.
    """
    partitions = {name for unit in standby_units(config.standby) for name in unit.partitions}
    queries = 2 + 2 * max(1, len(partitions))
    return max(config.standby.poll, 60.0 * queries / config.standby.queries_per_minute, 0.1)
