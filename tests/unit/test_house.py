"""The house rules that no linter checks: sizes, rooms of the coordinator, and where a module's tests are found."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = (ROOT / "liver_slurm", ROOT / "plugins", ROOT / "docs", ROOT / "examples")
MODULE_LINES, FUNCTION_LINES = 400, 60
TEST_NAME_WORDS = 13

STORIES = {
    "house": "the rules of this file",
    "cli/api": "the Python API does what the commands do",
    "cli/cli": "what holds for every command",
    "cli/help": "the help of every command",
    "cli/hostile_text": "what others write into a run's files does nothing to the terminal",
    "cli/json": "the documents of --json are a contract",
    "config/shipped": "the job files in configs/",
    "coordinator/liveness": "faults of every kind end in a steady run or none",
    "coordinator/machine_stateful": "anything may happen to the core, in any order",
    "coordinator/recovery": "what a coordinator that is started again finds in the journal",
    "coordinator/transcripts": "stories of the protocol, message by message",
    "doctor/checks": "facts to findings, of cluster and machine",
    "engine/data/data": "from text to samples, through all its modules",
    "rundir/damaged_lines": "whoever reads a run's files passes a damaged line over",
    "scheduler/slurm/submitit": "the users' executor on a cluster that is made up",
    "scheduler/slurm/templates": "the batch scripts in sbatch/",
    "advisor/against_libraries": "the estimators beside those of other libraries",
    "transfer/mirror/mirror": "an owner and its keeper over a real connection",
    "transfer/mirror/snapshots": "owners and their keeper over real connections: whoever dies, whenever",
    "worker/clean_changes": "of 10,000 changes without a defect none is taken for one with",
    "worker/mirrored_moves": "which moves there are where some stand in for others",
    "docs/code_blocks": "code in the documents",
    "docs/contents": "what a long page says at its top of what is on it",
    "docs/file_names": "files that the documents name",
    "docs/links": "links between the documents",
    "docs/site": "the documents as a site, its pictures and references",
    "docs/words": "words of the documents",
}
"""Test files that are of no single module, with what they tell; all others are named after theirs."""
NO_IMPERATIVES = re.compile(
    r"(a|all|an|as|at|both|bytes|each|every|everything|for|from|how|in|it|its|nobody|none|nothing|of|one|our|seconds|"
    r"several|that|the|their|there|these|this|those|two|what|when|where|whether|which|who|whose|why)\b",
    re.IGNORECASE,
)
"""Words that no function's docstring begins with: its first line says what the function does."""


def modules(*roots: Path) -> Iterator[Path]:
    """Yield every Python file below the roots, caches left out."""
    for root in roots:
        yield from (path for path in sorted(root.rglob("*.py")) if "__pycache__" not in path.parts)


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each function's name and its number of lines, decorators left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def test_modules_are_short() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules(*PRODUCT)}
    assert {name: lines for name, lines in long.items() if lines > MODULE_LINES} == {}


def test_functions_fit_on_a_screen() -> None:
    long = {
        f"{path.relative_to(ROOT)}: {name}": lines
        for path in modules(*PRODUCT)
        for name, lines in functions(ast.parse(path.read_text()))
        if lines > FUNCTION_LINES
    }
    assert long == {}


def test_the_coordinator_has_two_rooms() -> None:
    folder = ROOT / "liver_slurm" / "coordinator"
    files = [path for path in modules(folder) if path.name != "__init__.py"]
    assert {path.parent.name for path in files} == {"coordinator", "core", "runtime"}
    assert len(files) <= 35  # one of its own for registered workers, who is let in, step barriers, and signals


def test_test_files_are_named_after_a_module_or_listed_as_a_story() -> None:
    unit = ROOT / "tests" / "unit"
    found = {str(path.relative_to(unit).with_name(path.stem.removeprefix("test_"))) for path in unit.rglob("test_*.py")}
    assert found - {name for name in found if _module_of(name)} == set(STORIES)


def _module_of(name: str) -> bool:
    """Whether a test's name, a path below tests/unit, is that of a module or package in a room of the same name."""
    room, _, last = name.rpartition("/")
    rooms = [ROOT / "liver_slurm" / room, ROOT / room]
    if room == "coordinator":  # its two rooms are small enough to be tested side by side
        rooms += [rooms[0] / "core", rooms[0] / "runtime"]
    places = [place for folder in rooms for place in (folder / f"{last}.py", folder / f"{last}.md", folder / last)]
    return any(place.exists() for place in places) or (room, last) == ("docs", "readme")


