"""Beside Transformer Engine: what Megatron-LM saves with its layers is read, tensor by tensor."""

from __future__ import annotations

import importlib.util
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


def test_what_megatron_saves_with_its_layers_is_read(tmp_path: Path) -> None:
    from checkpoint_files import tensors
    from megatron_lm import MODELS, arguments

    from liver_slurm.engine.torch_dist.importing import import_model

    folders = [str(ROOT), str(ROOT / "tests" / "support"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("transformer_engine_rank.py")), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
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
