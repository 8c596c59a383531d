"""configs/reference.toml is what the schema says, complete, and a job file in which nothing is set."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import tomli

from liver_slurm.config.decode import decode
from liver_slurm.config.keys import sections
from liver_slurm.config.reference import reference

FILE = Path(__file__).parents[3] / "configs" / "reference.toml"


def test_the_file_is_up_to_date() -> None:
    renew = "liver-slurm config reference > configs/reference.toml"
    assert FILE.read_text() == reference(), f"configs/reference.toml is stale; commit what this writes: {renew}"


def test_every_section_and_key_has_a_text() -> None:
    keys = [key for section in sections(documented=True) for key in section.keys]
    assert [key.name for key in keys if not key.text] == []
    assert [section.name for section in sections(documented=True) if not section.text] == []


def test_the_documents_name_every_key() -> None:
    text = (FILE.parents[1] / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| `\[+([\w.]+)\]+` \|.*\|(.*)\|$", text, flags=re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(section.name for section in sections())
    for section in sections():
        row = dict(rows)[section.name]
        missing = [key.name for key in section.keys if f"`{key.name.rpartition('.')[2]}`" not in row]
        assert not missing, "run `make docs`"


def test_nothing_is_set_in_it() -> None:
    def is_empty(value: object) -> bool:
        inner = value.values() if isinstance(value, dict) else value
        return isinstance(inner, Iterable) and all(is_empty(one) for one in inner)

    assert is_empty(tomli.loads(reference()))


def test_uncommented_defaults_are_the_defaults() -> None:
    lines = [
        line.removeprefix("# ") if line.startswith("# ") and line.split()[1].isidentifier() and " = " in line else line
        for line in reference().splitlines()
    ]
    # A list of tables has one there, to show its keys.
    assert decode(tomli.loads("\n".join(lines))) == decode(tomli.loads(reference()))
