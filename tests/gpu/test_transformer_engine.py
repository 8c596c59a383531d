"""Beside Transformer Engine: what Megatron-LM saves with its layers is read, and such a model changes layout live."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or importlib.util.find_spec("transformer_engine") is None,
        reason="no CUDA card, or Transformer Engine is not installed",
    ),
    pytest.mark.timeout(550),
]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "transformer_engine"
FOLDERS = [str(ROOT), str(ROOT / "tests" / "support"), *filter(None, [os.environ.get("PYTHONPATH")])]


def test_what_megatron_saves_with_its_layers_is_read(tmp_path: Path) -> None:
    from checkpoint_files import tensors
    from megatron_lm import MODELS, arguments

    from liver_slurm.engine.torch_dist.importing import import_model

    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("transformer_engine_rank.py")), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(FOLDERS)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in (each for each in MODELS if arguments(each).num_experts is None):
        imported = tensors(import_model(tmp_path / name / "saved", tmp_path / name / "imported", None).path)
        saved = torch.load(tmp_path / name / "weights.pt")
        layers = [each for each in saved if ".layers." in each and not each.endswith("_extra_state")]
        for key in layers:
            before, _, after = key.partition(".layers.")
            number, rest = after.split(".", 1)
            assert torch.equal(imported[f"{before}.layers.{rest}"][int(number)], saved[key]), key
        assert len(layers) > 8 * arguments(name).num_layers // 2


@pytest.mark.parametrize("provider", ["model", "model_in_fp8"])
def test_its_layers_train_on_through_live_changes(provider: str, tmp_path: Path) -> None:
    """examples/transformer_engine: to the same losses as undisturbed, and as long as the layout is the same, bit for
    bit."""
    found = []
    for resizes in ((), ("5:tp1pp2dp1", "5:tp2pp1dp1", "11:tp1pp2dp1")):
        folder = tmp_path / str(len(resizes))
        arguments = ["run", str(EXAMPLE / "job.toml"), "--workers", "2", "--standbys", "0", "--json"]
        arguments += [part for resize in resizes for part in ("--resize", resize)]
        for key, value in {"job.run_root": folder, "model.provider": f"te_model:{provider}"}.items():
            arguments += ["--set", f"{key}={value}"]
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from liver_slurm.cli.main import main; sys.exit(main())", *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLE), *FOLDERS])},
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        document = json.loads(done.stdout)
        assert len(document["reconfigurations"]) == len(resizes)
        lines = (Path(document["run_dir"]) / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(line)["loss"] for line in lines])
    undisturbed, changed = found
    assert changed[:11] == undisturbed[:11]
    assert changed == pytest.approx(undisturbed, rel=4e-3)
