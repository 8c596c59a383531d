"""The Python API against a coordinator that answers: the real channel, with a scripted end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import liver_slurm
from liver_slurm.base.errors import BadInput, ControlError
from liver_slurm.protocol.messages import CancelRequest, CheckpointRequest, Message, Reply, ResizeRequest, StatusRequest
from liver_slurm.protocol.server import ControlServer
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import RunEnded
from liver_slurm.rundir.paths import RunDir


@contextmanager
def coordinator(run_dir: RunDir, answer: Callable[[Message], Reply]) -> Iterator[list[Message]]:
    """Answers clients in a thread; yields what was asked."""
    asked: list[Message] = []
    stop, up = threading.Event(), threading.Event()

    def serve() -> None:
        server = ControlServer(run_dir, epoch=1, host="127.0.0.1", bind="127.0.0.1")
        server.publish()
        up.set()
        while not stop.is_set():
            for peer, message in server.receive(0.05):
                asked.append(message)
                server.send(peer, answer(message))
        server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert up.wait(10)
        yield asked
    finally:
        stop.set()
        thread.join(timeout=10)


def test_the_verbs_reach_the_coordinator(run_dir: RunDir) -> None:
    def answer(message: Message) -> Reply:
        if isinstance(message, StatusRequest):
            return Reply(ok=True, result={"state": "training", "step": 99, "layout": "tp2pp1dp2"})
        if isinstance(message, ResizeRequest) and message.workers > 4:
            return Reply(ok=False, error="there are 3 workers")
        return Reply(ok=True, result={"request": 0})

    job = liver_slurm.find(run_dir.path)
    with coordinator(run_dir, answer) as asked:
        status = job.status()
        assert (status["state"], status["step"], status["source"]) == ("training", 99, "coordinator")
        assert (status["name"], status["loss"]) == ("gpt-tiny", 5.38)
        assert job.resize(layout=" tp2pp1dp2 ") == {"request": 0}
        with pytest.raises(BadInput, match="there are 3 workers"):
            job.resize(workers=5)
        job.resize(workers=2, give_back=True)
        job.checkpoint()
        assert job.cancel() == "its coordinator ends it"
    assert asked == [
        StatusRequest(),
        ResizeRequest(layout="tp2pp1dp2"),
        ResizeRequest(workers=5),
        ResizeRequest(workers=2, give_back=True),
        CheckpointRequest(),
        CancelRequest(),
    ]


def test_requests_that_make_no_sense_are_not_sent(run_dir: RunDir) -> None:
    job = liver_slurm.find("gpt-tiny")
    for arguments in ({}, {"layout": "tp1pp1dp1", "workers": 1}, {"workers": 0}, {"layout": "large"}):
        with pytest.raises(BadInput, match="resize"):
            job.resize(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ControlError, match="has not started"):
        job.checkpoint()


def test_waiting_for_the_end(run_dir: RunDir) -> None:
    def end() -> None:
        EventLog(run_dir.events).append(RunEnded(generation=1, outcome="finished", reason="", step=200))

    threading.Timer(0.2, end).start()
    status = liver_slurm.find("gpt-tiny").wait(timeout=20, poll=0.05)
    assert (status["state"], status["step"]) == ("finished", 200)
    assert [one.step for one in liver_slurm.find("gpt-tiny").metrics()] == list(range(1, 13))


def test_submitting_from_python(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from liver_slurm.config.load import load_job
    from liver_slurm.scheduler.slurm import submit
    from liver_slurm.scheduler.slurm.client import CommandClient

    tiny = Path(__file__).parents[3] / "configs" / "gpt-tiny.toml"
    monkeypatch.setattr(submit, "check_submittable", lambda config, client: [])
    monkeypatch.setattr(CommandClient, "config", lambda self: {})
    monkeypatch.setattr(CommandClient, "submit", lambda self, script, arguments=(): "78")
    job = liver_slurm.submit(tiny, train={"steps": 7})
    assert job.job_id == "78"
    assert json.loads(job.run_dir.job_file.read_text())["train"]["steps"] == 7
    job = liver_slurm.submit(load_job(tiny), job={"name": "mine"})
    assert job.run_dir.path.name.startswith("mine-")
    with pytest.raises(BadInput, match=r"overrides: train.lr: -1 is not allowed"):
        liver_slurm.submit(tiny, train={"lr": -1})
    with pytest.raises(AttributeError, match="nothing"):
        liver_slurm.nothing  # noqa: B018
