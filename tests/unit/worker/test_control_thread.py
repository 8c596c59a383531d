"""A worker's control thread on a channel that follows a script, by a clock that moves when the script says so."""

from __future__ import annotations

import math
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from coordinator_lab import job, until

from liver_slurm.protocol.messages import (
    Abort,
    BoundaryVote,
    Commit,
    ConfirmBoundary,
    Finished,
    Heartbeat,
    Leaving,
    Notice,
    Prepare,
    ProposeBoundary,
    Refused,
    Register,
    Welcome,
    WithdrawBoundary,
)
from liver_slurm.protocol.messages import Leave as LeaveOrder
from liver_slurm.protocol.server import ControlServer
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run
from liver_slurm.worker import control_thread
from liver_slurm.worker.control_thread import ControlThread, is_stuck
from liver_slurm.worker.directives import Directives, Due, Enter, Leave, Train

PATIENCE = 90.0
BEAT, ORPHAN = 1.0, 60.0
NAME = "live-0"


class Worker:
    """What the thread is told to ask from its worker."""

    name = NAME

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self.in_world, self.waits_for_verdict = True, False
        self.expected: set[int] = set()

    def registration(self) -> Register:
        return Register(run_id="r", worker=NAME, role="live", host="h", pid=1, job_id="7", device="cpu", generation=2)

    def heartbeat(self, rejected: int, voted: int) -> Heartbeat:
        return Heartbeat(worker=NAME, generation=2, step=9, step_seconds=0.5, warm=True, rejected=rejected)

    def engaged(self) -> bool:
        return self.in_world

    def prepare(self, message: Prepare) -> None:
        self._log.append(f"prepare {message.generation}")

    def confirmed(self, message: ConfirmBoundary) -> None:
        self._log.append(f"confirmed {message.step}, from {message.begin}")

    def expects(self, generation: int) -> bool:
        return generation in self.expected

    def give_up(self, generation: int) -> bool:
        self._log.append(f"give up {generation}")
        return self.waits_for_verdict

    def noticed(self) -> None:
        self._log.append("noticed")

    def orphaned(self) -> None:
        self._log.append("orphaned")


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 5000.0 + self.now


Entry = Callable[["Channel", float], list[Any]]
"""One poll: gets the channel and the seconds that it may wait; returns what has come."""


def comes(*messages: Any) -> Entry:
    """These messages come at once."""
    return lambda _channel, _timeout: list(messages)


def silence(channel: Channel, timeout: float) -> list[Any]:
    """Nothing comes in all of the time."""
    channel.clock.now += timeout
    channel.seconds_since_contact += timeout
    return []


class Channel:
    """The control channel: each poll is an entry of the script; after the last one it waits for work, or the end."""

    def __init__(self, clock: Clock, script: Sequence[Entry]) -> None:
        self.clock, self._script = clock, list(script)
        self.sent: list[Any] = []
        self.waits: list[float] = []
        self.rejected, self.voted, self.every = 0, -1, 0.0
        self.seconds_since_contact = 0.0
        self.excused = 0
        self.over, self.closed = threading.Event(), False

    def send(self, message: Any) -> None:
        assert not self.closed
        self.sent.append(message)

    def answer_to(self, order: Any) -> Any:
        """No order has come before."""

    def poll(self, timeout: float, wake: Sequence[int] = ()) -> list[Any]:
        if self._script:
            self.waits.append(timeout)
            return self._script.pop(0)(self, timeout)
        self.over.set()
        waiting = select.poll()  # which takes descriptors of any number
        for each in wake:
            waiting.register(each, select.POLLIN)
        waiting.poll(1000 * PATIENCE)
        return []

    def excuse_silence(self) -> None:
        self.excused += 1
        self.seconds_since_contact = 0.0

    def close(self) -> None:
        self.closed = True


