"""``liver-slurm plan``, from a job file to its document."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.cli import plan

JOB = """
[model]
num_layers = 3
hidden_size = 32
num_attention_heads = 4
ffn_hidden_size = 48
vocab_size = 300
[data]
paths = ["/nowhere/text.txt"]
[train]
steps = 1
seq_length = 16
global_batch_size = 8
precision = "bf16"
[live]
partition = "live"
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIVER_SITE", str(tmp_path / "site.toml"))
    (tmp_path / "site.toml").write_text("")
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    plan.add_parser(parser.add_subparsers())
    args = parser.parse_args(["plan", *map(str, arguments)])
    return int(args.run(args))


def document(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def cells(box: Any) -> set[tuple[int, ...]]:
    found: set[tuple[int, ...]] = {()}
    for start, size in zip(box["offset"], box["shape"], strict=True):
        found = {(*cell, index) for cell in found for index in range(start, start + size)}
    return found


def test_document(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = document(capsys, job, "--from", "tp2pp1dp2", "--to", "tp1pp2dp3", "--keep", "0,1,-,2,-,-")
    assert (told["from"], told["to"]) == ("tp2pp1dp2", "tp1pp2dp3")
    assert list(told["source"]) == [str(rank) for rank in range(4)]
    assert list(told["target"]) == [str(rank) for rank in range(6)]
    sizes = {"bfloat16": 2, "float32": 4}
    wanted: dict[tuple[int, str], list[tuple[int, ...]]] = {}
    arrived: dict[tuple[int, str], list[tuple[int, ...]]] = {}
    for rank, held in told["target"].items():
        for piece in held:
            wanted.setdefault((int(rank), piece["tensor"]), []).extend(cells(piece))
    remote = 0
    for move in told["moves"]:
        arrived.setdefault((move["target_rank"], move["tensor"]), []).extend(cells(move))
        if [0, 1, None, 2, None, None][move["target_rank"]] != move["source_rank"]:
            remote += math.prod(move["shape"]) * sizes[told["tensors"][move["tensor"]]["dtype"]]
    assert {key: sorted(found) for key, found in wanted.items()} == {
        key: sorted(found) for key, found in arrived.items()
    }
    assert remote == told["bytes_remote"] == told["bytes_remote_minimum"]
    assert told["max_send_over_mean"] <= 1.1
    state = {name.rpartition("@")[2] for name in told["tensors"] if "@" in name}
    assert state == {"master", "exp_avg", "exp_avg_sq"}


def test_bytes_are_those_of_the_moments_that_the_job_keeps(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts = "--from", "tp1pp1dp1", "--to", "tp1pp1dp1"
    kept = "--set", "train.moments_precision=bf16", "--set", "train.ema_decay=0.99"
    plain, told = (document(capsys, job, *layouts, *keys) for keys in ((), kept))
    kinds = {name.rpartition("@")[2]: info["dtype"] for name, info in told["tensors"].items() if "@" in name}
    assert kinds == {"master": "float32", "exp_avg": "bfloat16", "exp_avg_sq": "bfloat16", "ema": "float32"}
    elements = sum(math.prod(info["shape"]) for name, info in told["tensors"].items() if name.endswith("@ema"))
    assert told["bytes_total"] - plain["bytes_total"] == elements * (4 - 2 * 2)


def test_summary(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(job, "--from", "tp1pp1dp2", "--to", "tp1pp1dp4") == 0
    out = capsys.readouterr().out
    assert out.startswith("tp1pp1dp2 → tp1pp1dp4\n")
    assert "2 → 4: 2 join, 0 leave" in out


def test_best_ranks_of_the_same_workers_move_less(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Worker 2 of tp1pp2dp2 is on the second stage; rank 2 of eight is on the first."""
    layouts = "--from", "tp1pp2dp2", "--to", "tp1pp2dp4"
    plain, best = (document(capsys, job, *layouts, *keep) for keep in ((), ("--keep", "best")))
    assert best["bytes_remote"] == best["bytes_remote_minimum"] < plain["bytes_remote"]
    assert best["bytes_total"] == plain["bytes_total"]
    stage_1 = {move["target_rank"] for move in best["moves"] if move["source_rank"] == 2}
    assert stage_1 & {4, 5, 6, 7}


def test_overrides_change_the_plan(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = document(
        capsys,
        job,
        "--from",
        "tp1pp1dp1",
        "--to",
        "tp1pp1dp1",
        "--set",
        "train.precision=fp32",
        "--set",
        "model.num_layers=2",
    )
    assert not any(name.endswith("@master") for name in told["tensors"])
    assert told["tensors"]["decoder.layers.mlp.linear_fc2.weight"]["shape"] == [2, 32, 48]
    assert told["bytes_remote"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "tp2", "--to", "tp1pp1dp1"], "--from: 'tp2' is not a layout; write one as tp2pp1dp2"),
        (["--from", "tp1pp1dp1", "--to", "tp3pp1dp1"], "--to tp3pp1dp1: tp3 does not divide num_attention_heads 4"),
        (["--from", "tp1pp1dp1", "--to", "tp1pp4dp1"], "--to tp1pp4dp1: pp4 is more than num_layers 3"),
        (["--from", "tp1pp1dp1", "--to", "tp1pp1dp2", "--keep", "0"], "has 1 entries, but the target world has 2"),
        (["--from", "tp1pp1dp1", "--to", "tp1pp1dp2", "--keep", "0,x"], "write source ranks and - separated by commas"),
    ],
)
def test_bad_input(job: Path, options: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        run(job, *options)
