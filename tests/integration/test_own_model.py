"""examples/own_model: a model and data from outside the package, resized, trains as if it had not been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_model"
STEPS = 12


def liver_slurm(home: Path, *arguments: str) -> Any:
    """What the command printed as JSON."""
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(EXAMPLE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "liver_slurm.cli.main", *arguments, "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=200,
    )
    logs = "".join(f"\n== {log.name}\n{log.read_text()[-3000:]}" for log in home.glob("runs/*/logs/*.log"))
    assert done.returncode == 0, done.stderr + logs
    return json.loads(done.stdout)


def train(home: Path, *resizes: str) -> tuple[list[float], list[dict[str, Any]]]:
    """Losses of one run, and its reconfigurations."""
    overrides = [f"job.run_root={home / 'runs'}", f"train.steps={STEPS}", "checkpoint.at_end=false"]
    options = [part for text in overrides for part in ("--set", text)]
    options += [part for text in resizes for part in ("--resize", text)]
    run_dir = Path(liver_slurm(home, "run", str(EXAMPLE / "job.toml"), "--workers", "2", *options)["run_dir"])
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)), "every step once"
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    committed = [event for event in events if event["event"] == "reconfiguration_committed"]
    return [line["loss"] for line in lines], committed


def test_its_losses_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    homes = tmp_path / "undisturbed", tmp_path / "resized"
    for home in homes:
        home.mkdir()
    expected, none = train(homes[0])
    found, (change,) = train(homes[1], "6:tp2pp1dp1")
    assert none == []
    assert (change["from"], change["to"], change["cutover_step"]) == ("tp1pp1dp2", "tp2pp1dp1", 6)
    assert change["digests_checked"] > 0
    assert found == pytest.approx(expected, rel=1e-6)
    assert found[-1] < 0.6 * found[0], "it learns"


def test_its_own_parameter_is_moved_like_any_other(tmp_path: Path) -> None:
    plan = liver_slurm(tmp_path, "plan", str(EXAMPLE / "job.toml"), "--from", "tp2pp1dp1", "--to", "tp1pp2dp1")
    gains = {name: tensor["shape"] for name, tensor in plan["tensors"].items() if name.split("@")[0].endswith("gain")}
    name = "decoder.layers.mlp.gain"
    assert gains == {one: [2, 64] for one in (name, f"{name}@exp_avg", f"{name}@exp_avg_sq")}  # fp32: no masters
    # One layer a stage, so each target rank has half of each.
    for rank in "01":
        pieces = [piece for piece in plan["target"][rank] if piece["tensor"] == name]
        assert [(piece["offset"], piece["shape"]) for piece in pieces] == [([int(rank), 0], [1, 64])]
