"""The coordinator's process while its files cannot be written."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from coordinator_states import Run

from liver_slurm.base.clock import SystemClock
from liver_slurm.coordinator.core.io import Journal, RollBackMetrics
from liver_slurm.coordinator.core.records import EpochStarted
from liver_slurm.coordinator.runtime.loop import Loop
from liver_slurm.coordinator.runtime.restart import CheckpointCalls
from liver_slurm.protocol import messages as m
from liver_slurm.reshard.mirrors import Difference
from liver_slurm.rundir.event_log import EventLog, read_documents
from liver_slurm.rundir.metrics import MetricsWriter, StepMetrics, read_metrics
from liver_slurm.rundir.paths import RunDir


class Server:
    """Peers' messages, one list a look, and what is sent to them."""

    def __init__(self) -> None:
        self.incoming: list[list[tuple[bytes, Any]]] = []
        self.sent: list[tuple[bytes, Any]] = []
        self.rejected = {"strangers": 0}

    def receive(self, _timeout: float) -> list[tuple[bytes, Any]]:
        return self.incoming.pop(0) if self.incoming else []

    def hung_up(self, _alive: m.Alive) -> list[tuple[bytes, float]]:
        return []

    def send(self, peer: bytes, message: Any) -> None:
        self.sent.append((peer, message))


