"""The policies in plugins/, and those of others: what they decide, and what no policy can do."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from coordinator_lab import job
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.advisor.model import Column, Model, Plane, write_model
from liver_slurm.base.errors import BadInput
from liver_slurm.config.layouts import feasible_layouts
from liver_slurm.config.schema import JobConfig
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.plugins.policies import cost_aware, explore
from liver_slurm.policy import balance, engine
from liver_slurm.policy.api import Change, Leave, Snapshot, Stay, Wait
from liver_slurm.policy.engine import decide, named
from liver_slurm.policy.features import VERSION
from liver_slurm.policy.survival import Life
from liver_slurm.policy.types import Measured, ResizeGoal

NAMES = ("greedy", "hysteresis", "cost-aware")
HOLD = 60.0
NOW = 10_000.0


def config(name: str, **standby: Any) -> JobConfig:
    made = job()
    made = replace(
        made, elastic=replace(made.elastic, layouts=tuple(f"tp1pp1dp{dp}" for dp in range(1, 9)), settle=1.0)
    )
    return replace(made, standby=replace(made.standby, policy=name, hold=HOLD, **standby))


def look(ready: dict[str, float], members: str = "l0 l1", **more: Any) -> Snapshot:
    """``ready``: how long each has been there; workers named l… are guaranteed."""
    names = tuple(members.split())
    fields: dict[str, Any] = {
        "now": NOW,
        "live": World(3, Layout(1, 1, len(names)), names, 10),
        "leaving": frozenset(),
        "ready": tuple(ready),
        "guaranteed": frozenset(name for name in (*names, *ready) if name.startswith("l")),
        "arrived": {name: NOW - age for name, age in ready.items()},
        "last_arrival": NOW - min(ready.values(), default=NOW),
        "step_seconds": 1.0,
        "steps_left": 100_000,
    }
    return Snapshot(**{**fields, **more})


# ---- hysteresis ----------------------------------------------------------------------------------------------------


def test_hysteresis_waits_until_a_worker_has_stayed() -> None:
    decision, reason = decide(look({"s0": 10.0}), config("hysteresis"))
    assert decision == Wait(NOW + 50.0)
    assert "less than 60 s" in reason
    decision, _ = decide(look({"s0": 60.0}), config("hysteresis"))
    assert isinstance(decision, Change)
    assert decision.members == ("l0", "l1", "s0")


def test_hysteresis_takes_only_those_that_have_stayed() -> None:
    decision, _ = decide(look({"s0": 70.0, "s1": 5.0}), config("hysteresis"))
    assert isinstance(decision, Change)
    assert decision.members == ("l0", "l1", "s0")


def test_hysteresis_takes_guaranteed_workers_at_once_and_rests_after_a_resize() -> None:
    assert isinstance(decide(look({"l2": 5.0}), config("hysteresis"))[0], Change)
    decision, reason = decide(look({"s0": 70.0}, live_since=NOW - 20.0), config("hysteresis"))
    assert decision == Wait(NOW + 40.0)
    assert "last resize" in reason


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 50), st.lists(st.sampled_from("abcdef"), max_size=6)), max_size=60))
def test_hysteresis_does_not_flap_whatever_nodes_do(trace: list[tuple[int, list[str]]]) -> None:
    """An adversary lets standbys come and go as he likes: growths stay under 1 + T / hold."""
    wanted = config("hysteresis")
    now, live, there, live_since, growths = NOW, World(0, Layout(1, 1, 2), ("l0", "l1"), 0), {}, 0.0, 0
    for seconds, flipped in trace:
        now += seconds
        for name in dict.fromkeys(flipped):
            if there.pop(f"s{name}", None) is None:
                there[f"s{name}"] = now
        leaving = frozenset(name for name in live.members if name.startswith("s") and name not in there)
        seen = look(
            {name: now - came for name, came in there.items() if name not in live.members},
            now=now,
            live=live,
            leaving=leaving,
            guaranteed=frozenset({"l0", "l1"}),
            arrived=dict(there),
            last_arrival=max(there.values(), default=NOW),
            live_since=live_since,
        )
        decision, _ = decide(seen, wanted)
        if isinstance(decision, Change):
            if decision.cause == "capacity":
                growths += 1
                joined = set(decision.members) - set(live.members)
                assert all(now - there[name] >= HOLD for name in joined if name in there)
            live, live_since = World(live.generation + 1, decision.layout, decision.members, 0), now
    assert growths <= 1 + (now - NOW) / HOLD


# ---- cost-aware ----------------------------------------------------------------------------------------------------


def lives(*seconds: float, taken: bool = True) -> tuple[Life, ...]:
    return tuple(Life(str(number), "p", 0.0, length, taken) for number, length in enumerate(seconds))


def test_cost_aware_grows_where_nodes_stay_and_not_where_they_go_at_once() -> None:
    measured = (Measured(1, 2, prepare_s=10.0, exposed_s=4.0), Measured(2, -2, prepare_s=10.0, exposed_s=2.0))
    stable = look({"s0": 100.0}, measured=measured, lives=lives(4000.0, 5000.0, 6000.0, 9000.0))
    decision, reason = decide(stable, config("cost-aware"))
    assert isinstance(decision, Change), reason
    assert "for 6.0 s of standing still" in reason
    restless = look({"s0": 5.0}, measured=measured, lives=lives(*[20.0] * 60))
    decision, reason = decide(restless, config("cost-aware"))
    assert decision == Wait(NOW + cost_aware.LOOK_AGAIN)
    assert "does not pay" in reason


def test_cost_aware_does_not_grow_for_the_last_steps() -> None:
    assert isinstance(decide(look({"s0": 100.0}, steps_left=40), config("cost-aware"))[0], Wait)
    assert isinstance(decide(look({"l2": 100.0}, steps_left=40), config("cost-aware"))[0], Stay)
    assert isinstance(decide(look({"l2": 100.0}), config("cost-aware"))[0], Change), "nobody takes l2 away"


def test_cost_aware_waits_until_it_knows_the_duration_of_a_step() -> None:
    assert isinstance(decide(look({"s0": 100.0}, step_seconds=0.0), config("cost-aware"))[0], Wait)


def test_the_first_growth_rests_on_the_stated_assumptions() -> None:
    seen, wanted = look({"s0": 0.0}), config("cost-aware", expected_life=1000.0)
    found = balance.balance(seen, Change(Layout(1, 1, 3), ("l0", "l1", "s0"), "capacity"), wanted)
    assert found.stay == pytest.approx(1000.0)
    assert found.cost == 2 * balance.EXPOSED
    ratio = 1 - found.saved / (1000.0 - balance.PREPARE)
    assert 0.6 < ratio < 0.8, "3 workers for 8 microbatches instead of 2: three quarters, but for communication"


SNAPSHOTS = st.builds(
    lambda live, ready, leaving, ages, pinned, lengths, costs, left, step: look(
        {f"s{index}": ages[index] for index in range(ready)},
        members=" ".join(f"{'l' if index < 2 else 't'}{index}" for index in range(live)),
        leaving=frozenset(f"{'l' if index < 2 else 't'}{index}" for index in leaving if index < live),
        pinned=None if pinned is None else ResizeGoal(1, None, pinned),
        lives=lives(*lengths),
        measured=tuple(Measured(index, cost[0], cost[1], cost[2]) for index, cost in enumerate(costs)),
        steps_left=left,
        step_seconds=step,
    ),
    st.integers(1, 6),
    st.integers(0, 4),
    st.sets(st.integers(0, 5), max_size=3),
    st.lists(st.floats(0, 5000), min_size=4, max_size=4),
    st.one_of(st.none(), st.integers(1, 8)),
    st.lists(st.floats(0, 20_000), max_size=10),
    st.lists(st.tuples(st.integers(-2, 2), st.floats(0, 100), st.floats(0, 100)), max_size=5),
    st.integers(0, 10_000),
    st.floats(0, 100),
)


@settings(deadline=None, max_examples=150)
@given(SNAPSHOTS, st.sampled_from(NAMES), st.one_of(st.none(), st.integers(1, 8)))
def test_what_holds_for_every_policy(seen: Snapshot, name: str, max_workers: int | None) -> None:
    wanted = config(name)
    wanted = replace(wanted, elastic=replace(wanted.elastic, max_workers=max_workers))
    decision, reason = decide(seen, wanted)
    assert reason
    assert (decision, reason) == decide(seen, wanted), "deterministic"
    if not isinstance(decision, Change):
        return
    assert not set(decision.members) & seen.leaving, "no world with a leaving worker"
    assert len(set(decision.members)) == decision.layout.size
    assert decision.layout in feasible_layouts(wanted, len(seen.pool)), "never more workers than allowed"
    assert set(decision.members) <= {*seen.live.members, *seen.ready}
    if name == "cost-aware" and decision.cause == "capacity":
        assert balance.balance(seen, decision, wanted).pays, "never against its own inequality"


# ---- policies of others --------------------------------------------------------------------------------------------


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    return lambda function: monkeypatch.setattr(engine, "named", lambda _: function)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda seen, wanted: (Change(Layout(1, 1, 3), ("l0", "l1", "x"), "capacity"), ""), "x cannot be in it"),
        (lambda seen, wanted: (Change(Layout(1, 1, 3), ("l0", "l1"), "capacity"), ""), "3 workers, not 2"),
        (lambda seen, wanted: (Change(Layout(3, 1, 1), ("l0", "l1", "s0"), "capacity"), ""), "not allowed now"),
        (lambda seen, wanted: ("grow", ""), "returned str"),
        (lambda seen, wanted: 1 / 0, "policy theirs failed: ZeroDivisionError: division by zero ("),
        (lambda seen, wanted: {}["x"], f"policy theirs failed: KeyError: 'x' ({__file__}:"),
        (lambda seen, wanted: sys.exit(2), "policy theirs failed: SystemExit: 2 ("),
    ],
)
def test_a_policy_of_others_cannot_break_the_run(theirs: Callable[[Any], None], function: Any, word: str) -> None:
    # LS-19
    theirs(function)
    decision, reason = decide(look({"s0": 5.0}), config("theirs"))
    assert decision == Stay()
    assert word in reason


def test_notices_and_requests_are_not_its_business(theirs: Callable[[Any], None]) -> None:
    # LS-19
    theirs(lambda seen, wanted: (Stay(), "lazy"))
    assert decide(look({"s0": 5.0}), config("theirs")) == (Stay(), "lazy")
    leaving = look({}, members="l0 s0", leaving=frozenset({"s0"}))
    assert decide(leaving, config("theirs"))[0] == Change(Layout(1, 1, 1), ("l0",), "notice")
    asked = look({"s0": 5.0}, due=ResizeGoal(1, None, 3))
    assert isinstance(decide(asked, config("theirs"))[0], Change)


def test_an_unknown_policy_is_one_line_with_the_known_ones() -> None:
    with pytest.raises(
        BadInput, match=r"^standby.policy: .*'lazy'; known: advisor, cost-aware, explore, greedy, hyst.*$"
    ):
        named("lazy")


# ---- explore -------------------------------------------------------------------------------------------------------


@given(chance=st.sampled_from((0.1, 0.3, 0.5)), run=st.integers(0, 3))
@settings(max_examples=6, deadline=None)
def test_exploring_leaves_with_the_chance_that_it_states(chance: float, run: int) -> None:
    """T17: shares of 500 decisions are within four standard deviations, and each is the same when asked again."""
    left = 0
    for number in range(500):
        decision = explored(number, f"run{run}", chance)
        assert decision == explored(number, f"run{run}", chance)
        left += isinstance(decision, Leave)
        assert decision.propensity == (chance if isinstance(decision, Leave) else 1.0 - chance)
    assert abs(left - 500 * chance) < 4 * (500 * chance * (1 - chance)) ** 0.5


def explored(number: int, run_id: str, chance: float) -> Leave | Change:
    seen = look({"s0": 60.0}, unit_of={"s0": str(number)}, run_id=run_id)
    decision, _ = explore.policy(seen, config("explore", explore=chance, commit=600.0))
    assert isinstance(decision, Leave | Change)
    if isinstance(decision, Leave):
        assert (decision.jobs, decision.until) == ((str(number),), NOW + 600.0)
    return decision


def test_guaranteed_workers_are_nothing_to_explore() -> None:
    decision, _ = decide(look({"l2": 60.0}), config("explore", explore=0.99))
    assert isinstance(decision, Change)
    assert decision.propensity is None


def test_jobs_that_are_not_on_offer_cannot_be_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "named", lambda name: lambda seen, job: (Leave(("7",), NOW + 60.0), "wild"))
    decision, reason = decide(look({"s0": 60.0}), config("wild"))
    assert decision == Stay()
    assert reason == "policy wild wanted to give back jobs that are not on offer: 7"


# ---- advisor -------------------------------------------------------------------------------------------------------


def advised(path: Path, advises: bool = True, **changes: Any) -> JobConfig:
    """A job whose model takes where the oldest standby job has been there for more than 60 s."""
    column = Column(feature="log_oldest_s", fill=4.0, low=0.0, high=6.0, sd=1.0)
    edge = math.log1p(60.0)
    rule = Plane(centre=(edge,), scale=(1.0,), knots=(), intercept=0.0, weights=((2.0,),))
    fields: dict[str, Any] = {
        "features_version": VERSION, "columns": (column,), "rule": rule, "advises": advises, "verdict": "", "runs": 30,
        "window_s": 300.0, "rule_class": "linear", "learned_by": "plug-in", "decisions": 500,
    }  # fmt: skip
    write_model(path, Model(**{**fields, **changes}))
    return config("advisor", advisor=str(path), commit=600.0)


def test_the_advisor_does_what_its_model_says(tmp_path: Path) -> None:
    wanted = advised(tmp_path / "m.json")
    decision, reason = decide(look({"s0": 50.0}), wanted)
    assert decision == Leave(("s0",), NOW + 600.0, 1.0)
    assert reason.endswith("advisor: leave 1 standby job for 600 s, mostly: log_oldest_s low")
    decision, reason = decide(look({"s0": 70.0}), wanted)
    assert isinstance(decision, Change)
    assert decision.propensity == 1.0
    assert reason.endswith("advisor: take, mostly: log_oldest_s high")


def test_the_advisor_leaves_what_is_unlike_everything_to_cost_aware(tmp_path: Path) -> None:
    wanted = advised(tmp_path / "m.json")
    seen = look({"s0": math.expm1(9.5)})
    decision, reason = decide(seen, wanted)
    assert decision == cost_aware.policy(seen, wanted)[0]
    assert reason.endswith("advisor: cost-aware decides, as nothing was learned of such log_oldest_s")


def test_without_advice_all_is_taken(tmp_path: Path) -> None:
    decision, reason = decide(look({"s0": 50.0}), advised(tmp_path / "m.json", advises=False))
    assert isinstance(decision, Change)
    assert reason.endswith("advisor: the model has no advice, so all is taken")


def test_a_model_that_cannot_be_used_is_one_line_before_the_run_begins(tmp_path: Path) -> None:
    """T16. Where the file breaks later, the world stays as it is, and the reason says why."""
    with pytest.raises(BadInput, match=r"^standby.advisor is missing: name a file"):
        engine.check("advisor", config("advisor"))
    (tmp_path / "broken.json").write_text("{")
    broken = config("advisor", advisor=str(tmp_path / "broken.json"))
    with pytest.raises(BadInput, match=r"^standby.advisor: .*broken.json: is no advisor's model"):
        engine.check("advisor", broken)
    with pytest.raises(BadInput, match="learned from features of version 9"):
        engine.check("advisor", advised(tmp_path / "old.json", features_version=9))
    decision, reason = decide(look({"s0": 50.0}), broken)
    assert decision == Stay()
    assert "policy advisor failed: standby.advisor: " in reason
    engine.check("advisor", advised(tmp_path / "m.json"))
    for name in NAMES:
        engine.check(name, config(name))


def test_the_advisor_imports_nothing_of_what_it_was_learned_with() -> None:
    code = "import sys, liver_slurm.plugins.policies.advisor; print({'sklearn', 'scipy', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
