"""Which layout is the fastest, and how much state it moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coordinator_lab import job

from liver_slurm.config.schema import JobConfig
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy.api import Snapshot
from liver_slurm.policy.cost_model import choose, estimate, moved_share
from liver_slurm.policy.types import ResizeGoal

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


def test_uneven_replicas_wait_for_the_busiest() -> None:
    config = job()  # 8 microbatches
    assert estimate(Layout(1, 1, 4), config) < 0.7 * estimate(Layout(1, 1, 3), config)
    assert estimate(Layout(1, 1, 5), config) > estimate(Layout(1, 1, 4), config), (
        "2 microbatches for the busiest of both"
    )


def test_a_deep_pipeline_idles() -> None:
    config = job()
    few = replace(config, train=replace(config.train, global_batch_size=2))
    ratio = estimate(Layout(1, 2, 1), config) / estimate(Layout(1, 1, 1), config)
    assert estimate(Layout(1, 2, 1), few) / estimate(Layout(1, 1, 1), few) > ratio


def test_stages_of_several_chunks_idle_less_and_send_more() -> None:
    """What is saved of the bubble is worth it with few microbatches, and no more with many."""

    def gain(microbatches: int) -> float:
        config = job()
        one = replace(config, train=replace(config.train, global_batch_size=microbatches, micro_batch_size=1))
        return estimate(Layout(1, 4, 1), one) / estimate(Layout(1, 4, 1, vpp=2), one)

    assert gain(4) > 1.1
    assert gain(4) > gain(64)


def test_chunks_that_stay_are_not_moved() -> None:
    live = World(0, Layout(1, 2, 1, vpp=2), ("a", "b"), 0)
    assert moved_share(live, live.layout, ("a", "b")) == 0.0
    assert moved_share(live, live.layout, ("b", "a")) == 1.0
    assert moved_share(live, Layout(1, 2, 1), ("a", "b")) == 0.5
    assert moved_share(live, Layout(1, 4, 1), ("a", "b", "c", "d")) == 0.5


def test_experts_that_a_token_does_not_meet_cost_no_arithmetic() -> None:
    config, one = job(), Layout(1, 1, 1)
    few, many = (replace(config, model=replace(config.model, num_moe_experts=experts)) for experts in (2, 64))
    assert estimate(one, config) < estimate(one, few) < estimate(one, many) < 1.3 * estimate(one, few)
    assert estimate(Layout(1, 1, 2), many) > estimate(Layout(1, 1, 2), few), "they are reduced, all of them"


def test_many_experts_and_few_tokens_are_worth_dividing() -> None:
    """Gradients of experts are reduced by fewer ranks then, and tokens travel."""
    config = job()
    many = replace(config, model=replace(config.model, num_moe_experts=64))
    whole, divided = Layout(1, 1, 4), Layout(1, 1, 4, ep=4)
    assert estimate(divided, many) < estimate(whole, many)
    few = replace(many, model=replace(many.model, num_moe_experts=4))
    few = replace(few, train=replace(few.train, seq_length=8 * few.train.seq_length))
    assert estimate(divided, few) > estimate(whole, few)


def test_whole_experts_cost_as_much_as_parts_of_more() -> None:
    """As many tokens are gathered for them, and as much is reduced, but a shared expert is cut by tp all the same."""
    config = job()
    few = replace(config, model=replace(config.model, num_moe_experts=4))
    cut, whole, divided = Layout(2, 1, 2), Layout(2, 1, 2, etp=1), Layout(2, 1, 2, ep=2, etp=1)
    assert estimate(divided, few) == estimate(cut, few)
    shared = replace(few, model=replace(few.model, moe_shared_expert_intermediate_size=16))
    assert estimate(divided, shared) > estimate(cut, shared)
    assert estimate(whole, few) > estimate(divided, few), "all ranks reduce them where all have all"
    long = replace(few, train=replace(few.train, seq_length=8 * few.train.seq_length))
    assert estimate(whole, long) < estimate(divided, long), "and then none sends a token"


def test_the_choice_names_the_runner_up() -> None:
    layout, reason = choose([TP1DP2, DP4], job(), None, lambda one: ())
    assert layout == DP4
    assert "tp1pp1dp2" in reason


def test_less_moved_state_wins() -> None:
    config = job()
    model = replace(config.model, hidden_size=8192)
    config = replace(config, model=model, train=replace(config.train, global_batch_size=4096))
    live = World(0, Layout(2, 1, 1), ("a", "b"), 0)
    members = ("a", "b", "c", "d")
    near, far = Layout(2, 1, 2), Layout(1, 1, 4)
    assert moved_share(live, live.layout, ("a", "b")) == 0
    assert moved_share(live, near, members) < moved_share(live, far, members)
    assert moved_share(None, near, members) == 1
    assert moved_share(live, live.layout, ("b", "a")) == 1, "each has the other's half"
    assert choose([far, near], config, live, lambda one: members)[0] == near


def test_what_moves_is_not_computed_where_it_decides_nothing() -> None:
    asked: list[Layout] = []

    def members_of(layout: Layout) -> tuple[str, ...]:
        asked.append(layout)
        return tuple("abcdefgh"[: layout.size])

    live = World(0, TP1DP2, ("a", "b"), 5)
    best, _ = choose([TP1DP2, DP4], job(), live, members_of)
    assert (best, asked) == (DP4, []), "in a world of thousands it takes its time"
    choose([DP4, DP4, Layout(1, 1, 8)], job(), live, members_of)
    assert asked == []


def test_no_worker_is_wanted_that_makes_nothing_faster() -> None:
    config = job()  # 8 microbatches: the busiest of four replicas has two, and so has the busiest of five
    layouts = [Layout(1, 1, dp) for dp in (5, 4, 3)]
    assert choose(layouts, config, None, lambda _: ()) == (DP4, "tp1pp1dp4: as fast as tp1pp1dp5, with fewer workers")
