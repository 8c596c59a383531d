"""Anything may happen to the state machine, in any order: its invariants hold."""

from __future__ import annotations

from dataclasses import replace

from coordinator_lab import job
from coordinator_states import Run, settings
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from liver_slurm.config.schema import ComponentSection, LiveSection
from liver_slurm.coordinator.core.io import Action, Emit, GiveBack, GivenBack, Journal, Send
from liver_slurm.coordinator.core.records import AttemptAborted, AttemptStarted, Committed, Ended, Entered
from liver_slurm.coordinator.core.step import recover
from liver_slurm.parallel.membership import World
from liver_slurm.protocol import messages as m
from liver_slurm.rundir.events import ReconfigurationCommitted

STANDBYS = [f"standby-{letter}" for letter in "abcd"]
LIVE = ["live-0", "live-1"]
JOB = {"job_id": "7", "heterogeneous": True}
ANYBODY = st.sampled_from(LIVE + STANDBYS)


class AnyOrder(RuleBasedStateMachine):
    """Workers answer, or not, or wrongly, or twice; time passes; the coordinator dies and comes back."""

    # LS-5, LS-6, LS-8, LS-9, LS-10, LS-29

    def __init__(self) -> None:
        super().__init__()
        config = job(lost_after=50.0)
        live = LiveSection(component=(ComponentSection(nodes=2),))
        self.config, self.epoch = replace(config, train=replace(config.train, steps=10**9), live=live), 1
        self.run = Run(config=self.config, **JOB)
        self.seen = 0
        self.voted: set[tuple[str, int]] = set()
        self.open: int | None = None
        self.generations: list[int] = []
        self.committed: set[int] = set()
        self.live: World | None = None
        self.generation_of: dict[str, int] = {}

    @initialize()
    def world_0(self) -> None:
        self.run.train(*LIVE, job_id="7")
        self.generation_of = dict.fromkeys(LIVE, 0)

    def alive(self, name: str) -> bool:
        return name in self.run.state.membership.workers and not self.run.state.over

    # ---- what may happen

    @rule(name=st.sampled_from(STANDBYS))
    def comes(self, name: str) -> None:
        if name not in self.run.state.membership.workers:
            self.generation_of[name] = -1
            self.run.register(name, pid=self.run.state.world.next_generation)

    @rule(beats=st.sampled_from([1, 1, 3, 40]))
    def time_passes(self, beats: int) -> None:
        for _ in range(beats):
            for name, worker in self.run.state.membership.workers.items():
                generation = self.generation_of.get(name, -1)
                step = worker.step + 10 if generation >= 0 else 0
                self.run.say(m.Heartbeat(worker=name, generation=generation, step=step, step_seconds=1.0, warm=True))
            self.run.tick(10.0)

    @rule(stages=st.integers(1, 4))
    def all_goes_well(self, stages: int) -> None:
        self.run.tick(2.0)
        for stage in (self.all_prepare, self.all_vote, self.all_stream, self.all_enter)[:stages]:
            stage()

    @rule()
    def all_prepare(self) -> None:
        attempt = self.run.state.world.attempt
        for name in attempt.involved if attempt else ():
            self.prepares(name, True, 0)

    @rule(name=ANYBODY, ok=st.sampled_from([True, True, True, False]), late=st.sampled_from([0, 0, 0, 1]))
    def prepares(self, name: str, ok: bool, late: int) -> None:
        if self.alive(name):
            generation = self.run.state.world.next_generation - 1 - late
            self.run.say(m.Prepared(worker=name, generation=generation, ok=ok, error="x"))

    @rule()
    def all_vote(self) -> None:
        for name in sorted(self.run.state.membership.workers):
            self.votes(name, True)

    @rule(name=ANYBODY, accepted=st.booleans())
    def votes(self, name: str, accepted: bool) -> None:
        held = self.run.state.barriers.cutover
        if held is not None and self.alive(name):
            current = held.step - 1 if accepted else held.step + 2
            self.run.say(
                m.BoundaryVote(
                    worker=name, boundary=held.number, step=held.step, accepted=accepted, current_step=current
                )
            )

    @rule()
    def checkpoint_is_asked_for(self) -> None:
        self.run.say(m.CheckpointRequest())

    @rule(name=ANYBODY, accepted=st.booleans(), ahead=st.sampled_from([1, 20]))
    def votes_on_a_checkpoint(self, name: str, accepted: bool, ahead: int) -> None:
        boundary = self.run.state.barriers.checkpoint
        if boundary is not None and self.alive(name):
            current = boundary.step - 1 if accepted else boundary.step + ahead
            self.run.say(
                m.BoundaryVote(
                    worker=name, boundary=boundary.number, step=boundary.step, accepted=accepted, current_step=current
                )
            )

    @precondition(lambda self: self.run.state.steady and self.run.state.barriers.cutover is None)
    @rule()
    def checkpoint_comes(self) -> None:
        """Whatever was before: a checkpoint that is asked for in a steady run is agreed on by all its members."""
        self.time_passes(1)
        agreed, state = self.run.state.barriers.agreed_checkpoint, self.run.state
        if not state.steady or state.barriers.cutover is not None or state.damage.broken or state.damage.lost:
            return  # something else has begun meanwhile
        if agreed is not None and any(worker.step <= agreed.step for worker in state.members):
            return  # the last one comes first
        before = len(self.run.actions)
        self.run.say(m.CheckpointRequest())
        members = self.run.live.members
        for _ in range(2):  # of one before, and this one
            for name in members:
                self.votes_on_a_checkpoint(name, accepted=True, ahead=1)
        told = [name for name, one in self.run.sent(m.ConfirmBoundary, self.run.actions[before:])
                if one.purpose == "checkpoint"]  # fmt: skip
        assert set(told) == set(members)

    @rule()
    def all_stream(self) -> None:
        attempt = self.run.state.world.attempt
        for name in attempt.involved if attempt else ():
            self.streams(name, True)

    @rule(name=ANYBODY, ok=st.sampled_from([True, True, True, False]))
    def streams(self, name: str, ok: bool) -> None:
        attempt = self.run.state.world.attempt
        if self.alive(name):
            generation = attempt.target.generation if attempt else 0
            if ok:
                self.voted.add((name, generation))
            self.run.say(
                m.Streamed(worker=name, generation=generation, ok=ok, error="x", report=m.TransferReport(paused_at=1.0))
            )

    @rule(name=ANYBODY)
    def enters(self, name: str) -> None:
        live = self.run.state.world.live
        if self.alive(name) and live is not None and name in live.members:
            self.generation_of[name] = live.generation
            self.run.say(m.WorldEntered(worker=name, generation=live.generation, step=live.step, time=self.run.now))

    @rule()
    def all_enter(self) -> None:
        for name in self.run.live.members:
            self.enters(name)

    @rule(name=st.sampled_from(STANDBYS), deadline=st.sampled_from([None, 1.0, 100.0]))
    def is_wanted_back(self, name: str, deadline: float | None) -> None:
        if self.alive(name):
            at = None if deadline is None else self.run.now + deadline
            self.run.say(m.Notice(worker=name, reason="SIGTERM", time=self.run.now, deadline=at))

    @rule(name=st.sampled_from([*STANDBYS, "live-1"]))
    def leaves(self, name: str) -> None:
        needed = self.run.live.members if self.run.state.world.live else ()
        if self.alive(name) and name not in needed:
            self.run.say(m.Leaving(worker=name, reason="x"))

    @rule(
        layout=st.sampled_from(["tp1pp1dp1", "tp2pp1dp1", "tp2pp1dp2", "tp1pp2dp2", "tp1pp1dp3"]),
        ahead=st.sampled_from([-1, 3, 30]),
        give_back=st.booleans(),
    )
    def resize(self, layout: str, ahead: int, give_back: bool) -> None:
        step = self.run.state.step + ahead if ahead > 0 else -1
        self.run.say(m.ResizeRequest(layout=layout, at_step=step, give_back=give_back))

    @rule()
    def gives_nodes_back(self) -> None:
        self.resize("tp1pp1dp1", -1, give_back=True)
        self.all_goes_well(4)
        self.run.tick(1.0)
        self.all_leave_that_may()

    @rule()
    def all_leave_that_may(self) -> None:
        for name in [worker.name for worker in self.run.state.membership.workers.values() if worker.dismissed]:
            self.leaves(name)
        self.run.tick(1.0)

    @rule(refused=st.booleans())
    def slurm_takes_nodes(self, refused: bool) -> None:
        if self.run.state.release.releasing is not None:
            self.run.feed(GivenBack(self.run.now, self.run.state.release.releasing, 1, error="x" if refused else ""))

    @precondition(lambda self: self.epoch < 5 and not self.run.state.over)
    @rule()
    def coordinator_is_killed(self) -> None:
        self.check()
        self.epoch += 1
        old, names = self.run, sorted(self.run.state.membership.workers)
        self.run = Run(recover(old.records, settings(config=self.config, epoch=self.epoch, **JOB), old.now))
        self.run.actions = [Journal(record) for record in old.records]
        self.run.whole_journal = True
        self.seen = len(self.run.actions)
        self.open = None
        for name in names:
            known = old.state.membership.workers[name]
            self.run.register(name, self.generation_of.get(name, -1), known.step, job_id=known.job_id)

    # ---- what always holds

    @invariant()
    def check(self) -> None:
        for action in self.run.actions[self.seen :]:
            self.look_at(action)
        self.seen = len(self.run.actions)
        if self.run.state.world.live is not None and self.live is not None:
            assert self.run.state.world.live == self.live, "only a commit changes the live world"

    def look_at(self, action: Action) -> None:
        record = action.record if isinstance(action, Journal) else None
        if isinstance(record, AttemptStarted):
            assert self.open is None, "two reconfigurations never overlap"
            assert all(record.generation > other for other in self.generations), "generations are never used again"
            self.open = record.generation
            self.generations.append(record.generation)
        elif isinstance(record, Committed):
            assert record.generation == self.open
            involved = {*record.source_members, *record.members} if record.source_members else set()
            assert all((name, record.generation) in self.voted for name in involved), "no commit without every vote"
            self.committed.add(record.generation)
            self.live = World(record.generation, self.run.live.layout, record.members, record.step)
        elif isinstance(record, AttemptAborted):
            assert record.generation not in self.committed, "there is no way back from a commit record"
            self.open = None
        elif isinstance(record, Entered | Ended):
            self.open = None
        elif isinstance(action, Send) and isinstance(action.message, m.Commit):
            assert action.message.generation in self.committed, "the record comes before the word"
        elif isinstance(action, Send) and isinstance(action.message, m.Abort):
            assert action.message.generation not in self.committed
        elif isinstance(action, GiveBack):
            assert (action.component, action.keep) == (1, 1), "world 0's first worker is in every world"
            assert "live-1" not in {*self.run.state.membership.workers, *self.run.live.members}, (
                "nobody is on a node that goes"
            )
        elif isinstance(action, Emit) and isinstance(action.event, ReconfigurationCommitted):
            assert action.event.generation in self.committed


AnyOrder.TestCase.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnyOrder = AnyOrder.TestCase
