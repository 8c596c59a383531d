"""Files of lines: whole lines whoever writes, nothing torn whoever reads."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liver_slurm.base.jsonl import LineReader, read_lines, read_tail
from liver_slurm.rundir.event_log import EventLog, follow_documents, read_documents, read_events
from liver_slurm.rundir.events import LaunchRefused, Notice, StandbyRelease, WorldFailed, WorldLive
from liver_slurm.rundir.metrics import MetricsWriter, StepMetrics, last_metrics, read_metrics, truncate_metrics


def step(number: int, loss: float = 1.0) -> StepMetrics:
    return StepMetrics(
        step=number, loss=loss, grad_norm=0.5, lr=1e-3, tokens=64, consumed_samples=16 * number,
        generation=0, layout="tp1pp1dp1", start=1.0, end=2.0,
    )  # fmt: skip


def test_events_have_a_time_and_come_in_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append(WorldLive(generation=0, layout="tp1pp1dp1"))
    log.append(Notice(generation=0, worker="live-1"))
    first, second = read_events(tmp_path / "events.jsonl")
    assert isinstance(first, WorldLive)
    assert isinstance(second, Notice)
    assert (first.layout, second.worker) == ("tp1pp1dp1", "live-1")
    assert 0 < first.time <= second.time


def test_a_torn_last_line_is_neither_read_nor_glued_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).append(LaunchRefused(reason="one"))
    with path.open("ab") as stream:
        stream.write(b'{"time": 1, "event": "tor')
    assert [event["reason"] for event in read_documents(path)] == ["one"]
    EventLog(path).append(WorldFailed(reason="two"))
    assert [event["reason"] for event in read_documents(path)] == ["one", "two"]


def test_writers_beside_each_other_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    event = StandbyRelease(job_id="7", reason="y" * 500)
    threads = [threading.Thread(target=lambda: [EventLog(path).append(event) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one["reason"] for one in read_documents(path)] == ["y" * 500] * 200


def test_threads_may_share_an_event_log(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)

    def write(first: int) -> None:
        for number in range(first, first + 300):
            log.append(StandbyRelease(job_id=str(number), reason=""))

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 300, 600)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sorted(int(one["job_id"]) for one in read_documents(path)) == list(range(900))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 40), max_size=30), st.integers(0, 12))
def test_a_growing_file_is_read_once_whatever_the_cuts(tmp_path: Path, cuts: list[int], count: int) -> None:
    path = tmp_path / "growing.jsonl"
    path.unlink(missing_ok=True)
    reader = LineReader(path)
    content = b"".join(b'{"n": %d, "text": "\xc3\xa9"}\n' % number for number in range(count))
    seen = reader.read()
    with path.open("ab", buffering=0) as stream:
        for cut in [*cuts, len(content)]:
            stream.write(content[:cut])
            content = content[cut:]
            seen += reader.read()
    assert [document["n"] for document in seen] == list(range(count))


def test_a_reader_takes_the_tail_and_reads_a_file_that_took_its_place(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(b'{"n": %d}\n' % number for number in range(100)))
    reader = LineReader(path, tail=20)
    assert [document["n"] for document in reader.read()] == [98, 99]
    assert reader.read() == []
    (tmp_path / "other").write_bytes(b'{"n": 7}\n{"n": 8}\n')
    (tmp_path / "other").replace(path)
    assert [document["n"] for document in reader.read()] == [7, 8]
    path.write_bytes(b'{"n": 9}\n')
    assert [document["n"] for document in reader.read()] == [9]


def test_following_ends_after_the_last_word(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    seen: list[str] = []
    done = threading.Event()

    def follow() -> None:
        seen.extend(event["reason"] for event in follow_documents(path, stop=done.is_set, poll=0.01))

    follower = threading.Thread(target=follow)
    follower.start()
    log = EventLog(path)
    log.append(LaunchRefused(reason="one"))
    log.append(WorldFailed(reason="two"))
    done.set()
    follower.join(timeout=10)
    assert seen == ["one", "two"]


def test_events_wait_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append(LaunchRefused(reason="one"))
    real = os.write
    monkeypatch.setattr(
        "liver_slurm.base.jsonl.os.write", lambda file, content: real(file, content[: len(content) // 2])
    )
    log.append(LaunchRefused(reason="two"))
    log.append(WorldFailed(reason="three"))
    assert (log.waiting, log.trouble) == (2, "No space left on device")
    monkeypatch.undo()
    log.flush()
    assert (log.waiting, log.trouble) == (0, "")
    assert [event["reason"] for event in read_documents(tmp_path / "events.jsonl")] == ["one", "two", "three"]


def test_tail_and_missing_files(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "none")) == []
    assert read_tail(tmp_path / "none") == []
    assert last_metrics(tmp_path / "none") is None
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    for number in range(1, 1001):
        writer.append(step(number))
    last = last_metrics(tmp_path / "metrics.jsonl")
    assert last is not None
    assert last.step == 1000


def test_a_loss_that_is_not_finite_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    writer.append(step(1))
    writer.append(msgspec.structs.replace(step(2, loss=math.nan), grad_norm=math.inf))
    assert [line.loss for line in read_metrics(path)] == [1.0, pytest.approx(math.nan, nan_ok=True)]
    last = last_metrics(path)
    assert last is not None
    assert (last.step, math.isnan(last.loss), math.isnan(last.grad_norm)) == (2, True, True)


def test_truncating_keeps_a_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    for number in range(1, 11):
        writer.append(step(number))
    truncate_metrics(path, 7)
    writer.append(step(8, loss=9.0))  # by a process that does not know: it goes nowhere
    writer.reopen()
    writer.append(step(8, loss=2.0))
    assert [(one.step, one.loss) for one in read_metrics(path)] == [*((n, 1.0) for n in range(1, 8)), (8, 2.0)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    truncate_metrics(path, 0)
    assert list(read_metrics(path)) == []
