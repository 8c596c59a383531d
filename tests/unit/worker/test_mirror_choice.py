"""All members of a world keep its mirrors in the same way, by what memory they have together."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle

import pytest
import torch
import torch.distributed as dist
from snapshot_shard import Shard

from liver_slurm.config.schema import JobConfig, RecoverySection, TrainSection
from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.parity import EVERY, Choice
from liver_slurm.worker import mirror_choice
from liver_slurm.worker.mirror_choice import agree, wanted

HOSTS = ["a", "b", "c", "d", "e"]
CPU, CARD = torch.device("cpu"), torch.device("cuda")


def agreed(
    recovery: RecoverySection,
    monkeypatch: pytest.MonkeyPatch,
    available: int,
    device: torch.device = CPU,
    train: TrainSection = TrainSection(),  # noqa: B008 - immutable
    machines: Sequence[str] = ("one",),
) -> Choice:
    names = cycle(machines)
    monkeypatch.setattr(mirror_choice, "machine", lambda: next(names))
    monkeypatch.setattr(mirror_choice, "available_memory", lambda: available)
    config, store = JobConfig(recovery=recovery, train=train), dist.HashStore()
    with ThreadPoolExecutor(5) as pool:
        waits = [pool.submit(agree, store, rank, HOSTS, Shard(rank), config, device) for rank in range(5)]  # type: ignore[arg-type]
        found = {one.result() for one in waits}
    assert len(found) == 1
    return found.pop()


def test_where_there_is_room_they_are_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert agreed(RecoverySection(), monkeypatch, 1 << 20) == Choice("updates", 1, 0, "there is room")
    assert agreed(RecoverySection(mirror_every=5), monkeypatch, 1 << 20) == Choice(
        "copies", 1, 5, "there is room", beside=True
    )


def test_on_cards_they_are_refreshed_beside_training(monkeypatch: pytest.MonkeyPatch) -> None:
    found = agreed(RecoverySection(mirror="on"), monkeypatch, 1 << 20, CARD, machines=("one", "another"))
    assert (found.kind, found.every, found.beside) == ("copies", EVERY, True)
    found = agreed(RecoverySection(mirror="on"), monkeypatch, 1 << 20, CARD)
    assert (found.every, found.told) == (1, "copies, refreshed each step"), "where nothing has to be sent"
    found = agreed(RecoverySection(mirror="on"), monkeypatch, 1 << 20, CARD, TrainSection(optimizer="muon"))
    assert found.every == 1


def test_what_gradients_do_not_suffice_for_is_refreshed(monkeypatch: pytest.MonkeyPatch) -> None:
    train = TrainSection(optimizer="muon", distributed_optimizer=False)
    found = agreed(RecoverySection(), monkeypatch, 1 << 20, train=train)
    assert (found.kind, found.every, found.beside) == ("copies", EVERY, True)
    assert agreed(RecoverySection(mirror_every=5), monkeypatch, 1 << 20, train=train).every == 5


def test_where_there_is_less_they_are_parity_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        agreed(RecoverySection(mirror_every=5), monkeypatch, 1300, machines=HOSTS).told
        == "parity of 2, refreshed every 5 steps"
    )
    none = agreed(RecoverySection(mirror_every=5), monkeypatch, 100)
    assert none.told == "none"
    assert "which has 100 to spare" in none.reason


def test_what_is_asked_for_is_not_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = agreed(RecoverySection(mirror_group=2), monkeypatch, 0)
    assert (found.kind, found.group) == ("parity", 2)


@pytest.mark.parametrize(
    ("mirror", "device", "layout", "distributed", "expected"),
    [
        ("auto", CPU, Layout(1, 1, 2), True, True),
        ("auto", CARD, Layout(1, 1, 2), True, False),
        ("on", CARD, Layout(1, 1, 2), True, True),
        ("off", CPU, Layout(1, 1, 2), True, False),
        ("on", CPU, Layout(1, 1, 2), False, False),
        ("on", CPU, Layout(1, 1, 1), True, False),
    ],
)
def test_they_are_kept_where_a_rank_holds_something_alone(
    mirror: str, device: torch.device, layout: Layout, distributed: bool, expected: bool
) -> None:
    config = JobConfig(recovery=RecoverySection(mirror=mirror))  # type: ignore[arg-type]
    config = replace(config, train=replace(config.train, distributed_optimizer=distributed))
    assert wanted(config, layout, device) is expected
