"""A run that is watched while its coordinator answers, goes away and comes back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from coordinator_lab import until

from liver_slurm.app import processes
from liver_slurm.app.watch import Watch
from liver_slurm.base.errors import ClusterError, ControlError
from liver_slurm.config.load import load_job
from liver_slurm.observability.status import RunStatus, WorkerStatus
from liver_slurm.observability.top_view import TopView
from liver_slurm.protocol.messages import Reply
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import RunEnded, WorldLive
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run

TINY = Path(__file__).parents[3] / "configs" / "gpt-tiny.toml"
ANSWER = RunStatus(
    state="training", step=7, steps=200, generation=0, layout="tp1pp1dp2", target=None, standbys=[], reason="",
    workers=[WorkerStatus(rank=rank, worker=f"live-{rank}", host=f"n{rank}", warm=True) for rank in range(2)],
    last_reconfiguration=None,
)  # fmt: skip


class Coordinator:
    """Stands for the coordinator, and for whoever is asked about its process."""

    def __init__(self) -> None:
        self.away: str | Exception = ""
        self.found: processes.Found | Exception = processes.Found(True, "")
        self.looks = 0

    def request(self, *_: Any) -> Reply:
        if isinstance(self.away, Exception):
            raise self.away
        if self.away:
            raise ControlError(self.away)
        return Reply(ok=True, result=ANSWER.document())

    def find(self, _: RunDir) -> processes.Found:
        self.looks += 1
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> Coordinator:
    made = Coordinator()
    monkeypatch.setattr("liver_slurm.protocol.client.request", made.request)
    monkeypatch.setattr("liver_slurm.app.processes.find", made.find)
    return made


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coordinator: Coordinator) -> Watch:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIVER_SITE", "")
    run_dir = create_run(load_job(TINY))
    write(run_dir, WorldLive(generation=0, layout="tp1pp1dp2", members=("live-0", "live-1"), step=5))
    return Watch(run_dir)


def write(run_dir: RunDir, event: Any) -> None:
    log = EventLog(run_dir.events)
    log.append(event)
    log.close()


def asked(watch: Watch) -> TopView:
    watch.ask()
    return watch.view()


def test_files_tell_before_anybody_answers(watch: Watch) -> None:
    view = watch.view()
    assert (view.status.layout, view.status.step, view.contact.answered) == ("tp1pp1dp2", 5, False)


def test_an_answer_tells_where_workers_are(watch: Watch) -> None:
    view = asked(watch)
    assert (view.contact.answered, view.contact.error) == (True, "")
    assert (view.status.step, view.status.name) == (7, "gpt-tiny")
    assert [row.host for row in view.nodes] == ["n0", "n1"]


def test_a_coordinator_that_goes_away_leaves_what_it_said_and_when(watch: Watch, coordinator: Coordinator) -> None:
    answered = asked(watch).contact.since
    coordinator.away = "no answer"
    view = asked(watch)
    assert (view.contact.since, view.contact.error) == (answered, "no answer")
    assert [row.host for row in view.nodes] == ["n0", "n1"]
    write(watch.run_dir, WorldLive(generation=1, layout="tp1pp1dp1", members=("live-1",), step=9))
    assert [(row.host, row.ranks) for row in asked(watch).nodes] == [("n1", (0,))]
    assert coordinator.looks == 1  # one is a question to slurmctld
    coordinator.away = ""
    assert asked(watch).contact.error == ""


def test_a_run_of_which_nothing_is_left_is_lost(watch: Watch, coordinator: Coordinator) -> None:
    coordinator.away, coordinator.found = "no answer", processes.Found(False, "job 7 ended NODE_FAIL")
    assert asked(watch).status.state == "training"  # something was written a moment ago: it may be started again
    os.utime(watch.run_dir.events, (1.0, 1.0))
    watch._next_look = 0.0
    view = asked(watch)
    assert view.status.state == "lost"
    assert view.status.reason == "it never said how it ended: job 7 ended NODE_FAIL"


def test_a_scheduler_that_cannot_be_asked_is_no_end(watch: Watch, coordinator: Coordinator) -> None:
    coordinator.away, coordinator.found = "no answer", ClusterError("squeue: no answer")
    view = asked(watch)
    assert (view.status.state, view.status.reason) == ("training", "squeue: no answer")


def test_the_end_is_in_the_files(watch: Watch) -> None:
    watch.ask()
    write(watch.run_dir, RunEnded(generation=0, outcome="finished", step=200))
    view = watch.view()
    assert (view.over, view.status.state, view.status.step) == (True, "finished", 200)


def test_it_asks_on_beside_those_who_look(watch: Watch) -> None:
    with watch:
        watch._thread.join(timeout=0.0)
        while not watch.view().contact.answered:
            watch._stop.wait(0.01)


def test_it_goes_on_asking_whatever_goes_wrong(watch: Watch, coordinator: Coordinator) -> None:
    coordinator.away = FileNotFoundError(2, "No such file or directory", "run.json")
    with watch:
        until(lambda: "FileNotFoundError: " in watch.view().contact.error, "what is wrong is said")
        coordinator.away = ""
        until(lambda: watch.view().contact.answered, "it is asked again")
        assert watch.view().contact.error == ""
