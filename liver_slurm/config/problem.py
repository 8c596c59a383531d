"""A problem of a job file, and how its key and value are shown to people. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

LONGEST = 60
"""Characters of a key's part or a value that a message shows."""
_BARE = re.compile(rf"[A-Za-z0-9_-]{{1,{LONGEST}}}")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a job."""

    key: str
    """Dotted, list indices included: ``live.component.0.nodes``."""
    text: str
    """What is wrong and what is allowed, in one line."""
    spoils: bool = True
    """The key's value is not the one that was meant, so no other check may conclude anything from it."""
    missing: bool = False
    """The job file must have the key and does not."""
    meant: str | None = None
    """Of a key that nobody knows: the one that it is likely to be."""


def join(section: str, name: str) -> str:
    """Append ``name`` to a dotted key, quoted as TOML does it where it is no bare key."""
    part = name if _BARE.fullmatch(name) else shown(name)
    return f"{section}.{part}" if section else part


def shown(value: object, longest: int = LONGEST) -> str:
    """Show a value as a job file would have it, in one line of at most ``longest`` characters."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (list, tuple)):
        return one_line("[" + ", ".join(shown(one) for one in value[:longest]) + "]", longest)
    return one_line(f'"{value}"' if isinstance(value, str) else value, longest)


def one_line(text: object, longest: int = 1000) -> str:
    """Write a text in one line of at most ``longest`` characters, with escapes such as ``\\n`` for unprintable ones."""
    line = " ".join(str(text).split()) if isinstance(text, Exception) else str(text)
    line = line if line.isprintable() else line.encode("unicode_escape").decode()
    return line if len(line) <= longest else line[: longest - 3] + "…"


def nearest(key: str, known: Collection[str]) -> str | None:
    """Find the known dotted key most like ``key``: of the same name in another section, else of similar spelling."""
    section, _, name = key.rpartition(".")
    depth = [other for other in known if (other.count(".") == 0) == (not section)]
    for other in depth:
        if other.rpartition(".")[2] == name:
            return other
    same_section = {other.rpartition(".")[2]: other for other in depth if other.rpartition(".")[0] == section}
    if found := difflib.get_close_matches(name, same_section, n=1, cutoff=0.5):
        return same_section[found[0]]
    found = difflib.get_close_matches(key, depth, n=1, cutoff=0.6)
    return found[0] if found else None
