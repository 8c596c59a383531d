"""A worker's way from one world to the next, with an engine, a transfer and a coordinator that only note what is asked.

What is tested is what the worker does in which order, what it votes, and what it is afterwards. The verdict is the
coordinator's answer to the vote, given by whichever thread has sent it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.protocol.messages import (
    Abort,
    Commit,
    ConfirmBoundary,
    Handover,
    Leaving,
    ProposeBoundary,
    Streamed,
    WorldEntered,
)
from liver_slurm.transfer.layerwise import LayerwiseStats
from liver_slurm.transfer.transfer import TransferStats
from liver_slurm.worker import fault_injection
from liver_slurm.worker.cutover import Cutover, Outcome, flat, participant
from liver_slurm.worker.directives import Directives, Due, Train
from liver_slurm.worker.target_world import TargetWorld
from liver_slurm.worker.train_loop import Left

PATIENCE = 90.0
NAME, GENERATION, STEP = "live-0", 3, 40
RESULT: Any = "what the first step did"
Verdict = Callable[[Directives, Streamed], None]


def commit(directives: Directives, _vote: Streamed) -> None:
    """All votes are yes."""
    directives.decide(Commit(epoch=1, generation=GENERATION, step=STEP))


def commit_and_hold(directives: Directives, _vote: Streamed) -> None:
    """All votes are yes, and the next resize is due at the same step."""
    directives.decide(Commit(epoch=1, generation=GENERATION, step=STEP, held=8))


def abort(directives: Directives, _vote: Streamed) -> None:
    """Somebody has said no, or was not ready in time."""
    directives.abort(Abort(epoch=1, generation=GENERATION, reason="not ready after 4 s"), waited_for=True)


def leave(directives: Directives, _vote: Streamed) -> None:
    """The run is over."""
    directives.leave("cancelled on request")


def vanish(directives: Directives, _vote: Streamed) -> None:
    """The coordinator has gone for good."""
    directives.alone()


# ---- the fakes -----------------------------------------------------------------------------------------------------


class Control:
    """Takes what the worker says, and has the coordinator answer a vote."""

    def __init__(self, log: list[str], directives: Directives, verdict: Verdict) -> None:
        self.posted: list[Any] = []
        self.committed = False
        """The commit record is written: a no comes too late."""
        self._log, self._directives, self._verdict = log, directives, verdict

    def post(self, message: Any) -> None:
        vote = f" {'yes' if message.ok else 'no'}" if isinstance(message, Streamed) else ""
        self._log.append(f"say {type(message).__name__}{vote}")
        self.posted.append(message)
        if isinstance(message, Streamed) and message.ok:
            self._verdict(self._directives, message)
        elif isinstance(message, Streamed) and not self.committed:
            abort(self._directives, message)

    def drain(self) -> None:
        self._log.append("drain")


class State:
    """What a rank holds of a world."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log
        self.world = SimpleNamespace(destroy=self.destroy, abort=lambda: log.append(f"abort {name}"))
        self.destroyed = threading.Event()
        self.peer_lost = False

    stuck = False
    """The optimizer's counter cannot be set."""
    _counted = 0

    def steps(self) -> set[int]:
        return {self._counted}

    def _count(self, step: int) -> None:
        self._counted = 0 if self.stuck else step

    def clear_caches(self) -> None:
        self._log.append(f"end what runs for {self.name}")

    def tensors(self) -> list[torch.Tensor]:
        return []

    moments = tensors

    def set_step(self, step: int) -> None:
        self._count(step)
        self._log.append(f"{self.name} is at update {step}")

    def derive_weights(self, adam_step: int) -> Any:
        self._count(adam_step)
        self._log.append(f"weights of {self.name} from update {adam_step}")
        return SimpleNamespace(wait=self._wait)

    def _wait(self) -> None:
        if self.peer_lost:
            raise RuntimeError("connection closed by peer")
        self._log.append("weights are there")

    def destroy(self) -> None:
        self._log.append(f"destroy {self.name}")
        self.destroyed.set()