class Disk:
    """A journal that cannot be written so many times."""

    def __init__(self, failures: int) -> None:
        self.failures, self.records = failures, []

    def append(self, record: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise sqlite3.OperationalError("database or disk is full")
        self.records.append(record)


class Lab:
    def __init__(self, folder: Path, run: Run, failures: int = 0) -> None:
        self.server, self.disk, self.events = Server(), Disk(failures), folder / "events.jsonl"
        lease: Any = SimpleNamespace(journal=self.disk, fence=SimpleNamespace(check=lambda: None))
        store: Any = SimpleNamespace(strangers=0, malformed=0, check=lambda: None)
        server: Any = self.server
        calls: Any = SimpleNamespace(poll=lambda _now: [])
        clock = SystemClock()
        checkpoints = CheckpointCalls(RunDir(folder), clock)
        self.loop = Loop(run.state, server, store, lease, EventLog(self.events), calls, checkpoints, clock)

    def said(self, name: str) -> list[dict[str, Any]]:
        return [event for event in read_documents(self.events) if event["event"] == name]


def beat(worker: str, step: int, error: str = "") -> m.Heartbeat:
    return m.Heartbeat(
        worker=worker,
        generation=0,
        step=step,
        step_seconds=0.1,
        warm=True,
        files_waiting=int(bool(error)),
        files_error=error,
    )


def test_while_the_journal_cannot_be_written_workers_are_answered_and_nothing_is_lost(tmp_path: Path, run: Run) -> None:
    lab = Lab(tmp_path, run, failures=3)
    lab.server.incoming = [
        [(b"a", beat("live-0", 4)), (b"c", m.StatusRequest())],
        [(b"a", beat("live-0", 5)), (b"b", m.Leaving(worker="standby-a", reason="SIGTERM"))],
    ]
    record = EpochStarted(epoch=9)
    lab.loop.perform(Journal(record))
    assert lab.disk.records == [record]
    alive = [peer for peer, message in lab.server.sent if isinstance(message, m.Alive)]
    assert alive == [b"a", b"a"]
    (reply,) = [message for _, message in lab.server.sent if isinstance(message, m.Reply)]
    assert reply.result["files"] == {"coordinator": "database or disk is full"}
    kept = [(peer, type(message), getattr(message, "step", None)) for peer, message in lab.loop._postponed]
    assert kept == [(b"a", m.Heartbeat, 5), (b"b", m.Leaving, None)], "of heartbeats the last; all else in order"


def step(number: int) -> StepMetrics:
    return StepMetrics(
        step=number, loss=1.0, grad_norm=1.0, lr=0.1, tokens=1, consumed_samples=number, generation=0, layout="x",
        start=0.0, end=1.0,
    )  # fmt: skip


def written(folder: Path, count: int) -> RunDir:
    """A run directory with metrics of so many steps."""
    run_dir = RunDir(folder)
    writer = MetricsWriter(run_dir.metrics)
    for number in range(1, count + 1):
        writer.append(step(number))
    writer.close()
    return run_dir


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.ESTALE])
def test_metrics_that_cannot_be_rolled_back_are_tried_again(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    run_dir, lab = written(tmp_path, 5), Lab(tmp_path, run)
    lab.server.incoming = [[(b"a", beat("live-0", 5)), (b"c", m.StatusRequest())], []]
    failures = [OSError(error, os.strerror(error))] * 2

    def replace(path: Path, fresh: Path) -> None:
        if failures:
            raise failures.pop()
        os.rename(path, fresh)

    monkeypatch.setattr("liver_slurm.base.files.os.replace", replace)
    lab.loop.perform(RollBackMetrics(3))
    assert [line.step for line in read_metrics(run_dir.metrics)] == [1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"], "no half of another file is left"
    assert [peer for peer, message in lab.server.sent if isinstance(message, m.Alive)] == [b"a"]
    (reply,) = [message for _, message in lab.server.sent if isinstance(message, m.Reply)]
    assert reply.result["files"] == {"coordinator": os.strerror(error)}
    lab.loop._look_at_files()
    assert lab.loop._files == {}, "it is over"


def test_a_run_directory_that_is_away_is_no_run_without_metrics(tmp_path: Path, run: Run) -> None:
    here, away = tmp_path / "run", tmp_path / "away"
    here.mkdir()
    written(here, 5)
    lab = Lab(here, run)
    here.rename(away)
    looks = iter([lambda: None, lambda: away.rename(here)])
    receive = lab.server.receive

    def receive_and_come_back(timeout: float) -> list[tuple[bytes, Any]]:
        next(looks)()
        return receive(timeout)

    lab.server.receive = receive_and_come_back  # type: ignore[method-assign]
    lab.loop.perform(RollBackMetrics(2))
    assert [line.step for line in read_metrics(RunDir(here).metrics)] == [1, 2]


def test_a_run_without_metrics_has_none_to_roll_back(tmp_path: Path, run: Run) -> None:
    Lab(tmp_path, run).loop.perform(RollBackMetrics(2))
    assert not RunDir(tmp_path).metrics.exists()


def test_what_a_worker_cannot_write_is_said_once_and_taken_back(tmp_path: Path, run: Run) -> None:
    lab = Lab(tmp_path, run)
    for error in ("", "no space", "no space", ""):
        lab.loop._hear(b"a", beat("live-0", 4, error))
    assert [(one["worker"], one["error"]) for one in lab.said("files_behind")] == [
        ("live-0", "no space"),
        ("live-0", ""),
    ]
    lab.loop._hear(b"a", beat("live-0", 4, "no space"))
    lab.loop._hear(b"c", m.StatusRequest())
    (reply,) = [message for _, message in lab.server.sent if isinstance(message, m.Reply)]
    assert reply.result["files"] == {"live-0": "no space"}


class Over(Exception):
    """The test has seen enough."""


def test_messages_that_come_together_are_planned_for_once(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.begin_to_grow()
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    lab = Lab(tmp_path, run)

    def no_more(_alive: m.Alive) -> list[tuple[bytes, float]]:
        raise Over

    monkeypatch.setattr(lab.server, "hung_up", no_more)
    workers = run.state.membership.workers
    lab.server.incoming = [
        [
            (workers[name].peer, m.Notice(worker=name, reason="SIGTERM", time=run.now))
            for name in ("standby-a", "standby-b")
        ]
    ]
    with pytest.raises(Over):
        lab.loop.run()
    orders = [message for _, message in lab.server.sent if isinstance(message, m.Prepare)]
    assert {tuple(order.members) for order in orders} == {("live-0", "live-1")}
    assert len({order.generation for order in orders}) == 1
    assert not [message for _, message in lab.server.sent if isinstance(message, m.Abort)]


def test_events_that_wait_are_said_and_written(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    lab = Lab(folder, run)  # the folder is not there yet
    lab.loop.announce("h")
    lab.loop._look_at_files()
    assert lab.loop._files == {"coordinator": "No such file or directory"}
    folder.mkdir()
    monkeypatch.setattr(lab.loop, "_next_flush", 0.0)
    lab.loop._look_at_files()
    assert lab.loop._files == {}
    assert [one["error"] for one in lab.said("files_behind")] == ["No such file or directory", ""]
    assert lab.said("coordinator_started")


def test_strangers_are_said_once_a_minute(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path, run)
    lab.server.rejected["strangers"] = 3
    lab.loop._speak_of_strangers()
    assert not lab.said("strangers_refused"), "the first minute is not over"
    monkeypatch.setattr(lab.loop, "_next_word", 0.0)
    for _ in range(3):
        lab.loop._speak_of_strangers()
    assert [(one["control"], one["store"]) for one in lab.said("strangers_refused")] == [(3, 0)]


def test_a_mirror_that_differed_is_said_once_each_time(tmp_path: Path, run: Run) -> None:
    lab = Lab(tmp_path, run)

    def hear(worker: str, differed: int) -> None:
        last = Difference("live-9", 20 * differed, ("w0", "w1")) if differed else None
        news = msgspec.structs.replace(beat(worker, 4), mirror_proofs=(9, differed), mirror_differed=last)
        lab.loop._hear(worker.encode(), news)

    for worker, differed in [("live-0", 0), ("live-0", 1), ("live-0", 1), ("live-1", 1), ("live-0", 3), ("live-0", 0)]:
        hear(worker, differed)
    hear("live-0", 1)  # of a process that began anew
    said = lab.said("mirror_differed")
    assert [(one["worker"], one["step"], one["differed"]) for one in said] == [
        ("live-0", 20, 1),
        ("live-1", 20, 1),
        ("live-0", 60, 3),
        ("live-0", 20, 1),
    ]
    assert (said[0]["owner"], said[0]["boxes"]) == ("live-9", ["w0", "w1"])


def test_steps_in_vain_are_said_once_and_after_each_tenfold(tmp_path: Path, run: Run) -> None:
    lab = Lab(tmp_path, run)
    for count in (1, 2, 9, 10, 30, 0, 1):
        for worker in ("live-0", "live-1"):
            lab.loop._hear(b"a", msgspec.structs.replace(beat(worker, 4), in_vain=count))
    assert [one["in_a_row"] for one in lab.said("steps_in_vain")] == [1, 10, 1]
