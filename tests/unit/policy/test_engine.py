"""Which workers and which layout next: tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from coordinator_lab import job

from liver_slurm.base.errors import BadInput
from liver_slurm.config.schema import JobConfig
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy.api import Change, Fulfilled, Snapshot, Stay, Wait
from liver_slurm.policy.engine import decide, named, why_impossible
from liver_slurm.policy.types import Backoff, ResizeGoal

TP1DP2, TP2DP2, DP4 = Layout(1, 1, 2), Layout(2, 1, 2), Layout(1, 1, 4)


def allowed(*layouts: str, **elastic: Any) -> JobConfig:
    config = job()
    return replace(config, elastic=replace(config.elastic, layouts=layouts, settle=1.0, **elastic))


def look(ready: str = "", leaving: str = "", members: str = "l0 l1", layout: Layout = TP1DP2, **more: Any) -> Snapshot:
    """Workers named l… are guaranteed, s… are standbys."""
    names = [*members.split(), *ready.split()]
    fields: dict[str, Any] = {
        "now": 100.0,
        "live": World(3, layout, tuple(members.split()), 10),
        "leaving": frozenset(leaving.split()),
        "ready": tuple(ready.split()),
        "guaranteed": frozenset(name for name in names if name.startswith("l")),
        "last_arrival": 90.0,
    }
    return Snapshot(**{**fields, **more})


def goal(layout: Layout | None = None, workers: int = 0) -> ResizeGoal:
    return ResizeGoal(1, layout, layout.size if layout else workers)


@pytest.mark.parametrize(
    ("layouts", "snapshot", "layout", "members", "cause"),
    [
        # grow
        (["tp1pp1dp2", "tp2pp1dp2"], look("s0 s1"), TP2DP2, "l0 l1 s0 s1", "capacity"),
        (["tp1pp1dp2", "tp1pp1dp3"], look("s0 s1"), Layout(1, 1, 3), "l0 l1 s0", "capacity"),
        (["tp1pp1dp2", "tp1pp1dp3"], look("s0 l2"), Layout(1, 1, 3), "l0 l1 l2", "capacity"),
        # shrink
        (["tp1pp1dp2", "tp1pp1dp4"], look("", "s0 s1", "l0 s0 s1 l1", DP4), TP1DP2, "l0 l1", "notice"),
        (["tp1pp1dp2", "tp1pp1dp4"], look("", "s0", "s0 s1 l0 l1", DP4), TP1DP2, "l0 l1", "notice"),
        (["tp1pp1dp1", "tp1pp1dp2", "tp1pp1dp4"], look("", "l0", "l0 s0 s1 s2", DP4), TP1DP2, "s0 s1", "notice"),
        # a standby takes the place of one that leaves
        (["tp1pp1dp2", "tp1pp1dp4"], look("s9", "s0", "l0 s0 s1 l1", DP4), DP4, "l0 s1 l1 s9", "notice"),
        # not even settling holds a notice up
        (["tp1pp1dp2", "tp1pp1dp1"], look("", "l1", last_arrival=99.9), Layout(1, 1, 1), "l0", "notice"),
        # requests
        (["tp1pp1dp2"], look("s0 s1", due=goal(TP2DP2)), TP2DP2, "l0 l1 s0 s1", "request"),
        (["tp1pp1dp2"], look(due=goal(Layout(2, 1, 1))), Layout(2, 1, 1), "l0 l1", "request"),
        (["tp1pp1dp1", "tp1pp1dp2"], look(due=goal(workers=1)), Layout(1, 1, 1), "l0", "request"),
        (["tp1pp1dp2"], look("s0 s1", due=goal(TP2DP2), automatic=False), TP2DP2, "l0 l1 s0 s1", "request"),
        # what was lost and has come back is taken again, also where a run grows on request alone
        (["tp1pp1dp2"], look("l1 s0", members="l0", layout=Layout(1, 1, 1), automatic=False, first=TP1DP2), TP1DP2,
         "l0 l1", "capacity"),
        # a pinned size is regained, and no more than that
        (["tp1pp1dp2", "tp1pp1dp3", "tp1pp1dp4"], look("s0 s1", pinned=goal(workers=3)), Layout(1, 1, 3), "l0 l1 s0",
         "capacity"),
    ],
)  # fmt: skip
def test_changes(layouts: list[str], snapshot: Snapshot, layout: Layout, members: str, cause: str) -> None:
    decision, reason = decide(snapshot, allowed(*layouts))
    assert decision == Change(layout, tuple(members.split()), cause), reason
    assert reason


@pytest.mark.parametrize(
    ("layouts", "snapshot", "word"),
    [
        (["tp1pp1dp2", "tp1pp1dp4"], look("s0"), "only allowed layout"),
        (["tp1pp1dp2", "tp1pp1dp4"], look("s0 s1", automatic=False), "only on request"),
        (["tp1pp1dp2", "tp1pp1dp4"], look("s0 s1", automatic=False, first=TP1DP2), "only on request"),
        (
            ["tp1pp1dp2"],
            look("", members="l0", layout=Layout(1, 1, 1), automatic=False, first=TP1DP2),
            "only on request",
        ),
        (["tp1pp1dp2", "tp1pp1dp4"], look("s0 s1", pinned=goal(workers=2)), "only allowed layout"),
        (["tp1pp1dp2"], look("", "l1"), "no allowed layout for the 1 workers"),
        (["tp1pp1dp2"], look("s0", due=goal(TP2DP2)), "3 of 4 are ready"),
        (["tp1pp1dp4", "tp1pp1dp5"], look("s0", "", "l0 l1 l2 l3", DP4), "tp1pp1dp4"),
    ],
)
def test_stays(layouts: list[str], snapshot: Snapshot, word: str) -> None:
    decision, reason = decide(snapshot, allowed(*layouts))
    assert decision == Stay()
    assert word in reason


def test_a_request_for_what_is_there() -> None:
    assert decide(look(due=goal(TP1DP2)), allowed("tp1pp1dp2"))[0] == Fulfilled()


def test_new_standbys_settle() -> None:
    config = allowed("tp1pp1dp2", "tp1pp1dp3")
    assert decide(look("s0", last_arrival=99.5), config)[0] == Wait(100.5)


def test_what_has_just_failed_waits() -> None:
    config = allowed("tp1pp1dp2", "tp1pp1dp3")
    failed = Backoff(Layout(1, 1, 3), ("l0", "l1", "s0"), until=104.0, failures=3)
    decision, reason = decide(look("s0", backoff=failed), config)
    assert decision == Wait(104.0)
    assert "failed 3 times, tried again in 4.0 s" in reason
    assert isinstance(decide(look("s1", backoff=failed), config)[0], Change)
    assert isinstance(decide(look("s0", backoff=failed, now=104.0), config)[0], Change)


def test_reasons_for_refusals() -> None:
    with pytest.raises(BadInput, match=r"no policy 'lazy'; known: advisor, cost-aware, explore, greedy, hysteresis"):
        named("lazy")
    config = allowed("tp1pp1dp2", max_workers=4)
    assert why_impossible(Layout(1, 1, 5), config) == "tp1pp1dp5 has 5 workers, more than elastic.max_workers 4"
    assert "does not divide" in str(why_impossible(Layout(3, 1, 1), config))
    assert why_impossible(TP2DP2, config) is None
