"""Runs that resume each other with other batches, as plain processes: each sample is taken once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import paced_samples
import pytest
from checkpoint_files import newest
from recorded_samples import RECORDS, recorded

from liver_slurm.rundir.checkpoints import read_meta
from liver_slurm.rundir.metrics import read_metrics

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


class Run:
    """A whole run, which has ended."""

    def __init__(self, root: Path, *arguments: str, **train: object) -> None:
        records = root / f"records-{len(list(root.iterdir()))}"
        records.mkdir()
        settings = {f"train.{key}": value for key, value in train.items()}
        overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        done = subprocess.run(
            [sys.executable, "-m", "liver_slurm", "run", *arguments, *overrides, "--json"],
            env={**os.environ, "PYTHONPATH": paced_samples.PYTHON_PATH, RECORDS: str(records)},
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        self.said, self.path = done.stderr, Path(json.loads(done.stdout)["run_dir"])
        self.samples = recorded(records)
        lines = list(read_metrics(self.path / "metrics.jsonl"))
        self.consumed = {line.step: line.consumed_samples for line in lines}
        self.tokens = [line.tokens // 64 for line in lines]


def test_resumed_with_other_batches_each_sample_is_taken_once_in_its_turn(tmp_path: Path) -> None:
    """Also by one that joins a resumed run, and in a resumed run that is resumed with a ramp."""
    job = ("configs/gpt-tiny.toml", *(part for one in paced_samples.OVERRIDES for part in ("--set", one)))
    own = (f"job.run_root={tmp_path}/runs", 'elastic.layouts=["tp1pp1dp1", "tp1pp1dp2"]', "train.lr_warmup_steps=0")
    provider = (part for one in ("data.provider=recorded_samples:provide", *own) for part in ("--set", one))
    first = Run(tmp_path, *job, *provider, "--workers", "2", steps=3, global_batch_size=8)
    assert first.consumed == {1: 8, 2: 16, 3: 24}

    one = ("--set", "elastic.initial=tp1pp1dp1", "--workers", "1", "--standbys", "1", "--resize", "5:tp1pp1dp2")
    second = Run(tmp_path, "--resume", str(first.path), *one, steps=6, global_batch_size=12, micro_batch_size=3)
    assert "training goes on with sample number 24, the one after the last that was taken" in second.said
    assert (second.consumed, second.tokens) == ({4: 36, 5: 48, 6: 60}, [12, 12, 12])

    ramp, elastic = "[4, 4, 100]", ("--set", "elastic.initial=tp1pp1dp2", "--workers", "2")
    arguments = ("--resume", str(second.path), *elastic)
    third = Run(tmp_path, *arguments, steps=9, global_batch_size=16, micro_batch_size=2, rampup_batch_size=ramp)
    assert third.consumed == {7: 68, 8: 80, 9: 92}, "from 67 samples on a step has 12 of them"

    fourth = Run(tmp_path, "--resume", str(third.path), "--workers", "2", steps=11)
    assert fourth.consumed == {10: 104, 11: 120}
    assert read_meta(newest(fourth.path / "checkpoints"))["consumed_samples"] == 120
    runs = (first, second, third, fourth)
    assert [run.samples for run in runs] == [list(range(*ends)) for ends in ((0, 24), (24, 60), (60, 92), (92, 120))]
