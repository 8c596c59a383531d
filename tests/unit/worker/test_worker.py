"""What a worker says when something fails, whatever it is: nobody else can know."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from worker_lab import job

from liver_slurm.base.errors import RunIsOver, TransferError
from liver_slurm.protocol.messages import Abort, Failed, Prepare, Prepared, Streamed
from liver_slurm.rundir.paths import RunDir
from liver_slurm.worker import worker as worker_module
from liver_slurm.worker.worker import Identity, Worker

ORDER = Prepare(
    epoch=1, generation=3, layout="tp1pp1dp1", members=["live-0"], source_generation=-1, store_host="", store_port=0
)


class Said(list[Any]):
    """A control thread that keeps what is said."""

    def start(self) -> None:
        """Begin nothing."""

    close = beat = start
    post = list.append


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    read, write = os.pipe()
    identity = Identity("run", "live-0", "live", "here", "7", 0, torch.device("cpu"))
    made = Worker(identity, job(tmp_path), SimpleNamespace(), RunDir(tmp_path), read)  # type: ignore[arg-type]
    made._control = Said()  # type: ignore[assignment]
    yield made
    os.close(read)
    os.close(write)


def said(worker: Worker) -> list[Any]:
    return worker._control  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (SystemExit(2), "SystemExit: 2"),
        (MemoryError(), "MemoryError"),
        (RunIsOver("train.loop called sys.exit(2)"), "train.loop called sys.exit(2)"),
        (ValueError("one\ntwo"), "ValueError: one"),
    ],
)
def test_what_cannot_be_prepared_is_said(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, error: BaseException, why: str
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker_module, "prepare", fails)
    worker._prepare(target_of(worker), ORDER)
    (answer,) = said(worker)
    assert isinstance(answer, Prepared)
    assert (answer.generation, answer.ok, answer.error) == (3, False, why)


def target_of(worker: Worker) -> Any:
    """What the control thread has made for the order, before its thread begins."""
    target = worker_module.TargetWorld(worker_module.Membership(3, worker_module.Layout(1, 1, 1), ("live-0",)))
    worker._targets[3] = target
    return target


def test_it_is_said_also_where_what_is_built_cannot_be_discarded(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("so")

    def stays() -> None:
        raise RuntimeError("not discarded")

    target = target_of(worker)
    monkeypatch.setattr(worker_module, "prepare", fails)
    monkeypatch.setattr(target, "discard", stays)
    with pytest.raises(RuntimeError, match="not discarded"):
        worker._prepare(target, ORDER)
    (answer,) = said(worker)
    assert (answer.ok, answer.error) == (False, "ValueError: so")


def test_what_is_given_up_is_not_spoken_of(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "prepare", lambda *_: worker.give_up(3))
    worker._prepare(target_of(worker), ORDER)
    assert said(worker) == []


def test_who_cannot_go_back_says_no_and_lives_on(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may keep the only mirror of another one: the next attempt is made of what is left."""
    # LS-7, LS-34
    log = list[str]()

    class Coordinator(Said):
        def post(self, message: Any) -> None:
            self.append(message)
            worker._directives.abort(Abort(epoch=1, generation=3, reason="it said no"), waited_for=True)

        def drain(self) -> None:
            """All is said."""

    def fails(*_: object) -> None:
        raise TransferError("what is put by here of step 8 is not what was alive then: w0")

    coordinator: Any = Coordinator()
    worker._cutover._participant.control = coordinator
    target = target_of(worker)
    target.recovers = target.back = True
    target.transfer = SimpleNamespace(abort=lambda: log.append("abort"), close=lambda: log.append("close"))
    assert target.prepared()
    monkeypatch.setattr(worker._survivor, "catch_up", fails)
    assert worker._cut_over(3, 8), "it stays"
    (vote,) = coordinator
    assert isinstance(vote, Streamed)
    assert (vote.ok, vote.error) == (False, "what is put by here of step 8 is not what was alive then: w0")
    assert log == ["abort", "close"]
    assert worker._targets == {}


@pytest.mark.parametrize("code", [0, 2])
def test_sys_exit_in_the_training_thread_is_a_failure(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def leaves(*_: object) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(worker_module, "warm_up", leaves)
    with pytest.raises(SystemExit):
        worker.run()
    (last_word,) = said(worker)
    assert isinstance(last_word, Failed)
    assert (last_word.error, last_word.for_good) == (f"SystemExit: {code}", False)
