"""The site: links are turned into its own, every page has its place, and pictures are small."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from documents import ROOT, generate


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = _load("site_hooks")
pictures = _load("pictures")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("README.md", "docs/usage.md", "docs/pictures/one.png", "configs/job.toml", "plugins/a/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("document", "text", "expected"),
    [
        ("README.md", "[use](docs/usage.md#a-job)", "[use](usage.md#a-job)"),
        ("docs/usage.md", "[read](../README.md)", "[read](index.md)"),
        ("docs/usage.md", "[job](../configs/job.toml)", "[job](source/configs/job.toml)"),
        ("docs/usage.md", "![shot](pictures/one.png)", "![shot](pictures/one.png)"),
        ("docs/usage.md", "[`a/`](../plugins/a) is a folder", "`a/` is a folder"),
        ("plugins/a/README.md", "[use](../../docs/usage.md)", "[use](../../../usage.md)"),
        (
            "docs/usage.md",
            "[far](https://slurm.example/a) [here](#there)",
            "[far](https://slurm.example/a) [here](#there)",
        ),
        ("docs/usage.md", "```sh\n[no](../README.md)\n```\n", "```sh\n[no](../README.md)\n```\n"),
    ],
)
def test_links_become_those_of_the_site(tree: Path, document: str, text: str, expected: str) -> None:
    assert hooks.rewritten(document, text, tree) == expected


def test_what_is_linked_to_comes_along(tree: Path) -> None:
    text = "[job](../configs/job.toml) [b](../plugins/a/README.md) [c](../README.md) [d](usage.md) [e](../gone.md)"
    assert hooks.linked("docs/usage.md", text, tree) == ["configs/job.toml", "plugins/a/README.md"]


def test_a_place_leads_back_to_its_file() -> None:
    for path in ("README.md", "docs/usage.md", "plugins/a/README.md"):
        assert hooks.origin(hooks.place(path)) == path


def test_every_page_is_in_the_navigation_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r": ((?:source/)?[\w/-]+\.md)$", text[text.index("\nnav:") :], re.MULTILINE)
    assert len(listed) == len(set(listed))
    beside = {hooks.place(str(path.relative_to(ROOT))) for path in (ROOT / "plugins").rglob("*.md")}
    assert set(listed) == {hooks.place(str(path.relative_to(ROOT))) for path in generate.documents()} | beside


def test_the_tutorials_pictures_are_those_that_are_made() -> None:
    shown = re.findall(r"!\[[^\]]+\]\(pictures/([\w.-]+)\)", (ROOT / "docs" / "tutorial.md").read_text())
    lying = sorted(path.name for path in pictures.PICTURES.iterdir())
    assert sorted(shown) == lying == sorted(pictures.VIEWS)
    assert all((pictures.PICTURES / name).stat().st_size <= pictures.LARGEST for name in lying)


def test_a_folder_without_the_demos_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has not the two runs of a demo; make them: make demo RUNS="):
        pictures.main([str(tmp_path)])


def test_references_have_everything() -> None:
    from liver_slurm.cli.main import COMMANDS
    from liver_slurm.config.keys import known_keys
    from liver_slurm.rundir.metrics import StepMetrics

    commands, keys, steps = generate.commands(), generate.keys(), generate.steps()
    assert set(COMMANDS) <= set(re.findall(r"^## (\w+)$", commands, re.MULTILINE))
    assert "### cluster up" in commands
    assert "| `--nodes N` | nodes n1…nN (default: 6) |" in commands
    assert {name.rpartition(".")[2] for name in known_keys() if "." in name} - {"component", "unit"} <= set(
        re.findall(r"^\| `(\w+)` \|", keys, re.MULTILINE)
    )
    assert re.findall(r"^\| `(\w+)` \|", steps, re.MULTILINE) == list(StepMetrics.__struct_fields__)
