"""What the coordinator tells: decisions, once each, and its status."""

from __future__ import annotations

from typing import Any

import pytest
from coordinator_lab import job
from coordinator_states import Run

from liver_slurm.coordinator.core import status
from liver_slurm.observability.status import from_status
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy import api, engine
from liver_slurm.policy.types import ResizeGoal
from liver_slurm.rundir.events import PolicyDecided

SEEN = api.Snapshot(
    now=1000.0,
    live=World(2, Layout(1, 1, 3), ("live-0", "live-1", "standby-a"), 40),
    leaving=frozenset({"standby-a"}),
    ready=("standby-b",),
    guaranteed=frozenset({"live-0", "live-1"}),
    last_arrival=990.0,
    due=ResizeGoal(7, None, 3),
    automatic=False,
    step_seconds=0.5,
    steps_left=60,
)


def told(decision: api.Decision, reason: str = "as good as any") -> PolicyDecided:
    return status.decided(SEEN, decision, reason, job())


def test_a_decision_with_what_it_was_made_from() -> None:
    change = api.Change(Layout(1, 1, 3), ("live-0", "live-1", "standby-b"), "notice")
    assert told(change, "standby-a will go away") == PolicyDecided(
        policy="greedy", decision="change", to="tp1pp1dp3", chosen=3, until=None, reason="standby-a will go away",
        layout="tp1pp1dp3", available=3, ready=1, leaving=1, step_seconds=0.5, steps_left=60, automatic=False,
        request=7,
    )  # fmt: skip
    waits = told(api.Wait(1060.0))
    assert (waits.decision, waits.until, waits.to, waits.chosen) == ("wait", 1060.0, None, 0)
    assert told(api.Fulfilled()).decision == "fulfilled"


def test_only_what_is_new_is_news() -> None:
    wait = told(api.Wait(1060.0), "3 workers; 59.5 s more pay for it")
    assert status.is_news(wait, None)
    assert not status.is_news(told(api.Wait(1061.0), "3 workers; 58 s more pay for it"), wait)
    assert status.is_news(told(api.Wait(1060.0), "another reason"), wait)
    assert status.is_news(told(api.Stay(), wait.reason), wait)
    change = told(api.Change(Layout(1, 1, 2), ("live-0", "live-1"), "notice"))
    assert status.is_news(change, change), "each begins a reconfiguration"


def test_a_policy_that_is_asked_often_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(workers=2)
    looks: list[float] = []

    def decide(seen: api.Snapshot, config: Any) -> tuple[api.Decision, str]:
        looks.append(seen.now)
        return api.Wait(seen.now + 0.1), f"looks again; {len(looks)} so far"

    monkeypatch.setattr(engine, "decide", decide)
    run.train("live-0", "live-1")
    for _ in range(20):
        run.tick(0.2)
    assert len(looks) > 15
    (event,) = run.events("policy_decided")
    assert (event["decision"], event["layout"], event["available"]) == ("wait", str(run.live.layout), 2)
    run.register("standby-a")
    run.tick(0.2)
    assert [one["available"] for one in run.events("policy_decided")] == [2, 3], "it was asked about another worker"


def test_the_status_document_reads_back() -> None:
    run = Run(workers=2)
    run.train("live-0", "live-1")
    run.register("standby-a")
    document = status.document(run.state)
    found = from_status(document)
    assert found.document() == document
    assert [worker.rank for worker in found.workers] == [0, 1]
    assert [(worker.worker, worker.warm) for worker in found.standbys] == [("standby-a", True)]