class Loop:
    """The training loop, which makes no steps."""

    stopped_at = 100.0
    first_sample = "5eed"

    def __init__(self, log: list[str], live: State | None) -> None:
        self._log, self.live = log, live
        self.writer = SimpleNamespace(wait=lambda: log.append("the old world's checkpoint is written"))
        self.fails_before = self.fails_after = ""
        self.stop = self.validates = False

    def gap(self) -> float:
        return 0.25

    def validates_at(self, step: int) -> bool:
        return self.validates

    def make_live(self, state: State | None) -> None:
        self._log.append(f"look at {state.name if state else 'no world'}")

    def enter(self, state: State, step: int, mirrors: Any, continues: bool) -> Left:
        self._log.append(f"enter {state.name} at {step}")
        left, self.live = self._left(), state
        return left

    def leave(self) -> Left:
        self._log.append("leave")
        left, self.live = self._left(), None
        return left

    def _left(self) -> Left:
        return Left(self.live, self.writer, None)  # type: ignore[arg-type]

    @property
    def checkpoints(self) -> Any:
        return SimpleNamespace(abandon=lambda: self._log.append("the checkpoint is abandoned"))

    def train(self, state: State, step: int, stop: bool, gate: Callable[[float], None]) -> Any:
        self._log.append(f"forward and backward of step {step} in {state.name}")
        self.stop = stop
        if self.fails_before:
            raise RuntimeError(self.fails_before)
        gate(50.0)
        self._log.append("update")
        if self.fails_after:
            raise RuntimeError(self.fails_after)
        return RESULT

    def completed(self, result: Any) -> None:
        assert result is RESULT
        self._log.append("completed")


class Moving:
    """A transfer that moves nothing."""

    beside_training = False
    stats = TransferStats()

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self.fails_to_finish: Exception | None = None
        self.fails_to_prove: Exception | None = None
        self.stands: threading.Event | None = None
        """Set as soon as the transfer stands, waiting for a peer until it is given up."""
        self.proves = threading.Event()
        self.proves.set()
        self._given_up, self.closed = threading.Event(), threading.Event()

    def finish(self) -> int:
        self._log.append("finish")
        if self.stands is not None:
            self.stands.set()
            assert self._given_up.wait(PATIENCE)
            raise TransferError("the transfer was given up")
        if self.fails_to_finish is not None:
            raise self.fails_to_finish
        return 39

    def prove(self) -> TransferStats:
        assert self.proves.wait(PATIENCE)
        if self.fails_to_prove is not None:
            raise self.fails_to_prove
        self._log.append("proven")
        return self.stats

    def release(self) -> None:
        self._log.append("release")

    def stop_reading(self) -> None:
        self._log.append("stop reading")

    def abort(self) -> None:
        self._log.append("close connections")
        self._given_up.set()

    def close(self) -> None:
        self._log.append("close transfer")
        self.closed.set()


class Blocking(Moving):
    """A transfer in the pause."""

    stats = TransferStats(
        seconds=0.5,
        bytes_sent=100,
        bytes_received=200,
        bytes_local=300,
        staging_peak_bytes=4096,
        digests_checked=7,
    )


class Live(Moving):
    """A transfer that began while training ran."""

    beside_training = True
    stats = TransferStats(
        bytes_sent=1000, bytes_early=800, bytes_gradients=100, bytes_received=2000, bytes_local=3000,
        staging_peak_bytes=64, gradient_staging_bytes=32, digests_checked=9, exposed_seconds=0.125, seconds=0.25,
    )  # fmt: skip


class Late:
    """Layers that have no room beside the old world."""

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self.freed, self.fails = False, False

    def __len__(self) -> int:
        return 2

    def run(self) -> LayerwiseStats:
        self._log.append("late layers")
        self.freed = True
        if self.fails:
            raise TransferError("a peer is gone")
        return LayerwiseStats(
            TransferStats(
                seconds=1.0,
                bytes_sent=10,
                bytes_received=20,
                bytes_local=30,
                staging_peak_bytes=5000,
                digests_checked=4,
            ),
            9000,
            41,
        )


