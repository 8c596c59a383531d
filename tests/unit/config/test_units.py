"""Standby jobs of several sizes in a job file."""

from __future__ import annotations

from pathlib import Path

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.config.layouts import max_tp
from liver_slurm.config.load import load_job, read_job, save_job
from liver_slurm.config.schema import StandbySection, UnitSection
from liver_slurm.config.units import most_workers, standby_units

TINY = Path(__file__).parents[3] / "configs" / "gpt-tiny.toml"


def test_units_survive_the_resolved_form(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        TINY.read_text()
        + '[[standby.unit]]\ntasks_per_node = 4\nmem = "2G"\n[[standby.unit]]\nconstraint = "a100"\nmax_jobs = 1\n'
    )
    config = load_job(job, ["standby.unit.1.partitions=['other']"])
    save_job(config, tmp_path / "job.json")
    assert read_job(tmp_path / "job.json") == config == load_job(tmp_path / "job.json")
    first, second = standby_units(config.standby)
    assert (first.tasks_per_node, first.mem, first.partitions, first.max_jobs) == (4, "2G", ("scavenger",), 4)
    assert (second.tasks_per_node, second.constraint, second.partitions, second.max_jobs) == (1, "a100", ("other",), 1)
    assert max_tp(config) == 1, "the smallest kind of node decides"


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("standby.unit=[{gpus_per_task=1}]", "standby.unit.0.gpus_per_task: 1 differs"),
        ("standby.unit=[{partitions=[]}]", "standby.unit.0.partitions: is missing"),
        ("standby.unit=[{nodes=2}]", "standby.unit.0.nodes: no such key"),
        ("standby.launch=later", 'allowed: "probe", "queue"'),
        ("standby.hold=0", "standby.hold"),
    ],
)
def test_what_is_wrong_is_said(override: str, word: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_job(TINY, [override])
    assert word in str(caught.value)


def test_plain_processes_have_no_sizes() -> None:
    config = load_job(TINY, ["standby.unit=[{tasks_per_node=2}]"], workers=2, standbys=2)
    assert config.standby.unit == ()


def test_the_most_workers_are_those_of_the_largest_jobs_however_many() -> None:
    small, large = UnitSection(tasks_per_node=1), UnitSection(tasks_per_node=8, max_jobs=2)
    assert most_workers(StandbySection(max_jobs=3, unit=(small, large))) == 17
    assert most_workers(StandbySection(max_jobs=1, unit=(small, large))) == 8
    assert most_workers(StandbySection(max_jobs=10**18, unit=(small, large))) == 10**18 - 2 + 16
    assert most_workers(StandbySection(max_jobs=0)) == 0
