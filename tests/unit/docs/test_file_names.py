"""Files that the documents name in code spans exist, and what is named in them is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import documents
import pytest

NAMED = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|toml|j2|sh|lua|md))(?::(\w+))?`")


def missing(text: str) -> list[str]:
    """Return paths, with a folder in them, that lie neither in the repository nor in the package; and missing names."""
    wrong = []
    for path, name in NAMED.findall(documents.FENCE.sub("", text)):
        if re.search(r"\bNAME\b", path):  # stands for a name that the reader chooses
            continue
        places = [base / path for base in (documents.ROOT, documents.ROOT / "liver_slurm") if (base / path).is_file()]
        if not places or (name and name not in _defined(places[0])):
            wrong.append(f"{path}:{name}" if name else path)
    return wrong


def _defined(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@pytest.mark.parametrize("document", documents.documents(), ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    assert missing(document.read_text()) == []


def test_a_file_or_name_that_is_not_there_is_found() -> None:
    text = "`base/errors.py:LiverError` `base/nowhere.py` `base/errors.py:Nowhere` `configs/gpt-tiny.toml`"
    assert missing(text) == ["base/nowhere.py", "base/errors.py:Nowhere"]