class Lab:
    """One worker before a cutover."""

    def __init__(self, transfer: type[Blocking] | type[Live], verdict: Verdict = commit) -> None:
        self.log: list[str] = []
        self.directives = Directives()
        self.old, self.new = State("old", self.log), State("new", self.log)
        self.loop = Loop(self.log, self.old)
        self.control = Control(self.log, self.directives, verdict)
        self.transfer: Any = transfer(self.log)
        self.freed = threading.Event()
        loop: Any = self.loop
        control: Any = self.control
        self.cutover = Cutover(NAME, torch.device("cpu"), loop, self.directives, control)
        state: Any = self.new
        self.target = TargetWorld(
            Membership(GENERATION, Layout.parse("tp1pp1dp2"), (NAME, "live-1")),
            state,
            self.transfer,
            plan_seconds=0.75,
            held_bytes=1000,
            world=state.world,
        )
        assert self.target.prepared()

    def without_old(self) -> Lab:
        """The worker joins."""
        self.loop.live = None
        return self

    def without_new(self) -> Lab:
        """The worker is no member of the new world."""
        self.target.state = None
        return self

    def flat(self, member: bool = True) -> Lab:
        """The new world is built when the old one is gone."""
        image: Any = SimpleNamespace(
            nbytes=1 << 20, load=lambda state: self.log.append(f"load {state.name}"), close=lambda: None
        )
        world: Any = self.new.world
        self.target.flat, self.target.state, self.target.image = True, None, image if member else None
        self.target.builds(world, self._build)
        return self

    def _build(self) -> Any:
        self.log.append("build new")
        return self.new

    def with_late(self) -> Late:
        """Some layers move last."""
        late: Any = Late(self.log)
        self.target.late = late
        return late

    def run(self, stop: bool = False) -> Outcome:
        assert self.target.stream()
        return self.cutover.run(self.target, STEP, stop)

    def said(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.control.posted if isinstance(message, kind)]

    @property
    def vote(self) -> Streamed:
        (vote,) = self.said(Streamed)
        return vote

    def in_order(self, *entries: str) -> None:
        """These are in the log, in this order, whatever else is."""
        at = -1
        for entry in entries:
            assert entry in self.log[at + 1 :], f"{entry!r} after {self.log[: at + 1]} in {self.log}"
            at = self.log.index(entry, at + 1)

    def nothing_of_the_old_world_is_lost(self) -> None:
        assert not self.old.destroyed.is_set()
        assert not self.freed.is_set()
        assert not self.said(WorldEntered)
        assert not any(entry.startswith("enter") for entry in self.log)
        assert self.target.state is None, "discarded"
        assert "close transfer" in self.log


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Lab]:
    """Makes a lab whose old world's storage is freed on paper."""

    def make(transfer: type[Blocking] | type[Live], verdict: Verdict = commit) -> Lab:
        made = Lab(transfer, verdict)

        def release(old: State, _new: State | None) -> None:
            made.log.append(f"free {old.name}")
            made.freed.set()

        monkeypatch.setattr(participant, "release", release)
        monkeypatch.setattr(flat, "release", release)
        return made

    return make


both = pytest.mark.parametrize("mode", [Blocking, Live])


# ---- commit --------------------------------------------------------------------------------------------------------


def test_in_mode_pause_training_stands_until_the_commit(lab: Callable[..., Lab]) -> None:
    run = lab(Blocking)
    assert run.run() is Outcome.ENTERED
    run.in_order("finish", "proven", "new is at update 39", "say Streamed yes", "look at new", "enter new at 40")
    run.in_order("enter new at 40", "say WorldEntered")
    assert run.freed.wait(PATIENCE)
    run.in_order("close transfer", "the old world's checkpoint is written", "destroy old", "free old")
    (entered,) = run.said(WorldEntered)
    assert (entered.worker, entered.generation, entered.step, entered.gate_seconds) == (NAME, GENERATION, STEP, 0.0)
    assert run.directives.at_boundary(STEP), "training goes on at the very step"


def test_in_mode_flat_the_old_world_goes_before_the_new_one_is_built(lab: Callable[..., Lab]) -> None:
    run = lab(Blocking).flat()
    assert run.run() is Outcome.ENTERED
    run.in_order("finish", "proven", "stop reading", "say Streamed yes", "free old", "build new", "load new")
    run.in_order("load new", "weights of new from update 39", "weights are there", "look at new", "enter new at 40")
    run.in_order("enter new at 40", "say WorldEntered")
    assert run.vote.report.image_bytes == 1 << 20


def test_in_mode_flat_who_joins_frees_nothing(lab: Callable[..., Lab]) -> None:
    run = lab(Blocking).flat().without_old()
    assert run.run() is Outcome.ENTERED
    assert "free old" not in run.log
    run.in_order("say Streamed yes", "build new", "load new", "enter new at 40")


def test_in_mode_flat_who_leaves_builds_nothing(lab: Callable[..., Lab]) -> None:
    run = lab(Blocking).flat(member=False)
    assert run.run() is Outcome.LEFT
    assert "build new" not in run.log


def test_flat_a_peer_lost_after_the_commit_breaks_the_new_world(lab: Callable[..., Lab]) -> None:
    """Its state is there: whoever is left is found in it, and recovers from it."""
    run = lab(Blocking).flat()
    run.new.peer_lost = True
    with pytest.raises(RuntimeError, match="closed by peer"):
        run.run()
    run.in_order("load new", "look at new", "enter new at 40")


@pytest.mark.parametrize(("verdict", "outcome"), [("abort", "STAYED"), ("vanish", "STAYED"), ("leave", "EXIT")])
def test_in_mode_flat_nothing_is_freed_without_a_commit(lab: Callable[..., Lab], verdict: str, outcome: str) -> None:
    # LS-7
    run = lab(Blocking, {"abort": abort, "vanish": vanish, "leave": leave}[verdict]).flat()
    assert run.run().name == outcome
    run.nothing_of_the_old_world_is_lost()
    assert "build new" not in run.log


def test_the_vote_has_the_figures_of_the_pause(lab: Callable[..., Lab]) -> None:
    run = lab(Blocking)
    run.run()
    vote, report = run.vote, run.vote.report
    assert vote.found == Handover(updates=39, step=STEP, data="5eed")
    assert (vote.ok, vote.generation) == (True, GENERATION)
    assert (report.seconds, report.plan_seconds) == (0.5, 0.75)
    assert (report.bytes_sent, report.bytes_received, report.bytes_local, report.bytes_early) == (100, 200, 300, 0)
    assert (report.staging_peak_bytes, report.digests_checked, report.late_layers) == (4096, 7, 0)
    assert (report.paused_at, report.gap_seconds) == (100.0, 0.25)
    assert report.state_peak_bytes == 1000 + 4096
    assert report.memory_peak_bytes > 1 << 20


@pytest.mark.parametrize("transfer", [Blocking, Live])
def test_an_optimizer_that_counts_from_0_again_is_not_committed(transfer: Any, lab: Callable[..., Lab]) -> None:
    run = lab(transfer)
    run.new.stuck = True
    assert run.run() is Outcome.STAYED
    assert (run.vote.ok, run.vote.error) == (
        False,
        "the optimizer's step is [0] in the new world, and 39 in the live one",
    )
    run.nothing_of_the_old_world_is_lost()


def test_overlap_updates_only_after_the_commit(lab: Callable[..., Lab]) -> None:
    # LS-11
    run = lab(Live)
    run.transfer.proves.clear()
    train, begun = run.loop.train, threading.Event()

    def first_step(*arguments: Any) -> Any:
        run.transfer.proves.set()  # nothing is proven yet when the new world's first step begins
        begun.set()
        return train(*arguments)

    run.loop.train = first_step
    assert run.run() is Outcome.ENTERED
    assert begun.is_set()
    run.in_order("finish", "weights of new from update 39", "look at new", "forward and backward of step 40 in new")
    run.in_order("weights are there", "enter new at 40", "say WorldEntered", "update", "completed")
    run.in_order("say Streamed yes", "enter new at 40")
    assert run.freed.wait(PATIENCE)
    run.in_order("close transfer", "the old world's checkpoint is written", "destroy old", "free old")
    (entered,) = run.said(WorldEntered)
    assert (entered.step, entered.time) == (STEP, 50.0), "the start of the forward pass, as the step tells it"
    assert entered.gate_seconds >= 0.0


