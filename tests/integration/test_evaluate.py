"""``liver-slurm evaluate`` gives the losses that the run's own validations gave, in any layout."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import newest, tensors
from interrupting import Command, interrupt, slowness
from safetensors.torch import load_file

from liver_slurm.engine.hf.weights import SINGLE
from liver_slurm.rundir.validation import read_validations

ROOT = Path(__file__).parents[2]
SECONDS = 5.0

pytestmark = pytest.mark.slow


def liver(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "liver_slurm", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=600
    )


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two replicas, with two validations and a checkpoint at each."""
    root = tmp_path_factory.mktemp("runs")
    settings = {
        "job.run_root": str(root),
        "train.steps": "4",
        "train.ema_decay": "0.5",
        "checkpoint.every": "2",
        "checkpoint.keep": "0",
        "data.paths": '["README.md"]',
        "validation.paths": '["docs/usage.md"]',
        "validation.every": "2",
        "validation.samples": "16",
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = liver("run", "configs/gpt-tiny.toml", "--workers", "2", *overrides)
    assert done.returncode == 0, done.stderr
    (found,) = root.iterdir()
    return found


def losses(*arguments: str) -> dict[int, dict[str, Any]]:
    done = liver("evaluate", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return {line["step"]: line for line in json.loads(done.stdout)}


def test_all_checkpoints_of_a_run_in_another_layout(run_dir: Path) -> None:
    expected = {one.step: one.loss for one in read_validations(run_dir / "validation.jsonl")}
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    found = losses(str(run_dir), "--all", "--layout", "tp2pp1dp1")
    assert {step: line["loss"] for step, line in found.items()} == pytest.approx(expected, rel=1e-6)
    assert [*expected] == [2, 4]
    assert {line["samples"] for line in found.values()} == {16}
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before, "nothing of the run is changed"


def test_moving_averages_are_evaluated_and_exported(run_dir: Path, tmp_path: Path) -> None:
    plain, averaged = (losses(str(run_dir), "--all", *more) for more in ((), ("--ema",)))
    for step in (2, 4):
        assert averaged[step]["loss"] > plain[step]["loss"], "weights get better, and averages are behind"
    assert averaged[4]["loss"] < averaged[2]["loss"]
    done = liver("export", "hf", str(run_dir), "--to", str(tmp_path / "model"), "--ema")
    assert done.returncode == 0, done.stderr
    exported, stored = load_file(tmp_path / "model" / SINGLE), tensors(newest(run_dir / "checkpoints"))
    for name, ours in (("embed_tokens", "embedding.word_embeddings"), ("norm", "decoder.final_layernorm")):
        theirs = exported[f"model.{name}.weight"]
        assert torch.equal(theirs, stored[f"{ours}.weight@ema"][: len(theirs)])
        assert not torch.equal(theirs, stored[f"{ours}.weight"][: len(theirs)])


def test_one_checkpoint_with_other_data(run_dir: Path) -> None:
    (saved,) = losses(str(run_dir)).values()
    assert (saved["step"], saved["checkpoint"]) == (4, str(run_dir / "checkpoints" / "step-00000004"))
    other = losses(
        saved["checkpoint"], "--set", 'validation.paths=["docs/glossary.md"]', "--set", "validation.samples=8"
    )
    assert other[4]["samples"] == 8
    assert other[4]["loss"] != saved["loss"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--layout", "tp3pp1dp1"), "--layout tp3pp1dp1: tp3pp1dp1 is impossible: tp3 does not divide"),
        (("--set", 'validation.paths=["/nowhere"]'), '"/nowhere" is no file'),
        (("--set", "validation.paths=[]", "--set", "validation.samples=null"), "validation"),
        (("--set", "model.num_layers=3"), "does not fit this model"),
    ],
)
def test_bad_input(run_dir: Path, arguments: tuple[str, ...], says: str) -> None:
    done = liver("evaluate", str(run_dir), *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_no_run_or_has_no_checkpoint(run_dir: Path, tmp_path: Path) -> None:
    done = liver("evaluate", str(tmp_path))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    checkpoint = run_dir / "checkpoints" / "step-00000004"
    damaged = next(path for path in checkpoint.iterdir() if path.suffix not in (".json", ""))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert [*losses(str(run_dir))] == [2], "one that is damaged is passed over"
        done = liver("evaluate", str(checkpoint))
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "liver-slurm: error: " in done.stderr
    finally:
        damaged.write_bytes(whole)


@pytest.mark.parametrize("at", [0.3, 4.0])
def test_ctrl_c_leaves_nothing(run_dir: Path, tmp_path: Path, at: float) -> None:
    command = Command(
        "evaluate", lambda _: ["liver_slurm", "evaluate", str(run_dir), "--set", "validation.samples=100000"]
    )
    outcome = interrupt(command, tmp_path / "there", at)
    assert not outcome.problems(command, signal.SIGINT, SECONDS * slowness())
