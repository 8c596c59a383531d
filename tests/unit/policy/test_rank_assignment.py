"""Ranks of the next world's members, as the coordinator gives them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from coordinator_lab import job

from liver_slurm.config.schema import JobConfig, StreamSection
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy.rank_assignment import depth, rank_order

LIVE = World(0, Layout(1, 2, 2), ("live-0", "live-1", "live-2", "live-3"), 0)


def plain() -> JobConfig:
    """Without the distributed optimizer: replicas are alike."""
    config = job()
    return replace(config, train=replace(config.train, distributed_optimizer=False))


def test_growing_replicas_leaves_survivors_on_their_stage() -> None:
    members = (*LIVE.members, "standby-a", "standby-b", "standby-c", "standby-d")
    hosts = {member: member for member in members}
    ranked, reason = rank_order(LIVE, Layout(1, 2, 4), members, hosts, plain())
    assert ranked == ("live-0", "live-1", "standby-a", "standby-b", "live-2", "live-3", "standby-c", "standby-d")
    assert reason == "workers keep 50% of the state instead of 25%"


def test_a_standby_takes_the_rank_of_the_one_that_leaves() -> None:
    members = ("live-0", "live-2", "live-3", "standby-a")
    hosts = dict.fromkeys(members, "h")
    ranked, _ = rank_order(LIVE, LIVE.layout, members, hosts, plain())
    assert ranked == ("live-0", "standby-a", "live-2", "live-3")


def test_the_plain_order_stays_where_it_is_best() -> None:
    hosts = dict.fromkeys(LIVE.members, "h")
    for layout in (LIVE.layout, Layout(2, 2, 1), Layout(1, 4, 1)):
        ranked, reason = rank_order(LIVE, layout, LIVE.members, hosts, plain())
        assert ranked == LIVE.members
        assert reason.startswith("survivors in their order, then joiners: workers keep ")


def test_tensor_parallel_groups_are_on_one_host() -> None:
    hosts = {"live-0": "a", "live-1": "b", "live-2": "a", "live-3": "b"}
    ranked, _ = rank_order(LIVE, Layout(2, 1, 2), LIVE.members, hosts, plain())
    assert [hosts[member] for member in ranked] in (["a", "a", "b", "b"], ["b", "b", "a", "a"])


@pytest.mark.parametrize(
    ("mode", "precision", "weight", "state"),
    [("pause", "fp32", 4, 8), ("pause", "bf16", 2, 12), ("overlap", "fp32", 0, 12), ("overlap", "bf16", 0, 12)],
)
def test_what_an_element_of_the_model_weighs(mode: str, precision: str, weight: int, state: int) -> None:
    config = replace(job(), stream=StreamSection(mode=mode))  # type: ignore[arg-type]
    config = replace(config, train=replace(config.train, precision=precision))
    found = depth(config, Layout(1, 1, 1), Layout(1, 2, 1))
    assert (found.weight, found.state, found.cut) == (weight, state, config.train.distributed_optimizer)


@pytest.mark.parametrize("tied", [True, False])
def test_stages_are_cut_as_the_model_is(tied: bool) -> None:
    config = job()  # 8 layers of 64 · (2 · 64 + 2 · 64) + 2 · 64 · 256 weights, 256 words of 64
    model = replace(
        config.model, share_embeddings_and_output_weights=tied, gated_linear_unit=False, ffn_hidden_size=256
    )
    found = depth(replace(config, model=model), Layout(1, 1, 1), Layout(1, 3, 1))
    layer, words = 64 * 256 + 2 * 64 * 256, 256 * 64
    assert found.source == [0, 8 * layer + (1 if tied else 2) * words]
    assert found.target == [0, 3 * layer + words, 5 * layer + words, 8 * layer + 2 * words]


def test_a_provider_may_leave_sizes_out() -> None:
    config = job()
    model = replace(config.model, num_layers=None, hidden_size=None, num_attention_heads=None, vocab_size=None)
    found = depth(replace(config, model=model), Layout(1, 1, 1), Layout(1, 2, 1))
    assert (found.source, found.target) == ([0, 1], [0, 0.5, 1])
    members = ("live-0", "live-1")
    hosts = dict.fromkeys(members, "h")
    layout = Layout(1, 2, 1)
    assert rank_order(LIVE, layout, members, hosts, replace(config, model=model))[0] == members
