"""Long pages say at the top what is on them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documents import ROOT, generate, prose

LONG = 1500
"""Words from which on a page says it."""
MADE = ("commands.md", "keys.md")
"""Pages that are made from the code, whose sections are those of the product."""


def long_pages() -> list[Path]:
    """Return the pages of docs/ that are written by hand and long."""
    pages = (path for path in generate.documents() if path.parent == ROOT / "docs" and path.name not in MADE)
    return [path for path in pages if len(path.read_text().split()) > LONG]


@pytest.mark.parametrize("page", long_pages(), ids=lambda path: path.name)
def test_a_long_page_lists_its_sections(page: Path) -> None:
    top, *sections = re.split(r"^## ", prose(page.read_text()), flags=re.MULTILINE)
    listed = re.findall(r"\[([^\]]+)\]\(#[^)]+\)", top[top.find("On this page:") :])
    assert listed == [section.partition("\n")[0] for section in sections]


def test_there_are_long_pages() -> None:
    assert ROOT / "docs" / "protocol.md" in long_pages()
