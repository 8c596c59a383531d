"""Training loops of one's own, resized: the examples, and plain tensors; the losses are those of plain PyTorch."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import paced_loop
import pytest
import torch
from torch.nn import functional as F

from liver_slurm.config.load import load_job
from liver_slurm.config.schema import JobConfig

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SUPPORT = Path(paced_loop.__file__).parent


def example(name: str) -> Any:
    """The example's module."""
    spec = importlib.util.spec_from_file_location(f"{name}_loop", EXAMPLES / name / f"{name}_loop.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(
    home: Path, job: Path, standbys: int, *resizes: str, batch: int = 12
) -> tuple[list[float], list[dict[str, Any]]]:
    """Losses of one run that begins with two workers, and its reconfigurations."""
    paths = [str(SUPPORT), str(job.parent)]
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    options = [f"--set=job.run_root={home / 'runs'}", f"--set=train.global_batch_size={batch}"]
    options += [f"--resize={text}" for text in resizes]
    command = [sys.executable, "-m", "liver_slurm.cli.main", "run", str(job), "--workers=2", f"--standbys={standbys}"]
    done = subprocess.run(
        [*command, *options, "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=300,
    )
    logs = "".join(f"\n== {log.name}\n{log.read_text()[-3000:]}" for log in home.glob("runs/*/logs/*.log"))
    assert done.returncode == 0, done.stderr + logs
    run_dir = Path(json.loads(done.stdout)["run_dir"])
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, len(lines) + 1)], "every step once"
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], [one for one in events if one["event"] == "reconfiguration_committed"]


def config_of(job: Path) -> JobConfig:
    return load_job(job, site=Path("/dev/null"), workers=2, files=False)


def assert_moved(changes: list[dict[str, Any]], *layouts: str) -> None:
    assert [change["to"] for change in changes] == [*layouts]
    assert all(change["mode"] == "pause" and change["digests_checked"] > 0 for change in changes)


def test_ddp_grows_and_shrinks(tmp_path: Path) -> None:
    # LS-1, LS-4
    job = EXAMPLES / "ddp" / "job.toml"
    # 25 samples on two and on three ranks: shares are uneven.
    found, changes = train(tmp_path, job, 1, "8:tp1pp1dp3", "16:tp1pp1dp1", batch=25)
    assert_moved(changes, "tp1pp1dp3", "tp1pp1dp1")

    config, points = config_of(job), example("ddp").points
    torch.manual_seed(config.train.seed)
    layers = [torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3)]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.train.steps)
    expected = []
    for step in range(config.train.steps):
        inputs, labels = points(range(25 * step, 25 * step + 25))
        loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        expected.append(float(loss.detach()))
    assert found == pytest.approx(expected, rel=2e-6)
    assert found[-1] < 0.7 * found[0], "it learns"


@pytest.mark.slow
def test_fsdp2_shares_its_state_out_among_any_number_of_ranks(tmp_path: Path) -> None:
    # 61 rows on three and on four ranks: shares are uneven.
    job = EXAMPLES / "fsdp2" / "job.toml"
    layouts = ("tp3pp1dp1", "tp2pp1dp2", "tp4pp1dp1", "tp1pp1dp1")
    found, changes = train(tmp_path, job, 2, *(f"{5 + 4 * index}:{one}" for index, one in enumerate(layouts)))
    assert_moved(changes, *layouts)

    config, loop = config_of(job), example("fsdp2")
    torch.manual_seed(config.train.seed)
    model = loop.Llama(config.train.seq_length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    expected = []
    for step in range(config.train.steps):
        tokens = loop.progressions(range(12 * step, 12 * step + 12), config.train.seq_length)
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(float(loss.detach()))
    assert found == pytest.approx(expected, rel=5e-6)
    assert found[-1] < 0.6 * found[0], "it learns"


@pytest.mark.slow
def test_plain_tensors_that_are_divided_by_hand_come_along(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        '[model]\nvocab_size = 61\n[train]\nloop = "paced_loop:replicated"\nsteps = 24\nseq_length = 16\n'
        'global_batch_size = 12\n[elastic]\nlayouts = ["tp1pp1dp2", "tp2pp1dp1", "tp2pp1dp2", "tp3pp1dp1"]\n'
    )
    layouts = ("tp2pp1dp2", "tp3pp1dp1", "tp1pp1dp2")
    resizes = [f"{6 + 5 * index}:{one}" for index, one in enumerate(layouts)]
    found, changes = train(tmp_path, job, 2, *resizes)
    assert_moved(changes, *layouts)
    expected = paced_loop.undisturbed(config_of(job), "replicated")
    assert found == pytest.approx([*expected.values()], rel=2e-6)
