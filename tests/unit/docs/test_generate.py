"""docs/generate.py: what the code says stands in the documents as it is now."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents import ROOT, generate

UPDATE = "run `make docs`"


@pytest.mark.parametrize("document", generate.documents(), ids=lambda path: path.name)
def test_generated_blocks_are_up_to_date(document: Path) -> None:
    text = document.read_text()
    assert generate.render(text) == text, UPDATE


def test_each_generator_is_used() -> None:
    used = {found["name"] for path in generate.documents() for found in generate.BLOCK.finditer(path.read_text())}
    assert used == set(generate.BLOCKS)


def test_every_package_says_what_is_in_it() -> None:
    rows = generate.rooms().splitlines()[2:]
    assert len(rows) == len(generate.packages()) > 20
    assert all(row.count("|") == 3 and row.endswith(". |") for row in rows)


def test_every_package_has_a_place_in_the_layers() -> None:
    inside = {name.partition(".")[0] for name in generate.packages()}
    modules = {path.stem for path in (ROOT / "liver_slurm").glob("*.py") if not path.stem.startswith("__")}
    placed = set(generate.layers().replace("·", " ").replace("│", " ").split()) - {"```text", "```", "▼"}
    assert inside | modules == placed


def test_a_stale_block_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: layers -->\nold\n<!-- end of layers -->\n")
    monkeypatch.setattr(generate, "documents", lambda: [page])
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setitem(generate.BLOCKS, "layers", lambda: "new")
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().out == "page.md: out of date; run make docs\n"
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    assert "\nnew\n" in page.read_text()
