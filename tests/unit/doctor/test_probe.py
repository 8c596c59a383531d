"""What a machine says of itself to the doctor."""

from __future__ import annotations

from pathlib import Path

import pytest

from liver_slurm.doctor import probe
from liver_slurm.doctor.facts import Card, TorchReport


def test_a_lock_that_is_held_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("x")
    assert probe._try_lock(file) == "granted"
    with file.open("r+b") as stream:
        probe.hold_lock(stream.fileno())
        assert file.read_text() == "x", "reading it lets nothing go"
        assert probe._try_lock(file) == "refused"
    assert probe._try_lock(file) == "granted"


def test_torch_says_which_cards_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that it lists and cannot use is not among them."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("from torch import cuda, version\n")
    (tmp_path / "torch" / "version.py").write_text("cuda = '12.8'\n")
    (tmp_path / "torch" / "cuda.py").write_text(
        "def device_count(): return 2\n"
        "def get_device_name(number): return 'NVIDIA A100'\n"
        "def get_device_capability(number):\n"
        "    if number: raise RuntimeError('CUDA error: all CUDA-capable devices are busy or unavailable')\n"
        "    return 8, 0\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe._import_torch() == TorchReport(cuda="12.8", cards=[Card("NVIDIA A100", (8, 0))])
