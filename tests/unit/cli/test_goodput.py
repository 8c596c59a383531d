"""``liver-slurm goodput``."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from liver_slurm.observability.ledger.causes import NAMES
from liver_slurm.rundir.paths import RunDir

Liver = Callable[..., tuple[int, str, str]]


def test_the_document(liver: Liver, run_dir: RunDir) -> None:
    code, out, err = liver("goodput", str(run_dir.path), "--json")
    assert (code, err) == (0, "")
    (run,) = json.loads(out)["runs"]
    assert {"run", "wall_s", "device_s", "ettr", "capacity_goodput", "buckets"} <= run.keys()
    assert run["run"] == run_dir.path.name
    assert list(run["buckets"]) == list(NAMES)
    assert sum(run["buckets"].values()) == pytest.approx(run["device_s"], abs=1e-3)
    assert run["outcome"] == "training"


def test_it_can_be_read(liver: Liver, run_dir: RunDir) -> None:
    code, out, err = liver("goodput", str(run_dir.path))
    assert (code, err) == (0, "")
    for word in (
        "ETTR:",
        "queue included",
        "capacity goodput:",
        "ELASTIC_REINITIALIZATION",
        "tp1pp1dp3",
        "no end of it is on record",
    ):
        assert word in out


def test_several_runs_are_summed_and_one_that_is_named_twice_is_one(liver: Liver, run_dir: RunDir) -> None:
    code, out, _ = liver("goodput", str(run_dir.path), run_dir.path.name, "--json")
    assert code == 0
    found = json.loads(out)
    assert len(found["runs"]) == 1
    assert found["total"]["device_s"] == pytest.approx(found["runs"][0]["device_s"])


def test_a_run_that_is_not_there_is_one_line(liver: Liver) -> None:
    code, out, err = liver("goodput", "nowhere")
    assert (code, out) == (2, "")
    assert err.startswith("liver-slurm: error: there is no run 'nowhere'")
    assert err.count("\n") == 1