def test_where_a_validation_comes_first_the_new_world_is_entered_without_a_step(lab: Callable[..., Lab]) -> None:
    run = lab(Live)
    run.loop.validates = True
    assert run.run() is Outcome.ENTERED
    run.in_order("weights are there", "enter new at 40", "say WorldEntered")
    assert not any(line.startswith(("forward", "update", "completed")) for line in run.log)
    assert run.directives.at_boundary(STEP, begins=False) == Train()
    late = ProposeBoundary(epoch=1, boundary=9, step=STEP, purpose="checkpoint", generation=-1)
    assert run.directives.propose(late) == (True, STEP - 1), "the step is not begun"


def test_the_vote_has_the_figures_of_both(lab: Callable[..., Lab]) -> None:
    run = lab(Live)
    run.run()
    report = run.vote.report
    assert (report.seconds, report.hook_seconds) == (0.25, 0.125)
    assert (report.bytes_sent, report.bytes_early, report.bytes_gradients) == (1000, 800, 100)
    assert (report.bytes_received, report.bytes_local, report.digests_checked) == (2000, 3000, 9)
    assert (report.staging_peak_bytes, report.gradient_staging_bytes) == (64, 32)
    assert report.state_peak_bytes == 1000 + 64 + 32


@both
def test_a_joiner_has_nothing_to_leave(lab: Callable[..., Lab], mode: Any) -> None:
    run = lab(mode).without_old()
    assert run.run() is Outcome.ENTERED
    assert run.transfer.closed.wait(PATIENCE)
    assert not run.freed.is_set()
    over = ProposeBoundary(epoch=1, boundary=8, step=STEP - 1, purpose="checkpoint")
    assert not run.directives.propose(over)[0], "it knows which step the new world begins with"


@both
def test_a_worker_that_is_in_no_world_then_waits_to_be_used_again(lab: Callable[..., Lab], mode: Any) -> None:
    run = lab(mode).without_new()
    assert run.run() is Outcome.LEFT
    assert run.freed.wait(PATIENCE)
    run.in_order("say Streamed yes", "leave", "close transfer", "the old world's checkpoint is written", "destroy old")
    assert not run.said(WorldEntered)
    assert not run.said(Leaving)


@both
def test_a_worker_with_a_notice_goes_at_once(lab: Callable[..., Lab], mode: Any) -> None:
    run = lab(mode).without_new()
    run.cutover.noticed()
    assert run.run() is Outcome.EXIT
    assert [message.reason for message in run.said(Leaving)] == ["not in the new world"]
    assert "the old world's checkpoint is written" not in run.log, "nothing that takes time"


def test_a_notice_of_a_worker_that_stays_changes_nothing(lab: Callable[..., Lab]) -> None:
    run = lab(Blocking)
    run.cutover.noticed()
    assert run.run() is Outcome.ENTERED
    assert not run.said(Leaving)


def test_who_is_told_to_stop_says_so_in_the_new_worlds_first_step(lab: Callable[..., Lab]) -> None:
    for stop in (True, False):
        run = lab(Live)
        run.run(stop)
        assert run.loop.stop is stop


@pytest.mark.parametrize("told", [False, True])
def test_something_due_at_the_same_step_holds_the_first_update(lab: Callable[..., Lab], told: bool) -> None:
    run = lab(Live, commit_and_hold)
    if told:
        run.directives.propose(ProposeBoundary(epoch=1, boundary=8, step=STEP, purpose="cutover"))
    assert run.run() is Outcome.ENTERED
    assert "update" not in run.log
    assert "completed" not in run.log
    run.in_order("enter new at 40", "say WorldEntered")
    run.directives.confirm(ConfirmBoundary(epoch=1, boundary=8, step=STEP, purpose="cutover", generation=4))
    assert run.directives.at_boundary(STEP) == Due("cutover", 4, STEP)


def test_members_make_the_first_update_unless_the_commit_says_otherwise(lab: Callable[..., Lab]) -> None:
    # LS-15: word that nothing is due there any more was lost; the others are in the step, too
    run = lab(Live)
    run.directives.propose(ProposeBoundary(epoch=1, boundary=8, step=STEP, purpose="cutover"))
    assert run.run() is Outcome.ENTERED
    assert "update" in run.log
    assert "completed" in run.log


