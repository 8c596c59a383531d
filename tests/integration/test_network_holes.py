"""Holes in the network between two parties of a run: who is silent for less than ``job.lost_after`` is not lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from coordinator_lab import Lab, until
from coordinator_lab import job as light_job
from network_lab import INTERFACE, Network, why_not
from worker_lab import STARTUP, WorkerLab
from worker_lab import job as real_job

from liver_slurm.config.schema import StreamSection

PARTIES = ("coordinator", "live-0", "live-1")
LOST_AFTER, LIGHT_LOST_AFTER = 30.0, 45.0

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there can be")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with closing(Network(PARTIES)) as one:
        yield one


def on_the_network(lab: Lab, network: Network) -> None:
    """Start each process of a lab in its party's namespace."""
    lab.launcher = network.command


@pytest.fixture
def light(tmp_path: Path, network: Network) -> Iterator[Lab]:
    """A real coordinator, and workers that speak the real protocol but train nothing."""
    config = replace(light_job(lost_after=LIGHT_LOST_AFTER), stream=StreamSection(interface=INTERFACE))
    with closing(Lab(tmp_path, config)) as lab:
        on_the_network(lab, network)
        lab.coordinator()
        for name in ("live-0", "live-1"):
            lab.worker(name)
        lab.steady("tp1pp1dp2")
        yield lab


def leave_open(seconds: float) -> None:
    """Let time go by: how long a hole is, is what these tests are about."""
    time.sleep(seconds)


def step_of(lab: Lab, name: str) -> int:
    """Step of a worker, as its coordinator has it."""
    return next((one["step"] for one in lab.status().get("workers", ()) if one["worker"] == name), -1)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [20.0, pytest.param(40.0, marks=pytest.mark.long)])
def test_a_worker_that_cannot_reach_its_coordinator_for_less_than_lost_after(
    light: Lab, network: Network, seconds: float
) -> None:
    """What a hole leaves of ``lost_after`` is for connecting again, which the kernel alone tries ever more seldom."""
    with network.hole("coordinator", "live-1"):
        leave_open(seconds)
        unheard = step_of(light, "live-1")
    until(lambda: step_of(light, "live-1") > unheard, "it is heard of again", LIGHT_LOST_AFTER)
    assert light.events("worker_lost") == []
    assert light.events("run_ended") == []


@pytest.fixture
def real(tmp_path: Path, network: Network) -> Iterator[WorkerLab]:
    config = real_job(tmp_path, steps=100_000)
    config = replace(config, stream=StreamSection(interface=INTERFACE))
    with closing(WorkerLab(replace(config, job=replace(config.job, lost_after=LOST_AFTER)))) as lab:
        on_the_network(lab, network)
        lab.slow.touch()
        lab.begin()
        lab.committed_to("tp1pp1dp2")
        yield lab


@pytest.mark.slow
def test_a_run_goes_on_after_short_holes(real: WorkerLab, network: Network) -> None:
    # LS-1
    for pair, seconds in ((("coordinator", "live-1"), 5.0), (("live-0", "live-1"), 5.0), (("live-0", "live-1"), 20.0)):
        begun = real.status()["step"]
        with network.hole(*pair):
            leave_open(seconds)
        real.wait_step(begun + 3)
    assert real.events("worker_lost") == []
    assert real.losses()


@pytest.mark.long
@pytest.mark.parametrize("pair", [("live-0", "live-1"), ("coordinator", "live-1")], ids="-".join)
def test_a_run_goes_on_or_recovers_after_a_long_hole(real: WorkerLab, network: Network, pair: tuple[str, str]) -> None:
    begun = real.status()["step"]
    with network.hole(*pair):
        leave_open(60.0)
    until(lambda: real.status().get("step", -1) > begun + 3 or real.events("run_ended"), "trained again", STARTUP)
    assert real.events("run_ended") == []
    assert real.losses()
