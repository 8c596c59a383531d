"""Relative links of all documents lead to a file, and to a heading in it."""

from __future__ import annotations

from pathlib import Path

import documents
import pytest


@pytest.mark.parametrize("document", documents.documents(), ids=lambda path: path.name)
def test_relative_links_resolve(document: Path) -> None:
    assert documents.broken_links(document) == []


@pytest.mark.parametrize(
    "target", ["nowhere.md", "glossary.md#no-such-heading", "#no-such-heading", "../../outside.md"]
)
def test_a_broken_link_is_found(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    (tmp_path / "glossary.md").write_text("# Glossary\n\n## Words, and more\n")
    page = tmp_path / "page.md"
    page.write_text(f"[good](glossary.md#words-and-more) and [bad]({target})\n")
    assert len(documents.broken_links(page)) == 1


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [documents.ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = [found["target"] for found in documents.LINK.finditer(page.read_text()) if found["target"]]
        paths = [(page.parent / target.partition("#")[0]).resolve() for target in targets if ":" not in target]
        waiting += [path for path in paths if path.suffix == ".md"]
    assert set(documents.documents()) <= reached
