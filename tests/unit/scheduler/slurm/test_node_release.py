"""Giving nodes of the guaranteed job back, as Slurm is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from liver_slurm.scheduler.slurm.node_release import GuaranteedNodes
from liver_slurm.scheduler.slurm.records import JobInfo

if TYPE_CHECKING:
    from conftest import FakeSlurm


@pytest.fixture
def nodes(slurm: FakeSlurm, make_job: Callable[..., JobInfo]) -> GuaranteedNodes:
    """Of job 7: a coordinator, and components of three nodes and of one."""
    slurm.infos = [
        make_job("7+0", nodes=("n0",), number=7),
        make_job("7+1", nodes=("n1", "n2", "n3"), number=8),
        make_job("7+2", nodes=("n4",), number=9),
    ]
    return GuaranteedNodes(slurm, "7", look=0.01)


def follows(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, component: int, *changes: dict[str, object]) -> None:
    """From the second look on a component looks like this, look by look."""
    looks = iter(({}, *changes))
    known = slurm.jobs

    def jobs(ids: Sequence[str] = (), names: Sequence[str] = ()) -> list[JobInfo]:
        slurm.infos[component] = replace(slurm.infos[component], **next(looks, {}))  # type: ignore[arg-type]
        return known(ids, names)

    monkeypatch.setattr(slurm, "jobs", jobs)


def test_the_last_nodes_of_a_component(
    nodes: GuaranteedNodes, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    follows(slurm, monkeypatch, 1, {}, {"nodes": ("n1", "n2")})
    assert nodes.give_back(1, 2) == (("n3",), False)
    assert (slurm.updated, slurm.cancelled) == ([("8", {"NumNodes": "2"})], [])


def test_a_whole_component_that_takes_its_time(
    nodes: GuaranteedNodes, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    follows(slurm, monkeypatch, 2, {"state": "COMPLETING"}, {"state": "CANCELLED"})
    assert nodes.give_back(2, 0) == (("n4",), False)
    assert (slurm.updated, slurm.cancelled) == ([], ["9"])


def test_with_accounting_single_nodes_can_be_given_back_again(
    nodes: GuaranteedNodes, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.settings["AccountingStorageType"] = "accounting_storage/slurmdbd"
    follows(slurm, monkeypatch, 1, {"nodes": ("n1",)})
    assert nodes.give_back(1, 1) == (("n2", "n3"), True)


def test_what_an_earlier_coordinator_has_given_back_is_not_asked_of_slurm_again(
    nodes: GuaranteedNodes, slurm: FakeSlurm
) -> None:
    slurm.infos[1] = replace(slurm.infos[1], nodes=("n1",))
    slurm.infos[2] = replace(slurm.infos[2], state="CANCELLED")
    assert nodes.give_back(1, 1)[0] == ()
    assert nodes.give_back(2, 0)[0] == ()
    assert (slurm.updated, slurm.cancelled) == ([], [])
