from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.engine.megatron import without_cuda


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "x = torch.empty(1, device=torch.cuda.current_device())",
            "x = torch.empty(1, device=torch.get_default_device())",
        ),
        ("x = torch.zeros(1, device='cuda')", 'x = torch.zeros(1, device="cpu")'),
        ("if t.type() == 'torch.cuda.HalfTensor':", 'if t.type() == "torch.HalfTensor":'),
        ("x = torch.cuda.LongTensor([1])", "x = torch.cuda.LongTensor([1])"),
        ("loss = loss.cuda(torch.cuda.current_device())", "loss = loss.cpu()"),
        ("current_stream = torch.cuda.current_stream()", "current_stream = torch.cpu.current_stream()"),
        ("no accelerator here", "no accelerator here"),
    ],
)
def test_rewrite(before: str, after: str) -> None:
    assert without_cuda.rewrite("megatron.core.x", before) == after


def test_kernels_of_triton_are_stood_in_for_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "import triton\nimport triton.language as tl\n"
        "@triton.jit\ndef kernel(SIZE: tl.constexpr):\n    pass\n"
        "@triton.autotune(configs=[triton.Config({})], key=['n'])\n@triton.jit\ndef tuned():\n    pass\n"
    )
    name = "megatron.core.transformer.moe.ops.paged_stash"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    found: dict[str, Any] = {}
    exec(without_cuda.rewrite(name, source), found)
    for kernel in (found["kernel"], found["tuned"]):
        with pytest.raises(RuntimeError, match="needs triton, which is not installed"):
            kernel[1](2)
    assert without_cuda.rewrite("megatron.core.ssm.ops.ssd_bmm", source) == source, "tried in a block that may fail"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())
    assert without_cuda.rewrite(name, source) == source


def test_late_install_is_refused_where_cuda_is_absent() -> None:
    program = (
        "import sys, types, torch\n"
        "torch.cuda.is_available = lambda: False\n"
        "sys.modules['megatron.core.utils'] = types.ModuleType('megatron.core.utils')\n"
        "from liver_slurm.engine.megatron import without_cuda\n"
        "without_cuda.install()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "megatron.core.utils was imported before" in done.stderr


def test_nothing_is_installed_where_cuda_is_present() -> None:
    program = (
        "import sys, torch\n"
        "torch.cuda.is_available = lambda: True\n"
        "before = list(sys.meta_path)\n"
        "from liver_slurm.engine.megatron import without_cuda\n"
        "without_cuda.install()\n"
        "assert sys.meta_path == before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_rewritten_code_is_kept_beside_the_source_until_that_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    module = tmp_path / "part.py"
    (tmp_path / "__pycache__").mkdir()

    def run(source: str) -> object:
        found: dict[str, object] = {}
        exec(without_cuda.compiled(source, str(module)), found)
        return found["value"]

    assert run("value = 1") == 1
    (kept,) = (tmp_path / "__pycache__").iterdir()
    before = kept.stat().st_mtime_ns
    assert run("value = 1") == 1
    assert kept.stat().st_mtime_ns == before
    assert run("value = 2") == 2
    assert [kept] == list((tmp_path / "__pycache__").iterdir())


def test_code_that_cannot_be_kept_runs_all_the_same(tmp_path: Path) -> None:
    found: dict[str, object] = {}
    exec(without_cuda.compiled("value = 3", str(tmp_path / "nowhere" / "part.py")), found)
    assert found["value"] == 3


def test_a_worker_does_not_import_the_compiler() -> None:
    program = "import sys; import liver_slurm.worker.worker; assert 'torch._inductor.compile_fx' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