class Lab:
    """A control thread and what is around it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.worker, self.directives, self.clock = Worker(self.log), Directives(), Clock()
        read, self._write = os.pipe()
        os.set_blocking(read, False)
        worker: Any = self.worker
        self.thread = ControlThread(RunDir(Path("/nowhere")), worker, self.directives, read, BEAT, ORPHAN)
        self._patch = monkeypatch
        self.channel = Channel(self.clock, ())

    def play(self, *script: Entry) -> list[Any]:
        """Run the thread through a script and end it; returns what it has sent but heartbeats."""
        self.start(*script)
        self.finish()
        return [message for message in self.channel.sent if not isinstance(message, Heartbeat)]

    def start(self, *script: Entry) -> None:
        """Run the thread until the script is over."""
        self.channel = Channel(self.clock, script)
        self.run_on(self.channel)
        assert self.channel.over.wait(PATIENCE)

    def run_on(self, channel: Channel) -> None:
        """Run the thread."""
        self._patch.setattr(control_thread, "WorkerChannel", lambda _run_dir, _register: channel)
        self._patch.setattr(control_thread, "time", self.clock)
        self.thread.start()

    def finish(self) -> None:
        """End it."""
        self.thread.close()
        assert not self.thread.is_alive()
        assert self.thread.failure is None
        assert self.channel.closed

    def signal(self, *numbers: signal.Signals) -> Entry:
        """Signals come."""

        def entry(_channel: Channel, _timeout: float) -> list[Any]:
            os.write(self._write, bytes(numbers))
            return []

        return entry

    def beats(self) -> list[Heartbeat]:
        return [message for message in self.channel.sent if isinstance(message, Heartbeat)]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(monkeypatch)


# ---- directives ----------------------------------------------------------------------------------------------------


def test_its_methods_have_no_name_of_threads_own() -> None:
    newer = {"_handle", "_context"}  # of Python 3.13 and 3.14, which set them on each thread
    taken = {*dir(threading.Thread()), *newer}
    assert {name for name in vars(ControlThread) if not name.startswith("__")} & taken == {"run"}


def test_a_target_world_is_prepared_by_the_worker(lab: Lab) -> None:
    prepare = Prepare(
        epoch=1, generation=3, layout="tp1pp1dp2", members=["live-0", "live-1"], source_generation=2,
        store_host="h", store_port=1,
    )  # fmt: skip
    assert lab.play(comes(prepare)) == []
    assert lab.log == ["prepare 3"]


def test_a_proposed_boundary_is_answered_with_where_training_is(lab: Lab) -> None:
    lab.directives.start_at(5, 0)
    assert isinstance(lab.directives.at_boundary(5), Train), "step 5 is begun"
    near, far = (ProposeBoundary(epoch=1, boundary=7, step=step, purpose="cutover") for step in (5, 6))
    votes = lab.play(comes(near, far))
    assert votes == [
        BoundaryVote(worker=NAME, boundary=7, step=5, accepted=False, current_step=5),
        BoundaryVote(worker=NAME, boundary=7, step=6, accepted=True, current_step=5),
    ]


def test_state_leaves_before_training_hears_that_a_boundary_is_final(lab: Lab) -> None:
    confirm = ConfirmBoundary(epoch=1, boundary=7, step=6, purpose="cutover", generation=3, begin=4)
    note: Any = lab.directives.confirm
    lab.directives.confirm = lambda message: (lab.log.append("final"), note(message))  # type: ignore[assignment,method-assign,func-returns-value]
    lab.play(comes(confirm))
    assert lab.log == ["confirmed 6, from 4", "final"]
    assert lab.directives.at_boundary(6) == Due("cutover", 3, 6)


def test_a_withdrawn_boundary_holds_nobody(lab: Lab) -> None:
    propose = ProposeBoundary(epoch=1, boundary=7, step=6, purpose="checkpoint")
    lab.play(comes(propose, WithdrawBoundary(epoch=1, boundary=7)))
    assert isinstance(lab.directives.at_boundary(6), Train)


def test_a_commit_counts_once_and_only_where_its_world_is_known(lab: Lab) -> None:
    lab.worker.expected = {3}
    commit = Commit(epoch=1, generation=3, step=6)
    lab.play(comes(Commit(epoch=1, generation=2, step=5), commit, commit))
    assert lab.directives.idle() == Enter(3, 6)
    assert lab.channel.rejected == 2
    assert lab.beats()[-1].rejected == 2, "the coordinator is told"


@pytest.mark.parametrize("waits", [True, False])
def test_an_abort_ends_the_target_world_and_frees_who_waits_for_its_verdict(lab: Lab, waits: bool) -> None:
    lab.worker.waits_for_verdict = waits
    propose = ProposeBoundary(epoch=1, boundary=7, step=6, purpose="cutover", generation=3)
    abort = Abort(epoch=1, generation=3, reason="no")
    lab.play(comes(propose, abort))
    assert lab.log == ["give up 3"]
    assert isinstance(lab.directives.at_boundary(6), Train), "its boundary is off"
    lab.directives.leave("nobody has answered")
    assert lab.directives.verdict(3) == (abort if waits else Leave("nobody has answered"))


@pytest.mark.parametrize("order", [LeaveOrder(epoch=1, reason="done"), Refused(reason="done")])
def test_an_order_to_leave_ends_all_target_worlds(lab: Lab, order: Any) -> None:
    lab.play(comes(order))
    assert lab.log == ["give up -1"]
    assert lab.directives.at_boundary(0) == Leave("done")
    assert lab.directives.refused is isinstance(order, Refused)


# ---- heartbeats ----------------------------------------------------------------------------------------------------


def test_heartbeats_are_regular_and_the_thread_sleeps_between_them(lab: Lab) -> None:
    lab.play(*[silence] * 4)
    assert lab.channel.waits == [0.0, BEAT, BEAT, BEAT]
    assert lab.beats() == [lab.worker.heartbeat(0, -1)] * 4


def test_a_large_run_wants_fewer_of_them(lab: Lab) -> None:
    def wants_fewer(channel: Channel, _timeout: float) -> list[Any]:
        channel.every = 4 * BEAT
        return []

    lab.play(wants_fewer, *[silence] * 3)
    assert lab.channel.waits == [0.0, 4 * BEAT, 4 * BEAT, 4 * BEAT]


def test_messages_do_not_put_a_heartbeat_off(lab: Lab) -> None:
    def after(seconds: float) -> Entry:
        def entry(channel: Channel, _timeout: float) -> list[Any]:
            channel.clock.now += seconds
            return [WithdrawBoundary(epoch=1, boundary=7)]

        return entry

    lab.play(silence, after(0.75), after(0.25), after(0.5))
    assert lab.channel.waits == [0.0, BEAT, 0.25, BEAT]
    assert len(lab.beats()) == 2


def test_a_change_is_told_at_once(lab: Lab) -> None:
    lab.start(silence)
    before = len(lab.beats())
    lab.thread.beat()
    lab.thread.drain()
    assert len(lab.beats()) == before + 1
    lab.finish()


# ---- what training hands over --------------------------------------------------------------------------------------


def test_what_is_posted_goes_out_in_order_also_when_the_thread_ends(lab: Lab) -> None:
    lab.start(silence)
    for number in range(20):
        lab.thread.post(Finished(worker=NAME, step=number))
    lab.finish()
    assert [message.step for message in lab.channel.sent if isinstance(message, Finished)] == list(range(20))


def test_what_is_posted_while_the_thread_ends_goes_out_too(lab: Lab) -> None:
    beat, closing = lab.worker.heartbeat, threading.Thread(target=lab.thread.close)

    def last_beat(rejected: int, voted: int) -> Heartbeat:
        """After this turn's work is done, and before the thread looks whether it is to end."""
        lab.thread.post(Finished(worker=NAME, step=1))
        closing.start()
        assert lab.thread._closing.wait(PATIENCE)
        return beat(rejected, voted)

    lab.worker.heartbeat = last_beat  # type: ignore[method-assign]
    lab.channel = Channel(lab.clock, [silence])
    lab.run_on(lab.channel)
    lab.thread.join(PATIENCE)
    assert lab.channel.sent == [beat(0, -1), Finished(worker=NAME, step=1)]


