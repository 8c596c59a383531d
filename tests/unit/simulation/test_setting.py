"""What all cases have in common."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from simulation_lab import elastic_job, setting, trace

from liver_slurm.base.errors import BadInput
from liver_slurm.simulation.setting import conditions, most_devices, parse_queue_wait


def test_what_the_job_cannot_use_is_not_offered_to_it() -> None:
    made = setting(trace(100.0, ("a", 0, 100), ("b", 50, 100), ("c", 50, 100), ("d", 50, 100), ("e", 50, 100)))
    config = elastic_job()
    assert most_devices(config) == 2 + 3 * 2
    assert made.offered_device_s(config) == 50 * (2 + 2) + 50 * 8
    bounded = replace(config, elastic=replace(config.elastic, max_workers=6))
    assert made.offered_device_s(bounded) == 50 * (2 + 2) + 50 * 6


@pytest.mark.parametrize(("text", "mean"), [("0", 0.0), ("30", 30.0), ("10-60", 35.0), ("exp:12.5", 12.5)])
def test_waits_in_the_queue(text: str, mean: float) -> None:
    wait = parse_queue_wait(text)
    assert wait.mean == mean
    random = Random(3)
    drawn = [wait.draw(random) for _ in range(4000)]
    assert sum(drawn) / len(drawn) == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize("text", ["", "soon", "-5", "60-10", "exp:", "exp:-1"])
def test_bad_waits(text: str) -> None:
    with pytest.raises(BadInput, match="--queue-wait"):
        parse_queue_wait(text)


def test_a_job_without_standbys_has_nothing_to_simulate() -> None:
    with pytest.raises(BadInput, match=r"standby\.max_jobs"):
        conditions(elastic_job(max_jobs=0), setting(trace(9.0, ("a", 0, 9))), Random(0))
