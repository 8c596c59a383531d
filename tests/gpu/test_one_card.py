"""NCCL ranks that share one card, through ``liver-slurm run``: there and back is bitwise, and losses stay the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card: torch.cuda.is_available() is False"),
    pytest.mark.timeout(550),
]

ROOT = Path(__file__).parents[2]
STEPS = 16
THERE_AND_BACK, SAVED, AWAY = 5, 8, 11
"""Steps: a round trip; a checkpoint of what came back; once more into the other layout, to stay there."""
FIGURES = (
    *("from", "to", "mode", "pause_s", "exposed_s", "stream_s", "bytes_moved", "bytes_early", "bytes_gradients"),
    *("staging_peak_bytes", "gradient_staging_bytes", "memory_peak_bytes", "digests_checked"),
)
JOB = """
[model]
num_layers = 4
hidden_size = 256
num_attention_heads = 8
num_query_groups = 4
ffn_hidden_size = 512
[data]
paths = ["{text}"]
[train]
steps = {steps}
seq_length = 64
micro_batch_size = 1
global_batch_size = 8
lr = 1e-3
lr_warmup_steps = 4
precision = "{precision}"
distributed_optimizer = {distributed}
[[live.component]]
gpus_per_task = 1
[standby]
gpus_per_task = 1
[elastic]
initial = "{initial}"
[checkpoint]
every = {saved}
keep = 0
"""
BILLION = {
    "model.num_layers": 23,
    "model.hidden_size": 2048,
    "model.num_attention_heads": 16,
    "model.ffn_hidden_size": 5632,
    "checkpoint.every": 0,
    "checkpoint.at_end": "false",
}
"""1.04 billion parameters: 12.5 GB of masters and moments."""


def run(
    folder: Path,
    initial: str,
    precision: str,
    distributed: bool,
    resizes: list[str],
    workers: int,
    more: int,
    settings: dict[str, object] | None = None,
) -> Path:
    """One run; returns its directory. ``settings``: keys of the job file to change."""
    folder.mkdir()
    job = folder / "job.toml"
    text = ROOT / "liver_slurm" / "engine"
    job.write_text(
        JOB.format(
            text=text,
            steps=STEPS,
            saved=SAVED,
            precision=precision,
            distributed=str(distributed).lower(),
            initial=initial,
        )
    )
    arguments = ["run", str(job), "--workers", str(workers), "--standbys", str(more), "--json"]
    arguments += [part for resize in resizes for part in ("--resize", resize)]
    for key, value in {"job.run_root": folder / "runs", **(settings or {})}.items():
        arguments += ["--set", f"{key}={value}"]
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from liver_slurm.cli.main import main; sys.exit(main())", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HOME": str(folder)},
        timeout=300,
    )
    logs = "".join(f"\n== {log.name}\n{log.read_text()[-3000:]}" for log in folder.glob("runs/*/logs/*.log"))
    assert done.returncode == 0, done.stderr + logs
    document = json.loads(done.stdout)
    assert len(document["reconfigurations"]) == len(resizes), logs
    return Path(document["run_dir"])


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(line["tokens_per_s"] > 0 and line["tflops"] > 0 for line in lines)
    return [line["loss"] for line in lines]


def report_and_check(name: str, run_dir: Path) -> None:
    for line in (run_dir / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "reconfiguration_committed":
            assert event["digests_checked"] > 0 or event["bytes_moved"] == 0, "nothing is moved that both worlds share"
            print(name, json.dumps({key: event[key] for key in FIGURES}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("initial", "through", "workers", "more", "distributed"),
    [
        ("tp2pp1dp1", "tp1pp2dp1", 2, 0, True),
        ("tp1pp1dp2", "tp1pp1dp4", 2, 2, True),
        ("tp1pp1dp2", "tp1pp1dp4", 2, 2, False),
    ],
)
def test_round_trip(
    initial: str, through: str, workers: int, more: int, distributed: bool, precision: str, tmp_path: Path
) -> None:
    # Here: they import what a machine without torch lacks.
    from checkpoint_files import assert_same

    from liver_slurm.rundir.checkpoints import checkpoint_path

    undisturbed = run(tmp_path / "undisturbed", initial, precision, distributed, [], workers, 0)
    expected = losses(undisturbed)

    resizes = [f"{THERE_AND_BACK}:{through}", f"{THERE_AND_BACK}:{initial}", f"{AWAY}:{through}"]
    resized = run(tmp_path / "resized", initial, precision, distributed, resizes, workers, more)
    report_and_check("resized", resized)
    found = losses(resized)
    assert found[:AWAY] == expected[:AWAY]
    assert_same(checkpoint_path(resized / "checkpoints", SAVED), checkpoint_path(undisturbed / "checkpoints", SAVED))
    # The last steps in the other layout: other orders of summation, within what those give.
    assert found == pytest.approx(expected, rel=1e-6 if precision == "fp32" else 2e-3)


EXPERTS = {
    "model.num_moe_experts": 4,
    "model.moe_router_topk": 2,
    "model.moe_ffn_hidden_size": 256,
    "model.moe_aux_loss_coeff": 0.01,
}
FP8: dict[str, object] = {"train.fp8": "true"}
MUON: dict[str, object] = {"train.optimizer": "muon"}


@pytest.mark.parametrize(
    ("settings", "distributed", "initial", "layouts", "more", "close"),
    [
        (FP8, True, "tp2pp1dp1", ("tp1pp2dp1", "tp2pp1dp1", "tp1pp1dp2"), 0, 4e-3),
        (FP8, False, "tp1pp1dp2", ("tp2pp1dp2", "tp1pp1dp2", "tp2pp2dp1"), 2, 4e-3),
        (EXPERTS, True, "tp2pp1ep2etp1dp1", ("tp1pp1ep2dp2", "tp2pp1ep2etp1dp1", "tp2pp1dp1"), 0, 2e-3),
        (EXPERTS, True, "tp2pp1dp1", ("tp2pp1ep2etp1dp2", "tp2pp1dp1", "tp1pp1ep4dp4"), 2, 2e-3),
        (EXPERTS | FP8, True, "tp2pp1dp1", ("tp1pp1ep2dp2", "tp2pp1dp1", "tp2pp1ep2etp1dp1"), 0, 4e-3),
        (MUON, False, "tp2pp1dp1", ("tp1pp2dp1", "tp2pp1dp1", "tp1pp1dp2"), 0, 4e-3),
        (MUON | EXPERTS, False, "tp2pp1dp1", ("tp2pp1ep2etp1dp2", "tp2pp1dp1", "tp1pp1ep2dp2"), 2, 4e-3),
    ],
    ids=["fp8", "fp8-more", "etp", "etp-more", "experts-fp8", "muon", "muon-etp-more"],
)
def test_round_trip_of_what_else_is_trained(
    settings: dict[str, object],
    distributed: bool,
    initial: str,
    layouts: tuple[str, str, str],
    more: int,
    close: float,
    tmp_path: Path,
) -> None:
    """To the first layout, back to the initial one at the same step, and to the third to stay there."""
    undisturbed = run(tmp_path / "undisturbed", initial, "bf16", distributed, [], 2, 0, settings)
    expected = losses(undisturbed)
    resizes = [f"{at}:{layout}" for at, layout in zip((THERE_AND_BACK, THERE_AND_BACK, AWAY), layouts, strict=True)]
    resized = run(tmp_path / "resized", initial, "bf16", distributed, resizes, 2, more, settings)
    report_and_check("resized", resized)
    found = losses(resized)
    print("furthest", max(abs(one / other - 1) for one, other in zip(found, expected, strict=True)))
    assert found[:AWAY] == expected[:AWAY]
    assert found == pytest.approx(expected, rel=close)


def test_a_billion_parameters_in_overlap_as_in_a_pause(tmp_path: Path) -> None:
    found = {}
    for mode in ("overlap", "pause"):
        run_dir = run(
            tmp_path / mode,
            "tp2pp1dp1",
            "bf16",
            True,
            [f"{THERE_AND_BACK}:tp1pp2dp1", f"{AWAY}:tp2pp1dp1"],
            workers=2,
            more=0,
            settings={**BILLION, "stream.mode": mode},
        )
        report_and_check(mode, run_dir)
        found[mode] = losses(run_dir)
    assert found["overlap"] == found["pause"]
