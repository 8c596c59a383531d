"""Functions that a job names are looked for before it runs, and nobody's module is imported for that."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.config.functions import function_problems
from liver_slurm.config.load import load_job
from liver_slurm.config.schema import LiveSection

TINY = Path(__file__).parents[3] / "configs" / "gpt-tiny.toml"
OWN = """
import sys
raise RuntimeError("nobody imports this to look at it")

if sys.version_info > (3, 9):
    def build(config): ...
else:
    build = None
class Nested:
    def make(self): ...
try:
    from json import loads as read
except ImportError:
    pass
"""


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_code.py").write_text(OWN)
    (tmp_path / "makes_names.py").write_text("def __getattr__(name): return print")
    (tmp_path / "broken.py").write_text("def f(:\n")
    inner = tmp_path / "own_package" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("raise RuntimeError")
    (inner / "leaf.py").write_text("f = print")


def said(name: str, live: LiveSection | None = None) -> list[str]:
    return [one.text for one in function_problems("model.provider", name, live or LiveSection())]


@pytest.mark.parametrize(
    "name",
    [
        "own_code:build",
        "own_code:Nested.make",
        "own_code:read",
        "makes_names:anything",
        "own_package.inner.leaf:f",
        "own_package:inner",
        "os.path:join",
        "json.decoder:JSONDecoder",
        "math:sqrt",
    ],
)
def test_what_is_there_is_found(name: str) -> None:
    assert said(name) == []
    assert name.partition(":")[0] not in {"own_code", "own_package"} & set(sys.modules)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nope:f", "is not found: there is no module nope; allowed: "),
        ("own_package.inner.other:f", "there is no module own_package.inner.other"),
        ("own_code.inner:f", "there is no module own_code.inner"),
        ("own_code:biuld", "own_code.py has no biuld; the nearest is build"),
        ("broken:f", "broken.py: invalid syntax"),
    ],
)
def test_what_is_not_there_is_refused(name: str, says: str) -> None:
    (text,) = said(name)
    assert says in text


@pytest.mark.parametrize(
    ("live", "key"),
    [
        (LiveSection(setup=("module load mine",)), "live.setup"),
        (LiveSection(python="/opt/env/bin/python"), "live.python"),
        (LiveSection(sbatch=("--container=/images/ours",)), "live.sbatch"),
    ],
)
def test_a_job_with_an_environment_of_its_own_may_have_it(
    live: LiveSection, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert said("nope:f", live) == []
    assert f"it is looked for again when the run starts, as {key} may say where" in caplog.messages[0]


@pytest.mark.parametrize("key", ["model.provider", "data.provider", "validation.provider", "train.loop"])
def test_every_key_that_names_one_is_checked(key: str) -> None:
    with pytest.raises(BadInput, match=rf'{key}: "nope:f" is not found'):
        load_job(TINY, [f"{key}=nope:f"], Path("/dev/null"))