# ---- abort ---------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(("verdict", "outcome"), [(abort, "STAYED"), (vanish, "STAYED"), (leave, "EXIT")])
def test_without_a_commit_the_old_world_is_as_it_was(
    lab: Callable[..., Lab], mode: Any, verdict: Verdict, outcome: str
) -> None:
    # LS-7
    run = lab(mode, verdict)
    assert run.run().name == outcome
    run.nothing_of_the_old_world_is_lost()
    run.in_order("say Streamed yes", "end what runs for new", "destroy new")
    if mode is Live:
        run.in_order("look at new", "look at old")
        assert "update" not in run.log
    assert run.loop.live is run.old


@both
@pytest.mark.parametrize("verdict", [abort, leave])
def test_a_joiner_is_a_standby_again(lab: Callable[..., Lab], mode: Any, verdict: Verdict) -> None:
    run = lab(mode, verdict).without_old()
    assert run.run() is (Outcome.STAYED if verdict is abort else Outcome.EXIT)
    run.nothing_of_the_old_world_is_lost()
    if mode is Live:
        run.in_order("look at new", "look at no world")


@both
def test_a_leaver_stays_where_it_is(lab: Callable[..., Lab], mode: Any) -> None:
    run = lab(mode, abort).without_new()
    run.cutover.noticed()
    assert run.run() is Outcome.STAYED
    run.nothing_of_the_old_world_is_lost()
    assert not run.said(Leaving)


def test_a_verdict_is_heard_by_a_worker_that_was_stopped(lab: Callable[..., Lab]) -> None:
    run = lab(Blocking, lambda _directives, _vote: None)
    abort(run.directives, Streamed(worker=NAME, generation=GENERATION, ok=True))
    assert run.run() is Outcome.STAYED, "its own yes came too late"
    run.nothing_of_the_old_world_is_lost()


def test_at_the_deadline_the_coordinator_ends_a_transfer_that_waits_for_a_peer(lab: Callable[..., Lab]) -> None:
    run = lab(Blocking)
    run.transfer.stands = threading.Event()
    outcome: list[Outcome] = []
    training = threading.Thread(target=lambda: outcome.append(run.run()), daemon=True)
    training.start()
    assert run.transfer.stands.wait(PATIENCE)
    # What the control thread does with an Abort.
    waited_for = run.target.give_up()
    assert waited_for
    run.directives.abort(Abort(epoch=1, generation=GENERATION, reason="not ready after 300 s"), waited_for)
    training.join(PATIENCE)
    assert outcome == [Outcome.STAYED]
    run.nothing_of_the_old_world_is_lost()


# ---- one rank fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "told"),
    [(TransferError("digest of x differs\nlong story"), "digest of x differs"), (TransferError(), "TransferError")],
)
@both
def test_a_failure_is_said_first_and_then_ends_what_peers_wait_for(
    lab: Callable[..., Lab], mode: Any, error: Exception, told: str
) -> None:
    run = lab(mode)
    run.transfer.fails_to_finish = error
    assert run.run() is Outcome.STAYED
    assert (run.vote.ok, run.vote.error) == (False, told)
    run.in_order("say Streamed no", "drain", "close connections", "close transfer")
    run.nothing_of_the_old_world_is_lost()
    assert "look at new" not in run.log


def test_a_failure_of_the_engine_is_one_too(lab: Callable[..., Lab]) -> None:
    run = lab(Live)
    run.transfer.fails_to_finish = RuntimeError("out of memory")
    assert run.run() is Outcome.STAYED
    assert (run.vote.ok, run.vote.error) == (False, "RuntimeError: out of memory")


@both
def test_a_failure_of_the_engine_is_voted_on(lab: Callable[..., Lab], mode: Any) -> None:
    run = lab(mode)
    run.transfer.fails_to_prove = RuntimeError("out of memory")
    assert run.run() is Outcome.STAYED
    assert (run.vote.ok, run.vote.error) == (False, "RuntimeError: out of memory")
    run.nothing_of_the_old_world_is_lost()


