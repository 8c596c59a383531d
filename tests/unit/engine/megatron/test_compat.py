"""What a version of megatron-core or torch lacks is said in one line, whichever name it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from liver_slurm.base.errors import BadInput
from liver_slurm.engine.megatron import compat
from liver_slurm.parallel import torch_private

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(compat.__file__).parents[3]


@pytest.fixture(autouse=True)
def everything_imported() -> None:
    """Modules of megatron-core whose private names are used."""
    from liver_slurm.engine.megatron import engine

    assert engine.MegatronEngine
    compat.index_header()


@pytest.mark.parametrize(("module", "path"), compat._NEEDED, ids=str)
def test_a_private_name_that_is_not_there_is_named(module: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compat.check_private_names()
    *outer, name = path.split(".")
    place = f"{compat.PREFIX}{module}" + "".join(f".{part}" for part in outer)
    monkeypatch.setattr(compat, "_version", lambda: "0.21.0")
    monkeypatch.delattr(f"{place}.{name}")
    with pytest.raises(BadInput) as caught:
        compat.check_private_names()
    shown = ".".join((*outer, name)) if outer else f"{module}.{name}"
    assert str(caught.value) == (
        f"megatron-core 0.21.0 has no {shown}, which is needed here; known to work: {compat.KNOWN}"
    )


def absent_name() -> None:
    from megatron.core.optimizer import an_optimizer_of_old  # noqa: F401


def absent_module() -> None:
    import megatron.core.optimizer.of_old  # noqa: F401


def absent_dependency() -> None:
    raise ModuleNotFoundError("No module named 'triton'", name="triton")


def absent_package() -> None:
    raise ModuleNotFoundError("No module named 'megatron'", name="megatron")


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (absent_name, r"megatron-core \S+ has no optimizer\.an_optimizer_of_old, which is needed here"),
        (absent_module, r"megatron-core \S+ has no optimizer\.of_old, which is needed here"),
        (absent_dependency, r"megatron-core \S+ cannot be imported: No module named 'triton'"),
        (absent_package, "megatron-core is not installed"),
    ],
)
def test_an_import_that_fails_is_one_line(fails: Callable[[], None], said: str) -> None:
    with pytest.raises(BadInput, match=f"^{said}; known to work: {re.escape(compat.KNOWN)}$"), compat.imports():
        fails()


def test_an_object_without_what_is_asked_of_it_is_named() -> None:
    with pytest.raises(BadInput, match=r"^megatron-core \S+ has no object\.model_param_gbuf_map, which is needed here"):
        compat.distributed_state(object(), None)


def test_a_command_says_it_in_one_line_with_exit_code_2(tmp_path: Path) -> None:
    """A megatron-core of which one private method has another name, as a user would meet it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.abc, importlib.machinery, sys\n"
        "class Loader(importlib.machinery.SourceFileLoader):\n"
        "    def exec_module(self, module):\n"
        "        super().exec_module(module)\n"
        "        del module.DistributedOptimizer._get_model_param_range_map\n"
        "from liver_slurm.engine.megatron import without_cuda\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name != 'megatron.core.optimizer.distrib_optimizer':\n"
        "            return None\n"
        "        spec = importlib.machinery.PathFinder.find_spec(name, path, target)\n"
        "        spec.loader = Loader(name, spec.loader.path)\n"
        "        return spec\n"
        "without_cuda.install()\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    command = [sys.executable, "-m", "liver_slurm", "plan", "configs/gpt-tiny.toml"]
    done = subprocess.run(
        [*command, "--from", "tp1pp1dp1", "--to", "tp2pp1dp1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    *others, last = done.stderr.splitlines()
    assert re.search(
        r"megatron-core \S+ has no DistributedOptimizer\._get_model_param_range_map, which is needed here", last
    )
    assert all("torch/utils" in line for line in others), "torch warns of builds and machines that do not match"


def test_the_versions_that_are_said_are_those_that_pip_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest, highest = compat.KNOWN.split(" to ")
    major, minor = map(int, highest.split("."))
    assert f"megatron-core>={lowest},<{major}.{minor + 1}" in project["dependencies"]
    assert f"torch>={torch_private.KNOWN.split(' to ')[0]}" in project["dependencies"]


def test_a_name_that_torch_lacks_is_named() -> None:
    torch_private.check_names("Tensor.view")
    with pytest.raises(
        BadInput, match=r"^torch \S+ has no torch\.Tensor\._of_old, which is needed here; known to work"
    ):
        torch_private.check_names("Tensor.view", "Tensor._of_old")


def test_optimizers_are_those_of_torch_whatever_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Transformer Engine is, megatron-core takes its own: whose updates are not replayed bit for bit."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    class Fused(torch.optim.Optimizer):
        """Stands for those of Transformer Engine."""

    for module, name, value in (
        (optimizer, "Adam", Fused),
        (optimizer, "SGD", Fused),
        (optimizer, "USING_PYTORCH_OPTIMIZER", False),
        (distrib_optimizer, "Adam", Fused),
        (distrib_optimizer, "HAVE_APEX_OR_TE", True),
    ):
        monkeypatch.setattr(module, name, value)
    compat.use_torch_optimizers()

    class Made(Exception):
        """Ends the construction once the inner optimizer is there."""

    def wrap(inner: torch.optim.Optimizer, *_: object) -> None:
        raise Made(type(inner))

    monkeypatch.setattr(optimizer, "FP32Optimizer", wrap)
    for name, expected in (("adam", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        config = optimizer.OptimizerConfig(optimizer=name, lr=0.1, use_distributed_optimizer=False)
        with pytest.raises(Made) as caught:
            optimizer._get_megatron_optimizer_based_on_param_groups(config, [], [{"params": [torch.zeros(3)]}])
        assert caught.value.args == (expected,)