def test_draining_waits_for_what_was_posted(lab: Lab) -> None:
    lab.start(silence)
    lab.thread.post(Finished(worker=NAME, step=1))
    lab.thread.drain()
    assert Finished(worker=NAME, step=1) in lab.channel.sent
    lab.finish()


def test_a_worker_without_its_control_thread_ends(lab: Lab) -> None:
    def breaks(_channel: Channel, _timeout: float) -> list[Any]:
        lab.channel.over.set()
        raise OSError("no such run")

    lab.start(silence, breaks)
    lab.thread.join(PATIENCE)
    assert lab.directives.at_boundary(0) == Leave("control thread failed: no such run")
    assert lab.channel.closed
    with pytest.raises(RuntimeError, match="has died"):
        lab.thread.drain()


# ---- a coordinator that is away ------------------------------------------------------------------------------------


def test_a_coordinator_that_stays_away_is_said_once(lab: Lab) -> None:
    minute = [silence] * 61
    lab.start(*minute)
    assert lab.channel.seconds_since_contact == ORPHAN
    assert lab.log == [], "not before it is longer"
    lab.finish()


def test_an_orphan_is_told_once(lab: Lab) -> None:
    lab.play(*[silence] * 70)
    assert lab.log == ["orphaned"]


def test_a_word_in_between_starts_the_count_again(lab: Lab) -> None:
    def heard(channel: Channel, _timeout: float) -> list[Any]:
        channel.seconds_since_contact = 0.0
        return [WithdrawBoundary(epoch=1, boundary=7)]

    lab.play(*[silence] * 50, heard, *[silence] * 50)
    assert lab.log == []


