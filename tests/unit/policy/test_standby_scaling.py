"""Which standby jobs are started and which are ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from coordinator_lab import job
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from liver_slurm.config.schema import JobConfig, UnitSection
from liver_slurm.config.units import most_workers, standby_units, workers_per_job
from liver_slurm.parallel.layout import Layout
from liver_slurm.policy.standby_scaling import Decision, Order, View, decide, useful_workers
from liver_slurm.policy.survival import Life
from liver_slurm.policy.types import ResizeGoal
from liver_slurm.scheduler.ports import CapacitySnapshot, EvictionNotice, Headroom, StandbyJob

HOLD = 60.0


def config(layouts: Any = "auto", **standby: Any) -> JobConfig:
    made = job()
    made = replace(made, elastic=replace(made.elastic, layouts=layouts))
    options = {"max_jobs": 4, "partitions": ("a", "b"), "hold": HOLD, **standby}
    return replace(made, standby=replace(made.standby, **options))


def standby(number: int, state: str = "running", partition: str = "a", unit: int = 0) -> StandbyJob:
    nodes = ("n1",) if state == "running" else ()
    return StandbyJob(str(number), state, nodes, partition=partition, unit=unit)  # type: ignore[arg-type]


def look(jobs: list[StandbyJob], *room: Headroom, now: float = 1000.0, **more: Any) -> View:
    """Two guaranteed workers."""
    return View(now, CapacitySnapshot(now, tuple(jobs), room), guaranteed=2, **more)


def decided(view: View, wanted: JobConfig) -> Decision:
    return decide(view, wanted)[0]


# ---- probe and queue -----------------------------------------------------------------------------------------------


def test_probing_starts_where_there_is_room() -> None:
    wanted = config()
    assert decided(look([], Headroom(0, "a", 0), Headroom(0, "b", 0)), wanted).start == ()
    found = decided(look([], Headroom(0, "a", 1), Headroom(0, "b", 2)), wanted)
    assert found.start == (Order(0, "a", 1), Order(0, "b", 1)), "with five workers no step is shorter than with four"
    found = decided(look([], Headroom(0, "a", 1), Headroom(0, "b", 5)), config(max_jobs=6))
    assert found.start == (Order(0, "a", 1), Order(0, "b", 5))


def test_queueing_lets_the_rest_wait() -> None:
    wanted = config(launch="queue")
    assert decided(look([], Headroom(0, "a", 0), Headroom(0, "b", 0)), wanted).start == (Order(0, "a", 4),)
    found = decided(look([], Headroom(0, "a", 0), Headroom(0, "b", 1)), wanted)
    assert found.start == (Order(0, "b", 1), Order(0, "a", 3))
    queued = [standby(number, "pending") for number in range(4)]
    assert decided(look(queued, Headroom(0, "a", 0)), wanted) == Decision()


def test_a_large_run_lets_as_many_wait_as_run() -> None:
    wanted = config(tuple(f"tp1pp1dp{number}" for number in range(1, 401)), launch="queue", max_jobs=398)
    wanted = replace(wanted, train=replace(wanted.train, global_batch_size=2 * 65536))
    assert decided(look([], Headroom(0, "a", 0)), wanted).start == (Order(0, "a", 64),)
    assert decided(look([], Headroom(0, "a", 60)), wanted).start == (Order(0, "a", 60), Order(0, "a", 64))
    run = [standby(number) for number in range(100)]
    queued = [standby(number, "pending") for number in range(100, 180)]
    assert decided(look([*run, *queued], Headroom(0, "a", 0)), wanted).start == (Order(0, "a", 20),)
    found = decided(look([*run, *queued], Headroom(0, "a", 80)), wanted)
    assert found.start == (Order(0, "a", 100),), "all that wait are about to start"
    many = [standby(number, "pending") for number in range(100, 240)]
    assert decided(look([*run, *many], Headroom(0, "a", 0)), wanted) == Decision(), "what waits stays"


def test_no_more_wait_than_are_useful() -> None:
    wanted = config(("tp1pp1dp2", "tp1pp1dp3"), launch="queue")
    assert decided(look([], Headroom(0, "a", 0)), wanted).start == (Order(0, "a", 1),)
    queued = [standby(7, "pending"), standby(8, "pending")]
    assert decided(look(queued, Headroom(0, "a", 0)), wanted).end == ("8",), "the younger one, at once"


def test_a_job_that_is_about_to_start_is_counted() -> None:
    wanted = config(("tp1pp1dp2", "tp1pp1dp3"))
    assert decided(look([standby(7, "pending")], Headroom(0, "a", 3)), wanted).start == ()


def test_room_elsewhere_is_better_than_waiting() -> None:
    wanted = config(("tp1pp1dp2", "tp1pp1dp3"), launch="queue")
    waits = [standby(7, "pending", "a")]
    assert decided(look(waits, Headroom(0, "a", 0), Headroom(0, "b", 1)), wanted).start == (Order(0, "b", 1),)
    full = replace(wanted, standby=replace(wanted.standby, max_jobs=1))
    found = decided(look(waits, Headroom(0, "a", 0), Headroom(0, "b", 1)), full)
    assert (found.start, found.end) == ((), ("7",)), "max_jobs: the one that waits makes way first"


def test_probing_takes_back_what_does_not_start() -> None:
    wanted = config()
    view = look([standby(7, "pending")], Headroom(0, "a", 0))
    first = decided(view, wanted)
    assert (first.end, first.useless_since) == ((), {"7": 1000.0})
    assert decided(replace(view, now=1059.0, useless_since=first.useless_since), wanted).end == ()
    assert decided(replace(view, now=1060.0, useless_since=first.useless_since), wanted).end == ("7",)
    booting = StandbyJob("7", "pending", ("n1",), partition="a")
    assert decided(look([booting], Headroom(0, "a", 0)), wanted).useless_since == {}, "it has its nodes"


# ---- what makes nothing faster, and spares ---------------------------------------------------------------------------


def test_a_job_that_waits_for_others_that_have_no_room_is_not_held() -> None:
    wanted = config(("tp1pp1dp2", "tp1pp1dp5"))
    assert decided(look([], Headroom(0, "a", 2)), wanted).start == ()
    view = look([standby(7), standby(8)], Headroom(0, "a", 0))
    first = decided(view, wanted)
    assert set(first.useless_since) == {"7", "8"}
    assert decided(look([standby(7), standby(8)], Headroom(0, "a", 1)), wanted).start == (Order(0, "a", 1),)
    later = replace(view, now=view.now + HOLD, useless_since=first.useless_since)
    assert decided(later, wanted).end == ("7", "8")
    busy = replace(view, capacity=replace(view.capacity, jobs=(standby(7), standby(8), standby(9))))
    assert decided(busy, wanted) == Decision()
    queue = replace(wanted, standby=replace(wanted.standby, launch="queue"))
    assert decided(look([standby(7)], Headroom(0, "a", 0)), queue).end == (), "the others wait in the queue"


def test_sizes_that_lie_in_one_partition_come_together() -> None:
    wanted = units(PAIR, UnitSection(), layouts=("tp1pp1dp2", "tp1pp1dp5"))
    assert decided(look([], Headroom(0, "a", 1), Headroom(1, "a", 1)), wanted).start == (Order(0, "a", 1),)
    assert decided(look([], Headroom(0, "a", 1), Headroom(1, "a", 0)), wanted).start == ()


def test_spares_are_held_though_they_make_nothing_faster() -> None:
    wanted = config(("tp1pp1dp2", "tp1pp1dp3"), spares=2)
    decision, reason = decide(look([], Headroom(0, "a", 4)), wanted)
    assert decision.start == (Order(0, "a", 3),)
    assert reason == "3 workers of standby jobs are useful, 2 of them as spares, 0 are there"
    here = [standby(number) for number in (7, 8, 9)]
    assert decided(look(here, Headroom(0, "a", 1), busy=frozenset({"7"})), wanted) == Decision()
    assert set(decided(look([*here, standby(10)], busy=frozenset({"7"})), wanted).useless_since) == {"10"}
    none = replace(wanted, standby=replace(wanted.standby, spares=0))
    assert set(decided(look(here, busy=frozenset({"7"})), none).useless_since) == {"8", "9"}


def test_spares_are_held_while_no_world_is_larger() -> None:
    wanted = config(("tp1pp1dp2",), spares=1)
    assert decided(look([], Headroom(0, "a", 1)), wanted).start == (Order(0, "a", 1),)


# ---- no more than wanted -------------------------------------------------------------------------------------------


def test_extra_standbys_end_youngest_first() -> None:
    wanted = config(("tp1pp1dp2", "tp1pp1dp3"))
    jobs = [standby(9), standby(10), standby(11)]
    view = look(jobs, busy=frozenset({"11"}))
    first = decided(view, wanted)
    assert (first.end, set(first.useless_since)) == ((), {"9", "10"})
    later = replace(view, now=view.now + HOLD, useless_since=first.useless_since)
    assert decided(later, wanted).end == ("10", "9")


def test_a_size_ceiling_and_a_request() -> None:
    wanted = config()
    pinned = ResizeGoal(1, Layout(1, 1, 2), 2)
    view = look([standby(9), standby(10)], Headroom(0, "a", 2), size_ceiling=pinned)
    assert set(decided(view, wanted).useless_since) == {"9", "10"}
    assert decided(view, wanted).start == ()
    assert decided(replace(view, asked=6), wanted).start == (Order(0, "a", 2),)


def test_one_layout_alone() -> None:
    wanted = config(("tp1pp1dp2",))
    assert useful_workers(wanted, 2, 0, None) == 2
    assert decided(look([], Headroom(0, "a", 4)), wanted).start == ()
    assert decided(look([], Headroom(0, "a", 4), asked=4), wanted).start == (Order(0, "a", 2),)


def test_a_job_with_a_notice_is_replaced() -> None:
    wanted = config(("tp1pp1dp2", "tp1pp1dp3"))
    leaving = replace(standby(7), notice=EvictionNotice("preemption", "wanted", 1010.0))
    assert decided(look([leaving], Headroom(0, "a", 1)), wanted).start == (Order(0, "a", 1),)
    assert decided(look([standby(7)], Headroom(0, "a", 1), going=frozenset({"7"})), wanted).start == (Order(0, "a", 1),)
    full = replace(wanted, standby=replace(wanted.standby, max_jobs=1))
    assert decided(look([leaving], Headroom(0, "a", 1)), full).start == ()


def test_nothing_is_done_while_blind() -> None:
    # LS-20
    blind = View(
        1000.0,
        CapacitySnapshot(1000.0, (standby(1, "pending"),), (Headroom(0, "a", 9),), blind="no answer"),
        guaranteed=2,
    )
    since = {"1": 0.0}
    assert decided(replace(blind, useless_since=since), config()) == Decision(useless_since=since)


@pytest.mark.parametrize(
    ("idle", "states", "options", "launched"),
    [
        (5, [], {}, 2),  # and not 3: with 8 microbatches dp5 is as fast as dp4
        (2, [], {}, 2),
        (5, ["running", "pending"], {}, 0),
        (5, ["running", "running", "running"], {}, 0),
        (5, ["running", "running", "ending"], {}, 0),
        (5, ["ending"], {}, 2),
        (0, [], {}, 0),
        (5, [], {"max_jobs": 0}, 0),
        (5, [], {"nodes_per_job": 2}, 3),
    ],
)
def test_launches(idle: int, states: list[Any], options: dict[str, Any], launched: int) -> None:
    config = job()
    config = replace(config, standby=replace(config.standby, **{"max_jobs": 3, **options}))
    jobs = tuple(StandbyJob(str(number), state) for number, state in enumerate(states))
    decision, _ = decide(View(0.0, CapacitySnapshot(0.0, jobs, (Headroom(0, "", idle),)), guaranteed=2), config)
    assert sum(order.count for order in decision.start) == launched
    assert decision.end == ()


def test_no_launch_while_blind_or_without_use() -> None:
    config = job()
    config = replace(config, standby=replace(config.standby, max_jobs=3))

    def launched(config: JobConfig, **more: Any) -> int:
        capacity = CapacitySnapshot(0.0, (), (Headroom(0, "", 5),), blind=more.pop("blind", None))
        return sum(order.count for order in decide(View(0.0, capacity, 2, **more), config)[0].start)

    assert launched(config) == 2, "dp5 is as fast as dp4"
    assert launched(config, blind="no answer") == 0
    capped = replace(config, elastic=replace(config.elastic, max_workers=3))
    assert launched(capped) == 1
    listed = replace(config, elastic=replace(config.elastic, layouts=("tp1pp1dp2",)))
    assert launched(listed) == 0
    assert launched(listed, asked=4) == 2


# ---- back-off ------------------------------------------------------------------------------------------------------


def test_a_partition_rests() -> None:
    lives = tuple(Life(str(n), "a", 1000.0 + 100 * n, 1010.0 + 100 * n, True) for n in range(3))
    view = look([], Headroom(0, "a", 2), Headroom(0, "b", 1), now=1215.0, spans=lives)
    decision, reason = decide(view, config())
    assert decision.start == (Order(0, "b", 1),)
    assert "a took 3 in a row too soon, left alone for 25 s" in reason
    queued = replace(view, capacity=replace(view.capacity, jobs=(standby(7, "pending", "a"),)))
    decision = decided(queued, config(launch="queue"))
    assert decision.end == ("7",)
    assert all(order.partition == "b" for order in decision.start)
    assert Order(0, "a", 2) in decided(replace(view, now=1241.0), config()).start


def test_after_failures_one_is_tried() -> None:
    lives = tuple(Life(str(n), "a", 1000.0 + 10 * n, 1000.0 + 10 * n, failed=True) for n in range(3))
    view = look([], Headroom(0, "a", 3), now=1021.0, spans=lives)
    assert decided(view, config()).start == ()
    rested = replace(view, now=1060.0)
    decision, reason = decide(rested, config())
    assert decision.start == (Order(0, "a", 1),)
    assert "a, where standby jobs failed before a worker was ready, is tried with one" in reason
    two = replace(rested, capacity=replace(rested.capacity, room=(Headroom(0, "a", 3), Headroom(0, "b", 1))))
    assert decided(two, config()).start == (Order(0, "a", 1), Order(0, "b", 1))
    tried = replace(rested, capacity=replace(rested.capacity, jobs=(standby(7),)))
    assert decided(tried, config()).start == (), "it is not known yet what becomes of it"
    assert decided(replace(tried, spans=(*lives, Life("7", "a", 1070.0))), config()).start == (Order(0, "a", 3),)


def test_one_is_tried_where_two_are_needed() -> None:
    lives = tuple(Life(str(n), "a", 1000.0 + 10 * n, 1000.0 + 10 * n, failed=True) for n in range(3))
    view = look([], Headroom(0, "a", 2), now=1060.0, spans=lives)
    assert decided(view, config(("tp1pp1dp2", "tp2pp1dp2"))).start == (Order(0, "a", 1),)


@pytest.mark.parametrize("jobs", [[], [standby(7)]])
def test_where_jobs_wait_one_is_tried_and_the_rest_wait_elsewhere(jobs: list[StandbyJob]) -> None:
    lives = tuple(Life(str(n), "a", 1000.0 + 10 * n, 1000.0 + 10 * n, failed=True) for n in range(3))
    view = look(jobs, Headroom(0, "a", 3), Headroom(0, "b", 0), now=1060.0, spans=lives)
    found = decided(view, config(launch="queue"))
    assert found.start == ((Order(0, "b", 3),) if jobs else (Order(0, "a", 1), Order(0, "b", 3)))
    no_room = replace(view, capacity=replace(view.capacity, room=()))
    assert decided(no_room, config(launch="queue")).start == (Order(0, "b", 3) if jobs else Order(0, "a", 1),)


# ---- units ---------------------------------------------------------------------------------------------------------


def units(*units: UnitSection, layouts: Any = "auto", **standby: Any) -> JobConfig:
    return config(layouts, unit=units, **standby)


PAIR, ONE = UnitSection(tasks_per_node=2), UnitSection(partitions=("c",), max_jobs=2, constraint="big")


def test_units_inherit_from_the_section() -> None:
    wanted = units(PAIR, ONE)
    assert [workers_per_job(unit) for unit in standby_units(wanted.standby)] == [2, 1]
    assert [unit.partitions for unit in standby_units(wanted.standby)] == [("a", "b"), ("c",)]
    assert [unit.max_jobs for unit in standby_units(wanted.standby)] == [4, 2]
    assert standby_units(wanted.standby)[1].constraint == "big"
    assert most_workers(wanted.standby) == 8
    assert most_workers(units(UnitSection(tasks_per_node=4, max_jobs=1), ONE).standby) == 6
    assert standby_units(config().standby) == (config().standby,)


@pytest.mark.parametrize(
    ("missing", "room", "start"),
    [
        (3, (2, 2), (Order(0, "a", 1),)),
        (1, (2, 2), (Order(1, "c", 1),)),
        (3, (0, 2), ()),
        (1, (2, 0), (Order(0, "a", 1),)),
        (4, (1, 2), (Order(0, "a", 1),)),
    ],
    ids=[
        "the largest that fits",
        "not more than needed",
        "not what waits for more",
        "rather too large than none",
        "one a look",
    ],
)
def test_which_unit(missing: int, room: tuple[int, int], start: tuple[Order, ...]) -> None:
    wanted = units(PAIR, ONE, layouts=("tp1pp1dp2", f"tp1pp1dp{2 + missing}"))
    assert decided(look([], Headroom(0, "a", room[0]), Headroom(1, "c", room[1])), wanted).start == start


def test_units_compete_for_nodes() -> None:
    wanted = units(PAIR, UnitSection(), layouts=("tp1pp1dp2", "tp1pp1dp5"))
    starts = [standby(7, "pending", "a", 0)]
    assert decided(look(starts, Headroom(0, "a", 1), Headroom(1, "a", 2)), wanted).start == ()
    # One of the others would fit what is missing: no larger one only because their room is not sure yet.
    assert decided(look(starts, Headroom(0, "a", 2), Headroom(1, "a", 2)), wanted).start == ()
    assert decided(look(starts, Headroom(0, "a", 0), Headroom(1, "a", 2)), wanted).start == (Order(1, "a", 2),)


JOBS = st.builds(
    standby,
    st.integers(1, 10**6),
    st.sampled_from(["running", "pending", "ending", "suspended"]),
    st.sampled_from("ab"),
    st.integers(0, 1),
)


@hypothesis_settings(deadline=None)
@given(
    st.lists(JOBS, max_size=8, unique_by=lambda one: one.job_id),
    st.lists(st.integers(0, 4), min_size=4, max_size=4),
    st.integers(1, 6),
    st.sampled_from(["probe", "queue"]),
    st.integers(0, 12),
    st.lists(st.integers(1, 3), min_size=2, max_size=2),
)
def test_what_always_holds(
    jobs: list[StandbyJob], room: list[int], max_jobs: int, launch: str, asked: int, tasks: list[int]
) -> None:
    wanted = units(*(UnitSection(tasks_per_node=count) for count in tasks), max_jobs=max_jobs, launch=launch)
    places = [
        Headroom(unit, partition, room[2 * unit + index]) for unit in (0, 1) for index, partition in enumerate("ab")
    ]
    view = look(jobs, *places, asked=asked, useless_since={one.job_id: 0.0 for one in jobs})
    found, reason = decide(view, wanted)
    assert reason
    assert (found, reason) == decide(view, wanted), "deterministic"
    ordered = sum(order.count for order in found.start)
    assert ordered == 0 or len(jobs) + ordered <= max_jobs
    assert all(order.count > 0 for order in found.start)
    need = max(0, useful_workers(wanted, 2, asked, None) - 2)
    here = [one for one in jobs if one.state != "ending"]
    stay = [one for one in here if one.job_id not in found.end]
    if launch == "probe":
        for order in found.start:
            assert order.count <= next(p.jobs for p in places if (p.unit, p.partition) == (order.unit, order.partition))
    else:
        # Ending extra ones never brings the run below what is useful.
        before, after = (sum(tasks[one.unit] for one in group) for group in (here, stay))
        assert after >= min(before, need) or not found.end or len(jobs) >= max_jobs
    assert sum(order.count * tasks[order.unit] for order in found.start) <= need + max(tasks)


@hypothesis_settings(deadline=None)
@given(
    st.lists(JOBS, max_size=8, unique_by=lambda one: one.job_id),
    st.integers(0, 8),
    st.integers(1, 6),
    st.sampled_from(["probe", "queue"]),
    st.integers(0, 4),
)
def test_no_job_with_a_worker_in_a_world_is_ended(
    jobs: list[StandbyJob], busy: int, max_jobs: int, launch: str, room: int
) -> None:
    wanted = units(UnitSection(tasks_per_node=1), UnitSection(tasks_per_node=2), max_jobs=max_jobs, launch=launch)
    inside = frozenset(one.job_id for one in jobs[:busy])
    since = {one.job_id: 0.0 for one in jobs}
    view = look(jobs, Headroom(1, "a", room), busy=inside, left_alone={"b": 2000.0}, useless_since=since)
    assert not inside & {*decided(view, wanted).end}


# ---- partitions on trial, stale looks, many jobs ---------------------------------------------------------------------


def on_trial(*room: Headroom, jobs: int = 10, waiting: tuple[StandbyJob, ...] = ()) -> Decision:
    """Large jobs failed in ``a``, where one is being tried; small ones have room in ``b``."""
    large = UnitSection(tasks_per_node=4, partitions=("a",), max_jobs=5)
    small = UnitSection(tasks_per_node=1, partitions=("b",), max_jobs=5)
    failed = tuple(Life(str(number), "a", 100.0 * number, 100.0 * number, failed=True) for number in range(3))
    wanted = config(unit=(large, small), max_jobs=jobs)
    return decided(look([standby(77, unit=0), *waiting], *room, now=20000.0, spans=failed), wanted)


def test_a_partition_on_trial_keeps_no_other_unit_from_starting() -> None:
    found = on_trial(Headroom(0, "a", 3), Headroom(1, "b", 4))
    assert [(order.unit, order.partition) for order in found.start] == [(1, "b")]


def test_no_waiting_job_makes_way_for_a_partition_on_trial() -> None:
    stuck = standby(80, "pending", "b", unit=1)
    assert on_trial(Headroom(0, "a", 3), Headroom(1, "b", 0), jobs=2, waiting=(stuck,)).end == ()


def test_a_job_with_a_member_does_not_wait_whatever_a_look_says() -> None:
    view = look([standby(1, "pending", "b")], busy=frozenset({"1"}), left_alone={"b": 2000.0})
    assert decided(view, config()) == Decision()
