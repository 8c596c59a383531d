"""Hooks of mkdocs, which give the site what documents link to, in places of its own.

Documents lie where GitHub shows them. README.md is the site's first page; a file of the repository that a document
links to is copied below ``source/``; of a folder, which a site cannot show, the words of the link stay.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?P<image>!?)\[(?P<words>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)")


def place(path: str) -> str:
    """Return where the site has a file of the repository; both are relative, with slashes."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}"


def origin(place: str) -> str:
    """Return which file of the repository stands at a place of the site."""
    if place == "index.md":
        return "README.md"
    return place.removeprefix("source/") if place.startswith("source/") else f"docs/{place}"


def linked(document: str, text: str, root: Path = ROOT) -> list[str]:
    """Return the files of the repository that a document links to and that no page of docs/ is."""
    found = dict.fromkeys(
        path
        for link in LINK.finditer(FENCE.sub("", text))
        if (path := _target(document, link["target"])[0]) and (root / path).is_file()
    )
    return [path for path in found if place(path).startswith("source/")]


def rewritten(document: str, text: str, root: Path = ROOT) -> str:
    """Return a document's text with the links that hold on the site."""

    def link(found: re.Match[str]) -> str:
        path, anchor = _target(document, found["target"])
        if not path:
            return found[0]
        if (root / path).is_dir():
            return found["words"]
        target = posixpath.relpath(place(path), posixpath.dirname(place(document)) or ".")
        return f"{found['image']}[{found['words']}]({target}{anchor})"

    parts = re.split(f"({FENCE.pattern})", text, flags=FENCE.flags)
    return "".join(part if FENCE.fullmatch(part) else LINK.sub(link, part) for part in parts)


def _target(document: str, target: str) -> tuple[str, str]:
    """Return a link's file, as a path in the repository, and its anchor; an address, or the page itself, is no file."""
    path, hash_, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", target):
        return "", target
    return posixpath.normpath(posixpath.join(posixpath.dirname(document), path)), hash_ + anchor


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, and what documents link to outside of docs/."""
    from mkdocs.structure.files import File

    waiting = ["README.md", *(origin(file.src_uri) for file in files.documentation_pages())]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if place(path) not in files.src_uris:
            files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            waiting += linked(path, (ROOT / path).read_text())
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make a page's links those of the site."""
    return rewritten(origin(page.file.src_uri), markdown)