def fragments(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each function whose docstring does not begin with an imperative, and its first line.

    A property is a value, and is named as one. A constructor's docstring may begin with its arguments.
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name == "__init__":
            continue
        first = (ast.get_docstring(node) or "").partition("\n")[0]
        is_value = any("property" in ast.unparse(one) for one in node.decorator_list)
        says_nothing = re.match(r"See (:|the )", first)
        no_verb = first.startswith(("`", ":")) or NO_IMPERATIVES.match(first)
        if says_nothing or (no_verb and not is_value):
            yield node.name, first


def test_docstrings_begin_with_an_imperative() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}": first
        for path in modules(*PRODUCT)
        for name, first in fragments(ast.parse(path.read_text()))
    }
    assert found == {}


def test_fragments_are_found() -> None:
    texts = {
        "a": "Return the step.",
        "b": "The step.",
        "c": "See :class:`B`.",
        "d": "``step``, doubled.",
        "e": "Whether it is over.",
    }
    tree = ast.parse("".join(f'def {name}():\n    """{text}"""\n' for name, text in texts.items()))
    assert dict(fragments(tree)) == {name: text for name, text in texts.items() if name != "a"}
    assert not list(fragments(ast.parse('@property\ndef step(): "The step."\n')))


def test_names_of_tests_are_short() -> None:
    names = {
        node.name
        for path in modules(ROOT / "tests")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name for name in names if name.startswith("test_") and name.count("_") > TEST_NAME_WORDS} == set()


def test_sizes_are_counted() -> None:
    tree = ast.parse("def short(): pass\n\n@decorated\ndef long(\n    a,\n):\n    return a\n")
    assert dict(functions(tree)) == {"short": 1, "long": 4}
    with pytest.raises(SyntaxError):
        ast.parse("def")


@pytest.mark.parametrize(("name", "code"), [("slurm-4.out", 1), ("runs", 0)])
def test_a_run_of_the_tests_leaves_nothing_in_the_root(tmp_path: Path, name: str, code: int) -> None:
    """What git ignores may stay: caches, and runs that a user keeps there."""
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "tests" / "test_leaves.py").write_text(f"def test(): open({name!r}, 'w').close()\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, f"{name}: a test writes" in done.stdout) == (code, bool(code)), done.stdout


HARD_CLUSTER = """
from types import SimpleNamespace
from liver_slurm.base.errors import ClusterError
from liver_slurm.devcluster import lifecycle, spec

def up(spec):
    (spec.directory / "etc").mkdir()
    (spec.directory / "etc" / "slurm.conf").touch()
    if not {comes_up}:
        raise ClusterError("it did not come up")
    return SimpleNamespace(slurm_conf=spec.directory / "etc" / "slurm.conf")

def down(path):
    if {stays}:
        raise ClusterError("a slurmd is left")
    (path / "etc" / "slurm.conf").unlink()

lifecycle.up, lifecycle.down = up, down
spec.ClusterSpec = lambda directory, **_: SimpleNamespace(directory=directory)

def test(cluster):
    pass
"""


@pytest.mark.parametrize("comes_up", [True, False])
@pytest.mark.parametrize("stays", [True, False])
def test_a_tests_cluster_keeps_its_files_while_a_daemon_is_left(tmp_path: Path, comes_up: bool, stays: bool) -> None:
    """Its daemons are found by them."""
    for name in ("tests", "tmp", "bin"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "bin" / "slurmctld").touch(mode=0o755)
    (tmp_path / "tests" / "test_uses.py").write_text(HARD_CLUSTER.format(comes_up=comes_up, stays=stays))
    environment = {
        **os.environ, "TMPDIR": str(tmp_path / "tmp"), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert ("a slurmd is left" in done.stdout) == stays, done.stdout
    assert len(list((tmp_path / "tmp").glob("liver-cluster-*/etc/slurm.conf"))) == stays
    assert len(list((tmp_path / "tmp").glob("liver-cluster-*"))) == stays
