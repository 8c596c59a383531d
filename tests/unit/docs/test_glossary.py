"""The glossary: each term once, with a module that exists."""

from __future__ import annotations

import re

import pytest
from documents import ROOT

GLOSSARY = ROOT / "docs" / "glossary.md"


def sections() -> dict[str, list[list[str]]]:
    """The cells of each section's table rows, heading and ruler left out."""
    found: dict[str, list[list[str]]] = {}
    for part in re.split(r"^## ", GLOSSARY.read_text(), flags=re.M)[1:]:
        heading, *lines = part.splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        found[heading] = rows[2:]
    return found


def owned_terms() -> list[list[str]]:
    """Rows of all sections whose terms have a module."""
    return [row for heading, rows in sections().items() if not heading.startswith("Words") for row in rows]


def test_each_term_has_a_meaning_and_a_module_that_exists() -> None:
    terms = owned_terms()
    assert len(terms) > 60
    wrong = [row for row in terms if len(row) != 3 or not row[1].endswith(".") or not _exists(row[2])]
    assert not wrong


def test_each_term_stands_once() -> None:
    terms = [row[0] for row in owned_terms()]
    assert sorted(set(terms)) == sorted(terms)


@pytest.mark.parametrize("missing", ["`liver_slurm/anew.py`", "liver_slurm/base/errors.py", ""])
def test_a_module_that_does_not_exist_is_noticed(missing: str) -> None:
    assert not _exists(missing)


def _exists(cell: str) -> bool:
    named = re.fullmatch(r"`(liver_slurm/[\w/]+\.py)`", cell)
    return named is not None and (ROOT / named[1]).is_file()
