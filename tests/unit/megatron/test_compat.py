from __future__ import annotations

import subprocess
import sys

import pytest

from liver_slurm.megatron import compat


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
        ("no accelerator here", "no accelerator here"),
    ],
)
def test_rewrite(before: str, after: str) -> None:
    assert compat.rewrite("megatron.core.x", before) == after


def test_late_install_is_refused_where_cuda_is_absent() -> None:
    program = (
        "import sys, types, torch\n"
        "torch.cuda.is_available = lambda: False\n"
        "sys.modules['megatron.core.utils'] = types.ModuleType('megatron.core.utils')\n"
        "from liver_slurm.megatron import compat\n"
        "compat.install()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "megatron.core.utils was imported before" in done.stderr


def test_nothing_is_installed_where_cuda_is_present() -> None:
    program = (
        "import sys, torch\n"
        "torch.cuda.is_available = lambda: True\n"
        "before = list(sys.meta_path)\n"
        "from liver_slurm.megatron import compat\n"
        "compat.install()\n"
        "assert sys.meta_path == before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
