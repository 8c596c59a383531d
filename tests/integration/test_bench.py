"""``liver-slurm bench`` of the whole product: what the documents must say, not how fast it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import psutil
import pytest

from liver_slurm.bench.machine import MEMORY_DISK, PREFIX

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

RESTART_PARTS = {"save_s", "end_s", "interpreter_s", "imports_s", "groups_s", "build_s", "load_s", "first_step_s"}


def bench(name: str) -> dict[str, Any]:
    """The document of a quick run, which leaves neither a process nor a file behind."""
    before = _alive()  # helpers of tests that ran in this process
    command = [sys.executable, "-c", "from liver_slurm.cli.main import main; raise SystemExit(main())"]
    process = subprocess.Popen(
        [*command, "bench", name, "--quick", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        output, _ = process.communicate(timeout=500)
    finally:
        process.terminate()  # it ends what it has started
        process.wait(timeout=60)
    assert process.returncode == 0
    assert not list(MEMORY_DISK.glob(f"{PREFIX}{process.pid}-*"))
    assert not _alive() - before
    document: dict[str, Any] = json.loads(output)
    assert document["bench"] == name
    assert document["machine"]["cores"] >= 1
    return document


def _alive() -> set[psutil.Process]:
    """Processes below this one that still run; those that only wait to be reaped were adopted and have ended."""
    return {one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE}


@pytest.mark.long
def test_a_restart_and_both_modes_are_measured_in_one_run() -> None:
    document = bench("reconfigure")
    (case,) = document["cases"]
    assert "failed" not in case, case["failed"]
    assert (case["from"], case["to"], case["distributed_optimizer"]) == ("tp2pp1dp1", "tp1pp2dp1", True)
    assert 14e6 < case["parameters"] < 18e6
    assert set(case["restart_parts"]) == RESTART_PARTS
    assert case["restart_interval_s"] == pytest.approx(sum(case["restart_parts"].values()), abs=1e-3)
    assert set(case["checkpoint_save_and_load_s"]) == {"boxes", "torch_dist"}
    assert case["checkpoint"] in case["checkpoint_save_and_load_s"]
    for mode in ("pause", "overlap"):
        parts = case[f"{mode}_parts"]
        assert parts["bytes_moved"] > 8 * case["parameters"]
        assert parts["digests_checked"] > 0
        assert case[f"{mode}_s"] >= parts["pause_s"]
        assert case[f"ratio_{mode}"] == pytest.approx(case["restart_s"] / case[f"{mode}_s"])
        assert document[f"ratio_{mode}_median"] == case[f"ratio_{mode}"]


@pytest.mark.long
def test_a_death_is_measured_with_mirrors_and_without_beside_a_restart() -> None:
    document = bench("recovery")
    (case,) = document["cases"]
    assert set(case["restart_parts"]) == RESTART_PARTS - {"save_s"}
    assert (case["mirror_redone"] <= 1, case["checkpoint_redone"] >= 1) == (True, True)
    for way in ("mirror", "checkpoint"):
        assert 0 < case[f"{way}_detected_s"] < case[f"{way}_s"] + case[f"{way}_step_s"]
        assert case[f"ratio_{way}"] == pytest.approx(case["restart_s"] / case[f"{way}_s"])
    assert 0 < case["mirror_held_up_s"] < case["mirror_step_s"]


@pytest.mark.long
def test_the_cost_of_a_run_that_is_never_resized_is_measured() -> None:
    document = bench("overhead")
    (case,) = document["cases"]
    assert 0 < case["cpu_share"] < 1
    assert case["step_time_ratio"] == pytest.approx(case["step_s"] / case["plain_step_s"])
    assert case["cpu_seconds"]["training"] > 0
    assert "ZMQbg/IO/0" in case["cpu_seconds"]
