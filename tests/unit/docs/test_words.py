"""Words: documents, docstrings and names use the glossary's terms, and not the private ones that they replaced."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import documents
import pytest

PRIVATE = {
    "agenda": "directives",
    "anew": "again, or restart",
    "companion": "control thread",
    "cuts": "slicing",
    "departure": "eviction",
    "departures": "evictions",
    "giving back": "node release",
    "holdings": "ownership",
    "live job": "guaranteed job",
    "live worker": "guaranteed worker",
    "live workers": "guaranteed workers",
    "mover": "sender or receiver",
    "movers": "sender and receiver",
    "sink": "receiver",
    "supply": "capacity snapshot",
    "takeover": "lease",
}
"""Private word, and the glossary's term for it."""
PRIVATE_NAMES = {word for word in PRIVATE if " " not in word} | {"teams"}
CONTRACT = {"BegunAnew"}
"""Names that stand in files of runs: an event's and a record's."""
REPLACED = "## Words that were replaced"
"""The glossary's table of these very words."""


def private_words(text: str) -> set[str]:
    """Return the private words in a document's prose; code spans and blocks may name what they like."""
    plain = " ".join(documents.prose(text).lower().split())
    return {word for word in PRIVATE if re.search(rf"\b{word}\b", plain)}


@pytest.mark.parametrize("document", documents.generate.documents(), ids=lambda path: path.name)
def test_documents_use_the_glossarys_terms(document: Path) -> None:
    text = documents.generate.BLOCK.sub("", document.read_text()).partition(REPLACED)[0]
    assert {word: PRIVATE[word] for word in private_words(text)} == {}


def first_paragraphs(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the name and the first paragraph of the docstring of each module, class and function, code left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = (ast.get_docstring(node) or "").partition("\n\n")[0]
            yield getattr(node, "name", "module"), re.sub(r"``[^`]*``|:\w+:`[^`]*`", "", first)


def test_docstrings_use_the_glossarys_terms() -> None:
    root = documents.ROOT
    files = [path for folder in ("liver_slurm", "plugins") for path in (root / folder).rglob("*.py")]
    found = {
        f"{path.relative_to(root)}: {name}": words
        for path in files
        for name, text in first_paragraphs(ast.parse(path.read_text()))
        if (words := private_words(text))
    }
    assert found == {}


def test_a_private_word_is_found_in_prose_and_not_in_code() -> None:
    assert private_words("The sink begins anew; `agenda`, and synchronise.\n```text\nmovers\n```\n") == {"sink", "anew"}


def private_names(tree: ast.Module) -> set[str]:
    """Return the names that a module makes in which a private word is; names of events and records are a contract."""
    made: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            made.add(node.attr)
    words = {name: set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")) for name in made - CONTRACT}
    return {name for name, inside in words.items() if inside & PRIVATE_NAMES}


def test_names_use_the_glossarys_terms() -> None:
    root = documents.ROOT
    files = [path for folder in ("liver_slurm", "plugins") for path in (root / folder).rglob("*.py")]
    found = {path.name: names for path in files if (names := private_names(ast.parse(path.read_text())))}
    assert found == {}


def test_a_private_word_is_found_in_a_name() -> None:
    text = "class BegunAnew:\n    def sinkOf(self, old_mover):\n        self.takeover, thinking = old_mover\n"
    assert private_names(ast.parse(text)) == {"sinkOf", "old_mover", "takeover"}