def test_the_coordinator_is_not_blamed_for_the_time_that_the_worker_was_stopped(lab: Lab) -> None:
    def stopped(channel: Channel, _timeout: float) -> list[Any]:
        channel.clock.now += 3600.0
        channel.seconds_since_contact += 3600.0
        return []

    lab.play(silence, stopped, silence)
    assert lab.log == []
    assert lab.channel.excused == 1


# ---- signals -------------------------------------------------------------------------------------------------------


def test_a_signal_in_a_world_is_a_notice_and_the_coordinator_decides(lab: Lab) -> None:
    sent = lab.play(lab.signal(signal.SIGTERM))
    assert sent == [Notice(worker=NAME, reason="SIGTERM", time=6000.0)]
    assert lab.log == ["noticed"]
    assert isinstance(lab.directives.at_boundary(0), Train)


def test_a_signal_in_no_world_is_a_good_bye(lab: Lab) -> None:
    lab.worker.in_world = False
    sent = lab.play(lab.signal(signal.SIGUSR2))
    assert sent == [Notice(worker=NAME, reason="SIGUSR2", time=6000.0), Leaving(worker=NAME, reason="SIGUSR2")]
    assert lab.directives.idle() == Leave("SIGUSR2")


def test_a_suspension_is_announced_with_its_deadline_and_taken_back(lab: Lab) -> None:
    sent = lab.play(lab.signal(signal.SIGTSTP), silence, lab.signal(signal.SIGCONT), lab.signal(signal.SIGCONT))
    assert sent == [
        Notice(worker=NAME, reason="SIGTSTP", time=6000.0, deadline=6002.0, suspended=True),
        Notice(worker=NAME, reason="SIGCONT", time=6001.0, withdrawn=True),
    ]
    assert lab.log == []


# ---- a real channel ------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[RunDir, ControlServer]]:
    run_dir = create_run(job(run_root=str(tmp_path)))
    made = ControlServer(run_dir, 2, "127.0.0.1", bind="127.0.0.1")
    made.publish()
    yield run_dir, made
    made.close()


def test_a_message_of_another_epoch_changes_nothing_and_is_counted(server: tuple[RunDir, ControlServer]) -> None:
    run_dir, coordinator = server
    log: list[str] = []
    worker: Any = Worker(log)
    directives = Directives()
    signals, _ = os.pipe()
    os.set_blocking(signals, False)
    thread = ControlThread(run_dir, worker, directives, signals, 0.05, ORPHAN)
    thread.start()
    heard: list[tuple[bytes, Any]] = []

    def hear(kind: type[Any], wanted: Callable[[Any], bool] = lambda _message: True) -> tuple[bytes, Any]:
        def there() -> list[tuple[bytes, Any]]:
            heard.extend(coordinator.receive(0.05))
            return [(peer, one) for peer, one in heard if isinstance(one, kind) and wanted(one)]

        return until(there, kind.__name__)[-1]

    peer, registration = hear(Register)
    assert registration == worker.registration()
    coordinator.send(peer, Welcome(run_id="r", epoch=2))
    hear(Heartbeat)
    for order in (
        LeaveOrder(epoch=1, reason="of a coordinator that is dead"),
        Abort(epoch=1, generation=3, reason="of a coordinator that is dead"),
        Abort(epoch=2, generation=4, reason="of this one"),
    ):
        coordinator.send(peer, order)
    hear(Heartbeat, lambda beat: beat.rejected == 2)
    until(lambda: "give up 4" in log, "the order of this coordinator is carried out")
    assert log == ["give up 4"]
    assert isinstance(directives.at_boundary(0), Train)
    thread.close()
    assert thread.failure is None


@pytest.mark.parametrize(
    ("computing", "since_step", "step_seconds", "leaving_for", "stuck"),
    [
        (True, 60.0, 0.3, 11.0, True),
        (True, 60.0, 0.3, 9.0, False),
        (True, 60.0, 1.0, 19.0, False),
        (True, 60.0, 0.0, 60.0, False),
        (True, 9.0, 0.3, 60.0, False),
        (False, 60.0, 0.3, 60.0, False),
        (True, 60.0, 0.3, -math.inf, False),
    ],
)
def test_who_cannot_leave_a_step_is_stuck(
    computing: bool, since_step: float, step_seconds: float, leaving_for: float, stuck: bool
) -> None:
    beat = Heartbeat(
        worker="live-0",
        generation=0,
        step=5,
        step_seconds=step_seconds,
        warm=True,
        since_step=since_step,
        computing=computing,
    )
    assert is_stuck(beat, leaving_for) == stuck
