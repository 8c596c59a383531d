"""Documents as tests see them: their prose, code blocks, links and headings."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)|!\[[^\]]*\]\((?P<image>[^)\s]+)\)")

_spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


class CodeBlock(NamedTuple):
    """One fenced block of a document."""

    document: Path
    line: int
    """Of the block's first line of code."""
    info: str
    """What stands after the fence: the language, and perhaps a mark such as ``runs``."""
    text: str


def documents() -> list[Path]:
    """Return the README and every page in docs/, and the pages that lie beside what they describe."""
    return [*generate.documents(), *sorted(ROOT.glob("plugins/**/*.md"))]


def code_blocks() -> Iterator[CodeBlock]:
    """Yield every fenced block of every document."""
    for document in documents():
        text = document.read_text()
        for found in FENCE.finditer(text):
            line = text.count("\n", 0, found.start()) + 2
            yield CodeBlock(document, line, found["info"].strip(), found["text"])


def prose(text: str) -> str:
    """Return a document's text without its fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} (.+)$", FENCE.sub("", text), flags=re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
        base = plain.strip().replace(" ", "-")
        found.append(base if base not in found else f"{base}-{found.count(base)}")
    return set(found)


def broken_links(document: Path) -> list[str]:
    """Return what is wrong with a document's relative links: files that are not there, anchors of no heading."""
    wrong = []
    for found in LINK.finditer(FENCE.sub("", document.read_text())):
        target = found["target"] or found["image"]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (document.parent / path).resolve() if path else document
        if not place.exists() or ROOT not in (place, *place.parents):
            wrong.append(f"{document.name}: {target}: there is no such file")
        elif anchor and (place.suffix != ".md" or anchor not in anchors(place.read_text())):
            wrong.append(f"{document.name}: {target}: no heading makes this anchor")
    return wrong
