"""Giving guaranteed nodes back: who goes so that whole nodes become free, and when Slurm is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from coordinator_lab import job
from coordinator_states import START, Run, settings
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.config.schema import ComponentSection, JobConfig, LiveSection
from liver_slurm.coordinator.core.io import GiveBack, GivenBack, GuaranteedJobSeen
from liver_slurm.coordinator.core.node_release import Component, components, largest, leavers
from liver_slurm.coordinator.core.records import BegunAnew, HandedOver, NodesGivenBack
from liver_slurm.coordinator.core.step import recover
from liver_slurm.coordinator.core.worlds import ReconfigurationPhase
from liver_slurm.protocol import messages as m
from liver_slurm.scheduler.ports import GuaranteedJob, SuccessorJob

Shape = tuple[int, int]
"""Nodes, and workers on each."""


def live(*shapes: Shape) -> LiveSection:
    return LiveSection(component=tuple(ComponentSection(nodes=nodes, tasks_per_node=each) for nodes, each in shapes))


def everybody(parts: Sequence[Component]) -> list[int]:
    return [worker for part in parts for node in part.nodes for worker in node]


# ---- the decision --------------------------------------------------------------------------------------------------


def test_numbers_of_workers() -> None:
    first, second = components(live((2, 2), (3, 1)), {2: 2}, {2})
    assert first == Component(1, (range(2), range(2, 4)))
    assert second == Component(2, (range(4, 5), range(5, 6)), shrinkable=False)
    (third,) = components(live((2, 2), (3, 1)), {1: 0}, ())
    assert third.nodes[0] == range(4, 5), "numbers do not change when a component before them is gone"


@pytest.mark.parametrize(
    ("shapes", "fixed", "count", "going", "nodes", "why"),
    [
        # The last nodes, as Slurm drops them.
        ([(3, 1)], (), 2, [1, 2], 2, ""),
        ([(2, 2)], (), 2, [2, 3], 1, ""),
        # Half a node frees nothing, so nobody goes for it.
        ([(2, 2)], (), 1, [], 0, "with all of its workers"),
        ([(2, 2)], (), 3, [2, 3], 1, "1 worker more"),
        # A whole component, and what cannot be had in part is kept as long as there is something else.
        ([(2, 1), (2, 1)], (2,), 1, [1], 1, ""),
        ([(2, 1), (2, 1)], (2,), 2, [2, 3], 2, ""),
        ([(2, 1), (2, 1)], (1, 2), 1, [], 0, "component 1, 2 only whole"),
        # A large node of the last component is passed over.
        ([(2, 1), (1, 4)], (), 1, [1], 1, ""),
        ([(2, 1)], (), 0, [], 0, ""),
        ([(2, 1)], (), -1, [], 0, ""),
    ],
)  # fmt: skip
def test_leavers(
    shapes: list[Shape], fixed: tuple[int, ...], count: int, going: list[int], nodes: int, why: str
) -> None:
    parts = components(live(*shapes), {}, fixed)
    chosen, freed, reason = leavers(parts, everybody(parts), count)
    assert (sorted(chosen), freed) == (going, nodes)
    assert why in reason
    assert bool(why) is bool(reason)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4),
    fixed=st.sets(st.integers(1, 4)),
    gone=st.sets(st.integers(0, 40), max_size=6),
    data=st.data(),
)
def test_what_is_announced_becomes_free(
    shapes: list[Shape], fixed: set[int], gone: set[int], data: st.DataObject
) -> None:
    parts = components(live(*shapes), {}, fixed)
    there = [worker for worker in everybody(parts) if worker not in gone]
    count = data.draw(st.integers(0, len(there)))
    chosen, freed, reason = leavers(parts, there, count)
    assert len(set(chosen)) == len(chosen) <= count
    assert set(chosen) <= set(there)
    assert bool(reason) is (len(chosen) < count)
    world = set(there) - set(chosen)
    kept = {part.number: part.left(world) for part in parts}
    assert sum(len(part.nodes) - kept[part.number] for part in parts) >= freed
    for part in parts:
        assert not world & {worker for node in part.nodes[kept[part.number] :] for worker in node}
        assert part.shrinkable or kept[part.number] in (0, len(part.nodes))
    most = largest(parts, there)
    assert (freed > 0) is (len(there) - count <= most) or not count
    assert most == 0 or leavers(parts, there, len(there) - most)[1] > 0
    assert most == len(there) or leavers(parts, there, len(there) - most - 1)[1] == 0


# ---- in the state machine ------------------------------------------------------------------------------------------


def start(*shapes: Shape, **changes: Any) -> Run:
    """A run of job 7 whose workers are all in world 0."""
    workers = sum(nodes * each for nodes, each in shapes)
    config: JobConfig = replace(job(), live=live(*shapes))
    fields = {"job_id": "7", "heterogeneous": True, **changes}
    run = Run(recover([], settings(config, workers=workers, **fields), START))
    run.train(*(f"live-{number}" for number in range(workers)), job_id=run.state.settings.job_id)
    assert len(run.live.members) == workers
    return run


@pytest.fixture
def run() -> Run:
    return start((4, 1))


def orders(run: Run) -> list[GiveBack]:
    return [action for action in run.actions if isinstance(action, GiveBack)]


def told(run: Run) -> list[str]:
    return sorted({name for name, _ in run.sent(m.Leave)})


def ask(run: Run, workers: int) -> m.Reply:
    ((_, reply),) = run.sent(m.Reply, run.say(m.ResizeRequest(workers=workers, give_back=True)))
    assert isinstance(reply, m.Reply)
    return reply


def change_over(run: Run) -> None:
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    run.tick()
    assert run.state.phase is ReconfigurationPhase.STEADY


def leave(run: Run, *names: str) -> None:
    for name in names:
        run.say(m.Leaving(worker=name, reason="told"))
    run.tick()


def test_workers_leave_and_their_nodes_go(run: Run) -> None:
    assert ask(run, 2).result["give_back"] == {"workers": ["live-3", "live-2"], "nodes": 2, "reason": ""}
    change_over(run)
    assert set(run.live.members) == {"live-0", "live-1"}
    assert told(run) == ["live-2", "live-3"]
    leave(run, "live-3")
    assert orders(run) == []  # all at once: Slurm may take nodes of a component only once
    leave(run, "live-2")
    assert orders(run) == [GiveBack(1, 2)]
    run.tick()
    run.feed(GivenBack(run.now, 1, 2, ("n3", "n4"), again=True))
    assert [(event["nodes"], event["kept"]) for event in run.events("nodes_given_back")] == [(["n3", "n4"], 2)]
    run.tick()
    assert len(orders(run)) == 1


def test_components_go_one_after_the_other() -> None:
    run = start((1, 1), (2, 1), (1, 1))
    assert ask(run, 2).result["give_back"] == {"workers": ["live-3", "live-2"], "nodes": 2, "reason": ""}
    change_over(run)
    leave(run, "live-2", "live-3")
    assert orders(run) == [GiveBack(2, 1)]
    run.feed(GivenBack(run.now, 2, 1, ("n3",)))
    run.tick()
    assert orders(run)[1:] == [GiveBack(3, 0)]
    run.feed(GivenBack(run.now, 3, 0, ("n4",)))
    # Component 2 is taken of only once, so it goes as a whole, although component 1 could lose no node either.
    assert ask(run, 1).result["give_back"] == {"workers": ["live-1"], "nodes": 1, "reason": ""}
    change_over(run)
    leave(run, "live-1")
    assert orders(run)[2:] == [GiveBack(2, 0)]


def test_a_worker_that_frees_no_node_stays() -> None:
    run = start((2, 2))
    assert ask(run, 1).result["give_back"]["workers"] == ["live-3", "live-2"]
    change_over(run)
    assert told(run) == ["live-2", "live-3"]
    leave(run, "live-2", "live-3")
    assert orders(run) == [GiveBack(1, 1)]
    assert set(run.state.membership.workers) == {"live-0", "live-1"}


def test_what_slurm_refuses(run: Run) -> None:
    ask(run, 2)
    change_over(run)
    leave(run, "live-2", "live-3")
    run.feed(GivenBack(run.now, 1, 2, error="scontrol: no"))
    assert [event["reason"] for event in run.events("nodes_kept")] == ["scontrol: no"]
    run.tick()
    assert len(orders(run)) == 1
    # From now on that component goes only as a whole.
    assert "none of its nodes can go" in ask(run, 1).error
    # A whole component that could not be ended may be asked for again.
    run = start((1, 1), (1, 1))
    ask(run, 1)
    change_over(run)
    leave(run, "live-1")
    run.feed(GivenBack(run.now, 2, 0, error="scancel: no answer"))
    run.tick()
    assert orders(run) == [GiveBack(2, 0)]
    assert ask(run, 1).result["give_back"] == {"workers": [], "nodes": 1, "reason": ""}
    run.tick()
    run.tick()
    assert orders(run) == [GiveBack(2, 0)] * 2


def test_a_restarted_coordinator_goes_on(run: Run) -> None:
    ask(run, 2)
    change_over(run)
    leave(run, "live-3")
    again = Run(recover(run.records, replace(run.state.settings, epoch=2), run.now))
    for name in ("live-0", "live-1"):
        again.register(name, generation=1, steps=run.live.step, job_id="7")
    again.tick(1.0)
    assert orders(again) == [], "live-2 may still be there"
    again.register("live-2", job_id="7")
    again.tick(1.0)
    assert told(again) == ["live-2"]
    leave(again, "live-2")
    for _ in range(5):
        again.tick(1.0)
        for name in ("live-0", "live-1"):
            again.say(m.Heartbeat(worker=name, generation=1, step=2, step_seconds=0.1, warm=True))
    again.tick()
    assert orders(again) == [GiveBack(1, 2)]
    again.feed(GivenBack(again.now, 1, 2, ("n3", "n4"), again=False))
    third = recover([*run.records, *again.records], replace(run.state.settings, epoch=3), again.now)
    assert (dict(third.release.nodes_left), set(third.release.unshrinkable)) == ({1: 2}, {1})
    assert third.resizes.size_ceiling is not None
    assert third.resizes.size_ceiling.give_back


@pytest.mark.parametrize(
    ("shapes", "workers", "words"),
    [
        ([(4, 1)], 4, "has 4 workers, and 4 of them leave no node free (that is no smaller world); ask for 3 or fewer"),
        ([(4, 1)], 3, ""),
        ([(2, 2)], 3, "(a node goes back with all of its workers); ask for 2 or fewer, or leave --give-back out"),
        ([(1, 4)], 2, "none of its nodes can go"),
        ([(1, 4), (2, 1)], 5, ""),
    ],
)
def test_requests_that_free_no_node(shapes: list[Shape], workers: int, words: str) -> None:
    run = start(*shapes)
    reply = ask(run, workers)
    assert reply.ok is (not words)
    assert words in reply.error
    assert bool(run.state.resizes.goals) is (not words)


def test_no_heterogeneous_job() -> None:
    plain = start((2, 1), job_id="", heterogeneous=False)
    assert "no guaranteed job of several components in Slurm" in ask(plain, 1).error
    # In one ordinary allocation, as sbatch/single.sh makes it.
    assert "leave --give-back out" in ask(start((2, 1), heterogeneous=False), 1).error


# ---- the jobs that follow ------------------------------------------------------------------------------------------


def given_back(run: Run) -> None:
    """Two of the four nodes of job 7 are given back."""
    ask(run, 2)
    change_over(run)
    leave(run, "live-2", "live-3")
    run.feed(GivenBack(run.now, 1, 2, ("n3", "n4")))
    assert run.journaled(NodesGivenBack) == [NodesGivenBack(job_id="7", component=1, kept=2)]


def successor_comes(run: Run) -> None:
    """Job 8 runs with four workers, in no particular order."""
    run.feed(GuaranteedJobSeen(run.now, GuaranteedJob(run.now + 1000.0, 14400.0, SuccessorJob("8", "RUNNING"))))
    for number in (3, 1, 2, 0):
        run.register(f"live-8-{number}", job_id="8")
        run.tick(1.0)
    for name in list(run.state.membership.workers):
        if name in run.state.membership.workers:
            generation = run.live.generation if name in run.live.members else -1
            run.say(m.Heartbeat(worker=name, generation=generation, step=1, step_seconds=0.1, warm=True))
    run.tick()


def test_workers_of_a_successor_stay(run: Run) -> None:
    given_back(run)
    run.feed(GuaranteedJobSeen(run.now, GuaranteedJob(run.now + 1000.0, 14400.0, SuccessorJob("8", "RUNNING"))))
    run.register("live-8-0", job_id="8")
    run.tick()
    assert told(run) == ["live-2", "live-3"]


def test_nothing_is_released_while_the_run_moves(run: Run) -> None:
    successor_comes(run)
    assert run.state.world.attempt is not None
    assert "is moving to its successor job" in ask(run, 2).error
    change_over_to_successor(run)
    assert orders(run) == []
    assert told(run) == ["live-0", "live-1", "live-2", "live-3"]


def change_over_to_successor(run: Run) -> None:
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    run.tick()
    assert run.journaled(HandedOver) == [HandedOver(job_id="8")]


def test_a_successor_releases_nodes_again(run: Run) -> None:
    given_back(run)
    successor_comes(run)
    assert run.state.world.attempt is not None
    assert set(run.state.world.attempt.target.members) == {"live-8-0", "live-8-1"}, "its last nodes can go"
    change_over_to_successor(run)
    own = replace(run.state.settings, epoch=2, job_id="8")
    after = Run(recover(run.records, own, run.now))
    assert (after.state.release.nodes_left, after.state.release.unshrinkable) == ({}, frozenset()), "that was job 7"
    for number in range(4):
        generation = run.live.generation if number < 2 else -1
        after.register(f"live-8-{number}", generation=generation, steps=run.live.step, job_id="8")
    for _ in range(6):
        after.tick(1.0)
        for name in list(after.state.membership.workers):
            worker = after.state.membership.workers[name]
            after.say(m.Heartbeat(worker=name, generation=worker.generation, step=2, step_seconds=0.1, warm=True))
    after.tick()
    assert told(after) == ["live-8-2", "live-8-3"]
    leave(after, "live-8-2", "live-8-3")
    assert orders(after) == [GiveBack(1, 2)]


def test_a_later_request_wants_more(run: Run) -> None:
    given_back(run)
    run.register("standby-1-0", job_id="1")
    run.tick(1.0)
    run.say(m.ResizeRequest(workers=3))
    run.tick(1.0)
    change_over(run)
    successor_comes(run)
    change_over_to_successor(run)
    after = recover(run.records, replace(run.state.settings, epoch=2, job_id="8"), run.now)
    assert after.resizes.size_ceiling is not None
    assert not after.resizes.size_ceiling.give_back


def test_a_requeued_job_releases_nodes_again(run: Run) -> None:
    given_back(run)
    anew = BegunAnew(checkpoint="", step=0, steps_lost=0, reason="requeued")
    again = recover([*run.records, anew], replace(run.state.settings, epoch=2, restarts=1), run.now)
    assert (again.release.nodes_left, again.release.unshrinkable, again.resizes.size_ceiling) == ({}, frozenset(), None)
    assert [(goal.workers, goal.give_back) for goal in again.resizes.goals] == [(2, True)]
