"""Words: the documents use the glossary's terms, and not the private ones that they replaced."""

from __future__ import annotations

import re
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


def test_a_private_word_is_found_in_prose_and_not_in_code() -> None:
    assert private_words("The sink begins anew; `agenda`, and synchronise.\n```text\nmovers\n```\n") == {"sink", "anew"}
