"""The real coordinator on a simulated cluster."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_lab import COSTS, elastic_job, setting, trace

from liver_slurm.config import layouts
from liver_slurm.config.schema import RecoverySection
from liver_slurm.coordinator.core import reconfiguration
from liver_slurm.policy import cost_model, engine
from liver_slurm.rundir.events import DecisionWindow, Event, Offered, PolicyDecided, StandbyLaunch
from liver_slurm.simulation import elastic_run
from liver_slurm.simulation.elastic_run import ElasticResult, ElasticRun, look_seconds
from liver_slurm.simulation.setting import parse_queue_wait
from liver_slurm.simulation.trace import Span, Trace, from_spans


def simulate(
    made: Trace, mode: str = "pause", notice: float = 60.0, policy: str = "greedy", **more: Any
) -> ElasticResult:
    return ElasticRun(elastic_job(), setting(made, notice, **more), COSTS, policy, mode).run()


GOLDEN = trace(1000.0, ("a", 100.0, 600.0))


def test_one_node_comes_and_goes_as_computed_by_hand() -> None:
    """A step takes 1 s with 2 workers and 0.5 s with 4. A change takes 10.2 s to prepare and 2 s of pause.

    100.0  the node is there, is seen within 0.1 s, and its workers are ready 20 s later
    130.3  the next world is prepared: training is to stop after the step that it is in
    131.0  131 steps; a pause of 2 s
    133.0  4 workers
    540.0  a minute's notice
    550.2  the next world is prepared; 417.2 s were 834 steps of 0.5 s and a part of one more
    550.5  835 steps; a pause of 2 s
    552.5  2 workers, until 1000: 447.5 steps
    """
    config = elastic_job(poll=0.1)
    result = ElasticRun(config, setting(GOLDEN), COSTS, "greedy", "pause").run()
    assert [(pytest.approx(time, abs=0.01), size) for time, size in result.sizes] == [(0, 2), (133, 4), (552.5, 2)]
    assert (result.changes, dict(result.causes), result.end) == (2, {"capacity": 1, "notice": 1}, "")
    account = result.account
    assert account.steps == pytest.approx(131 + 835 + 447.5, abs=0.01)
    assert account.paused_s == pytest.approx(4.0, abs=0.005)
    assert account.lost_s == 0.0
    assert account.productive_device_s == pytest.approx(131 * 2 + 417.5 * 4 + 447.5 * 2, abs=0.03)


def test_overlap_exposes_less() -> None:
    result = simulate(GOLDEN, "overlap")
    assert result.changes == 2
    assert result.account.paused_s == pytest.approx(2 * COSTS.exposed_overlap_s, abs=0.005)


def test_a_node_that_goes_without_a_word_is_a_sudden_death() -> None:
    """The step under way is lost; a collective fails 1 s later, and the next world is ready 4 s and 2 s after that."""
    seldom = elastic_job(poll=70.0)  # a look at Slurm that sees the job gone does not come in between
    result = ElasticRun(seldom, setting(trace(1000.0, ("a", 100.0, 600.2)), 0.0), COSTS, "greedy", "pause").run()
    assert dict(result.causes) == {"capacity": 1, "loss": 1}
    assert result.end == ""
    assert 0.0 <= result.account.lost_s <= 0.5, "one step, as survivors hold all state"
    assert result.account.paused_s == pytest.approx(2.0 + 1.0 + 4.0 + 2.0, abs=0.3), "ticks are 0.25 s apart"


@pytest.mark.parametrize(
    ("mirror", "every", "group", "least", "most"),
    [("on", 0, 0, 0.0, 0.5), ("on", 50, 0, 0.5, 25.0), ("on", 50, 2, 0.5, 25.0), ("off", 0, 0, 60.0, 600.0)],
)
def test_what_only_the_dead_held_comes_from_a_mirror_or_from_a_checkpoint(
    mirror: Any, every: int, group: int, least: float, most: float
) -> None:
    config = elastic_job(poll=70.0)
    train = replace(config.train, distributed_optimizer=True)
    config = replace(config, train=train, recovery=RecoverySection(mirror, every, group))
    made = setting(trace(1000.0, ("a", 100.0, 550.0)), 0.0)
    account = ElasticRun(config, made, COSTS, "greedy", "pause").run().account
    assert least <= account.lost_s <= most
    assert account.wall_s == pytest.approx(1000.0, abs=1e-3)


def test_losses_one_after_the_other_go_back_to_the_same_checkpoint() -> None:
    """One is written at 600 s. What was trained up to then stays, however often the run goes back to it."""
    config = elastic_job(poll=5.0, max_jobs=1)
    train = replace(config.train, distributed_optimizer=True)
    config = replace(config, train=train, recovery=RecoverySection("off"))
    spans = (("a", 610.0, 800.0), ("a", 830.0, 1000.0), ("a", 1050.0, 1190.0))
    made = setting(trace(1195.0, *spans, sudden=True), 0.0)
    result = ElasticRun(config, made, COSTS, "greedy", "pause").run()
    assert result.causes["loss"] >= 2
    assert result.account.steps >= 600


@pytest.mark.parametrize(("goes", "kept"), [(603.0, 0), (606.0, 600)])
def test_a_checkpoint_is_of_use_when_it_is_written(goes: float, kept: int) -> None:
    """One begins at 600 s and takes 5; what is not written when a member dies never will be."""
    config = elastic_job(poll=70.0, max_jobs=1)
    config = replace(config, train=replace(config.train, distributed_optimizer=True), recovery=RecoverySection("off"))
    made = setting(trace(640.0, ("a", 100.0, goes), sudden=True), 0.0)
    account = ElasticRun(config, made, COSTS, "greedy", "pause").run().account
    assert account.lost_s > 500.0 if not kept else 5.0 < account.lost_s < 7.0


def test_notice_that_is_too_short_is_a_sudden_death() -> None:
    result = simulate(GOLDEN, notice=5.0)
    assert dict(result.causes) == {"capacity": 1, "loss": 1}


def test_a_node_that_comes_for_a_moment_changes_nothing() -> None:
    result = simulate(trace(500.0, ("a", 100.0, 110.0)))
    assert (result.changes, result.account.steps) == (0, pytest.approx(500.0, abs=0.01))


def test_the_time_limit_of_a_job_is_served_and_another_one_follows() -> None:
    config = elastic_job(time="00:05:00")
    result = ElasticRun(config, setting(trace(1000.0, ("a", 0.0, 1000.0))), COSTS, "greedy", "pause").run()
    assert result.end == ""
    assert "loss" not in result.causes
    assert [size for _, size in result.sizes][:5] == [2, 4, 2, 4, 2]


def test_nothing_happens_between_two_events(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: list[Any] = []
    step = elastic_run.step

    def counted(state: Any, given: Any, **how: Any) -> Any:
        inputs.append(given)
        return step(state, given, **how)

    monkeypatch.setattr(elastic_run, "step", counted)
    result = simulate(trace(86400.0, ("a", 0.0, 86400.0)))
    assert result.account.steps > 150_000
    assert len(inputs) < 3000, "288 times two looks at Slurm, heartbeats and ticks, and one change: not a step in 50"


def work(monkeypatch: pytest.MonkeyPatch, nodes: int) -> Counter[str]:
    """Count what is done for so many nodes that come, and go, together."""
    calls: Counter[str] = Counter()

    def count(where: Any, name: str) -> None:
        function = getattr(where, name)

        def counted(*given: Any, **named: Any) -> Any:
            calls[name] += 1
            return function(*given, **named)

        monkeypatch.setattr(where, name, counted)

    config = elastic_job(max_jobs=nodes)
    config = replace(
        config,
        elastic=replace(config.elastic, layouts=tuple(f"tp1pp1dp{2 * size}" for size in range(1, nodes + 2))),
        train=replace(config.train, global_batch_size=8 * (nodes + 1)),
    )
    for where, name in (
        (engine, "decide"), (layouts, "impossible"), (cost_model, "_estimate"), (elastic_run, "step"),
        (reconfiguration, "begin"),
    ):  # fmt: skip
        count(where, name)
    made = trace(1200.0, *((f"n{number}", 100.0, 900.0) for number in range(nodes)))
    result = ElasticRun(config, setting(made), COSTS, "greedy", "pause").run()
    assert (result.changes, result.end) == (2, "")
    assert max(size for _, size in result.sizes) == 2 + 2 * nodes
    return calls


def test_work_grows_no_faster_than_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as once:
        few = work(once, 20)
    with monkeypatch.context() as again:
        many = work(again, 80)
    assert many["decide"] == few["decide"], "those that come or go together are planned for together"
    assert many["begin"] == few["begin"] == 3, "worlds: the first one, with all of them, and without"
    assert many["impossible"] <= 3 * 81, "of each layout once for the run, and once for each who asks besides"
    assert many["_estimate"] <= 81
    assert many["step"] <= 4.2 * few["step"], "four times the messages"


SPANS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 900), st.integers(1, 900), st.booleans()), max_size=6)


@settings(max_examples=25, deadline=None)
@given(SPANS, st.sampled_from([0.0, 8.0, 60.0]), st.sampled_from(["overlap", "pause"]), st.integers(0, 3))
def test_all_time_is_accounted_for(
    spans: list[tuple[int, int, int, bool]], notice: float, mode: str, seed: int
) -> None:
    made = from_spans(
        "t",
        1000.0,
        [Span(f"n{number}", begin, begin + length, sudden) for number, begin, length, sudden in spans],
    )
    result = simulate(made, mode, notice, seed=seed)
    account = result.account
    assert result.end == "", "two workers are guaranteed"
    assert account.wall_s == pytest.approx(1000.0, abs=1e-3)
    worlds = [*result.sizes, (1000.0, 0)]
    held = sum(size * (after - time) for (time, size), (after, _) in pairwise(worlds))
    assert account.device_s == pytest.approx(held, abs=1.0), "world by world, as worlds follow each other"
    offered = setting(made).offered_device_s(elastic_job())
    assert account.productive_device_s <= offered + 1e-6
    assert result.changes == sum(result.causes.values()) <= len(result.sizes)


def test_the_same_seed_gives_the_same_run() -> None:
    made = trace(2000.0, ("a", 10.0, 700.0), ("b", 300.0, 1500.0), ("c", 310.0, 1100.0), ("a", 900.0, 1900.0))
    wait = parse_queue_wait("0-30")
    first, second, other = (simulate(made, seed=seed, queue_wait=wait).account for seed in (5, 5, 6))
    assert first == second
    assert first.steps != other.steps, "jobs wait for other times"


def test_looks_at_slurm_keep_the_budget() -> None:
    assert look_seconds(elastic_job(queries_per_minute=12.0)) == 20.0
    assert look_seconds(elastic_job(queries_per_minute=12.0, partitions=("a", "b"))) == 30.0
    assert look_seconds(elastic_job(poll=45.0)) == 45.0


def test_an_exploring_run_tells_what_came_of_its_decisions() -> None:
    """Nodes come and go; each window is told to the second, and what was left is let be for as long as was said."""
    spans = [(f"n{number}", 600.0 + 4000.0 * number, 3600.0 + 4000.0 * number) for number in range(6)]
    made = setting(trace(40_000.0, *spans))
    config = elastic_job(explore=0.5, commit=1200.0)
    found = []
    for _ in range(2):
        told: list[Event] = []
        ElasticRun(config, made, COSTS, "explore", "pause", told.append).run()
        found.append(told)
    assert found[0] == found[1], "the same each time"
    windows = [one for one in told if isinstance(one, DecisionWindow)]
    launched = [one.time for one in told if isinstance(one, StandbyLaunch)]
    gains: dict[str, list[float]] = {"take": [], "leave": []}
    for one in told:
        if not isinstance(one, PolicyDecided) or not isinstance(one.offer, Offered):
            continue
        mine = [window for window in windows if window.offer == one.offer.id]
        assert all(window.after_s == pytest.approx(window.window_s, abs=1e-3) for window in mine)
        gains[one.offer.action].append(mine[0].gained_s)
        if one.offer.action == "leave":
            assert not [time for time in launched if one.time < time < one.time + 1200.0]
    assert sum(map(len, gains.values())) == len({window.offer for window in windows})
    assert min(gains["take"]) > 200.0, "twice as fast for most of five minutes"
    assert max(map(abs, gains["leave"])) <= 1.0, "as before, to a step"