def test_digests_that_differ_end_the_first_step_before_its_update(lab: Callable[..., Lab]) -> None:
    # LS-12
    run = lab(Live)
    run.transfer.fails_to_prove = TransferError("digest of x differs")
    assert run.run() is Outcome.STAYED
    assert (run.vote.ok, run.vote.error) == (False, "digest of x differs")
    run.in_order("forward and backward of step 40 in new", "look at old", "destroy new")
    run.nothing_of_the_old_world_is_lost()
    assert "update" not in run.log


def test_a_peer_that_is_lost_in_the_first_step_takes_nothing_with_it(lab: Callable[..., Lab]) -> None:
    run = lab(Live, lambda _directives, _vote: None)
    run.loop.fails_before = "connection closed by peer"
    assert run.run() is Outcome.STAYED
    assert "RuntimeError: connection closed by peer" in [vote.error for vote in run.said(Streamed)]
    run.nothing_of_the_old_world_is_lost()


def test_a_failure_after_the_commit_is_one_of_the_worker(lab: Callable[..., Lab]) -> None:
    run = lab(Live)
    run.loop.fails_after = "connection closed by peer"
    with pytest.raises(RuntimeError, match="closed by peer"):
        run.run()
    assert [vote.ok for vote in run.said(Streamed)] == [True]
    assert run.loop.live is run.new


def test_so_is_one_that_meets_a_commit(lab: Callable[..., Lab]) -> None:
    run = lab(Live, lambda _directives, _vote: None)
    run.loop.fails_before = "connection closed by peer"
    run.control.committed = True
    commit(run.directives, Streamed(worker=NAME, generation=GENERATION, ok=True))
    with pytest.raises(RuntimeError, match="closed by peer"):
        run.run()


@both
@pytest.mark.parametrize("point", ["stream", "streamed"])
def test_a_fault_on_purpose_is_a_no(
    lab: Callable[..., Lab], mode: Any, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fault_injection, "_fault", fault_injection._parse(f"fail@{point}:{NAME}"))
    run = lab(mode)
    assert run.run() is Outcome.STAYED
    assert f"fails at {point}" in run.vote.error
    run.nothing_of_the_old_world_is_lost()


# ---- layers without room -------------------------------------------------------------------------------------------


@both
def test_late_layers_move_when_all_else_is_proven(lab: Callable[..., Lab], mode: Any) -> None:
    run = lab(mode)
    run.with_late()
    assert run.run() is Outcome.ENTERED
    first = ["finish", "proven"] if mode is Blocking else ["finish", "proven", "release"]
    run.in_order(*first, "late layers", "say Streamed yes", "enter new at 40")
    if mode is Live:
        run.in_order("late layers", "weights of new from update 41", "say Streamed yes")
    report = run.vote.report
    assert (report.late_layers, report.state_peak_bytes, report.staging_peak_bytes) == (2, 9000, 5000)
    sent, checked = (110, 11) if mode is Blocking else (1010, 13)
    assert (report.bytes_sent, report.digests_checked) == (sent, checked)


def test_late_layers_wait_for_snapshots(lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    """A card may still copy one from the old world's state, which late layers free."""
    run = lab(Blocking)
    worker = run.cutover._participant
    worker.device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: run.log.append(f"wait for {device}"))
    worker.move_late(run.target, run.with_late())
    assert run.log == ["wait for cuda:0", "late layers"]


@both
def test_there_is_no_way_back_once_late_layers_have_freed_the_old_world(lab: Callable[..., Lab], mode: Any) -> None:
    run = lab(mode)
    run.with_late().fails = True
    with pytest.raises(TransferError, match=r"a peer is gone; the old world's state was being freed"):
        run.run()
    assert not run.said(Streamed), "its last message says so"
    assert "close connections" in run.log


@both
def test_an_abort_then_is_a_failure(lab: Callable[..., Lab], mode: Any) -> None:
    run = lab(mode, abort)
    run.with_late()
    with pytest.raises(TransferError, match=r"not ready after 4 s; the old world's state was being freed"):
        run.run()


@both
def test_an_order_to_leave_then_is_none(lab: Callable[..., Lab], mode: Any) -> None:
    run = lab(mode, leave)
    run.with_late()
    assert run.run() is Outcome.EXIT
