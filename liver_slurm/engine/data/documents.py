"""Find the documents at a path: text files, .jsonl files, and folders of sources."""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from liver_slurm.base.errors import BadInput

_SUFFIXES = """
.txt .md .rst .tex .jsonl .py .pyi .pyx .c .h .cc .cpp .cxx .hpp .cu .cuh .rs .go .java .kt .scala .js .jsx .ts .tsx
.rb .php .pl .lua .sh .r .jl .m .swift .cs .fs .hs .ml .clj .ex .erl .sql .html .css .xml .json .yaml .yml .toml
.ini .cfg .cmake .f90
"""
SOURCE_SUFFIXES = frozenset(_SUFFIXES.split())
"""Suffixes of the files of a folder that are read; a file that is named itself is read whatever its suffix."""
_SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "node_modules"})


def documents(path: Path) -> Iterator[str]:
    """Yield the texts at a path: of a file one, of a .jsonl file one a line (its ``text``), of a folder its files'.

    A folder is walked in sorted order, so that the result is the same everywhere. Hidden, generated and third-party
    folders are passed over, and in it files that are empty or not UTF-8. Of the Python standard library itself the
    test suites are left out: they are half of it, and much of that is tables.

    Raises:
        BadInput: a file that was named is not UTF-8 text, or a line of a .jsonl file is none.
    """
    if path.is_dir():
        for file in _files(path):
            yield from _file_documents(file, named=False)
    else:
        yield from _file_documents(path, named=True)


def _files(folder: Path) -> Iterator[Path]:
    skipped = _SKIPPED_FOLDERS
    if folder == Path(sysconfig.get_path("stdlib")):
        skipped = skipped | {"test", "tests", "idle_test"}
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        yield from (Path(where, name) for name in sorted(files) if Path(name).suffix.lower() in SOURCE_SUFFIXES)


def _file_documents(file: Path, named: bool) -> Iterator[str]:
    if file.suffix == ".jsonl":
        yield from _json_documents(file)
        return
    try:
        content = file.read_bytes()
        text = "" if b"\0" in content and not named else content.decode()
    except OSError as error:
        raise BadInput(f"data.paths: {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        if named:
            raise BadInput(f"data.paths: {file} is not UTF-8 text (byte {error.start})") from None
        return
    if text:
        yield text


def _json_documents(file: Path) -> Iterator[str]:
    """Read line by line, as such files may be larger than memory."""
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip() and (document := _json_text(file, number, line)):
                    yield document
    except OSError as error:
        raise BadInput(f"data.paths: {file} cannot be read: {error.strerror}") from None


def _json_text(file: Path, number: int, line: bytes) -> str:
    try:
        document = json.loads(line.decode())["text"]
    except (ValueError, KeyError, TypeError):
        document = None
    if not isinstance(document, str):
        raise BadInput(f'data.paths: {file}, line {number}: not a JSON object with a "text", in UTF-8')
    return document if document.isascii() else _whole_characters(document)


def _whole_characters(text: str) -> str:
    """Return a text in which halves of surrogate pairs, as JSON escapes of cut UTF-16 have them, are U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
