"""The annotated reference of all keys of job and site files, made from the schema."""

from __future__ import annotations

import textwrap
from typing import Any

from liver_slurm.config.keys import Section, sections
from liver_slurm.config.problem import shown

WIDTH = 100
HEADER = """\
# Every key of a job file, made from liver_slurm/config/schema.py. After a change there:
#
#     liver-slurm config reference > configs/reference.toml
#
# A site file has the same sections and keys. Commented keys are shown with their defaults; those without a value have
# none that could be written down, and their text says what happens when they are left out. Required keys of [model] are
# not with model.provider, model.from_hf or train.loop, and train.seq_length is not with train.loop.
"""


def reference() -> str:
    """Write the reference as TOML in which every key is a comment."""
    return HEADER + "".join(_section(section) for section in sections(documented=True))


def _section(section: Section) -> str:
    lines = ["", "", *_comment(section.text), _header(section)]
    for key in section.keys:
        lines += ["", *_comment(key.text), *_comment(f"Allowed: {key.allowed}{'; required' if key.required else ''}.")]
        name = key.name.rpartition(".")[2]
        lines.append(f"# {name} =" + ("" if key.required or key.default is None else f" {toml(key.default)}"))
    return "\n".join(lines) + "\n"


def _header(section: Section) -> str:
    return f"[[{section.name}]]" if section.repeated else f"[{section.name}]"


def toml(value: Any) -> str:
    """Write a default as TOML."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(one) for one in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(one)}" for name, one in value.items()) + "}"
    return shown(value)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.replace("``", "`").split()),
        WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )
