"""Look at data and tokenizer files before a run does: what a worker could not read is named here."""

from __future__ import annotations

import os
import struct
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liver_slurm.base.errors import BadInput

_SUFFIXES = """
.txt .md .rst .tex .jsonl .py .pyi .pyx .c .h .cc .cpp .cxx .hpp .cu .cuh .rs .go .java .kt .scala .js .jsx .ts .tsx
.rb .php .pl .lua .sh .r .jl .m .swift .cs .fs .hs .ml .clj .ex .erl .sql .html .css .xml .json .yaml .yml .toml
.ini .cfg .cmake .f90
"""
SOURCE_SUFFIXES = frozenset(_SUFFIXES.split())
"""Suffixes of the files of a folder that are read; a file that is named itself is read whatever its suffix."""
_SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "node_modules"})
_HEADER = struct.Struct("<9sQBQQ")
"""Of an .idx: magic, version, code of the tokens' type, number of sequences, number of documents and one."""
_TOKEN_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 8, 7: 4, 8: 2}
"""Bytes of a token, by the code of its type."""


def text_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that are read as text, in an order that is the same everywhere.

    Hidden, generated and third-party folders are passed over. Of the Python standard library itself the test suites are
    left out: they are half of it, and much of that is tables.
    """
    skipped = _SKIPPED_FOLDERS
    if folder == Path(sysconfig.get_path("stdlib")):
        skipped = skipped | {"test", "tests", "idle_test"}
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        yield from (Path(where, name) for name in sorted(files) if Path(name).suffix.lower() in SOURCE_SUFFIXES)


def unreadable_data(path: Path) -> str | None:
    """Say why a path of ``data.paths`` cannot be read; None: it is a readable file, folder or .bin/.idx prefix."""
    if path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            return "is a folder that you may not read"
        found = any(os.path.isfile(file) and os.path.getsize(file) for file in text_files(path))
        return None if found else "is a folder without a text file"
    if path.is_file():
        return None if os.access(path, os.R_OK) else "is a file that you may not read"
    pair = [Path(f"{path}{suffix}") for suffix in (".bin", ".idx")]
    missing = [one.name for one in pair if not one.is_file()]
    if len(missing) == 2:
        return "is no file, no folder and no .bin/.idx prefix"
    if missing:
        return f"is a .bin/.idx prefix without its {missing[0]}"
    if not all(os.access(one, os.R_OK) for one in pair):
        return "is a .bin/.idx prefix that you may not read"
    reason = _damage(*pair)
    return None if reason is None else f"is a .bin/.idx prefix that cannot be used: {reason}"


def _damage(tokens: Path, index: Path) -> str | None:
    """Say in which way a pair of files is no indexed dataset of megatron's; only the index's ends are read."""
    with index.open("rb") as stream:
        head = stream.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(b"MMIDIDX\0\0"):
            return f"{index.name} is no index of megatron's"
        _, version, code, sequences, documents = _HEADER.unpack(head)
        if version != 1 or code not in _TOKEN_BYTES:
            return f"{index.name} has version {version} and type {code}, of which megatron knows none"
        if os.path.getsize(index) < _HEADER.size + 12 * sequences + 8 * documents:
            return f"{index.name} ends early"
        if not sequences:
            return f"{index.name} lists no sequence"
        stream.seek(_HEADER.size + 4 * (sequences - 1))
        (length,) = struct.unpack("<i", stream.read(4))
        stream.seek(_HEADER.size + 12 * sequences - 8)
        (place,) = struct.unpack("<q", stream.read(8))
    end, size = place + length * _TOKEN_BYTES[code], os.path.getsize(tokens)
    return f"{tokens.name} has {size} bytes, and {index.name} lists {end}" if size < end else None


def read_tokenizer(path: Path) -> Any:
    """Read a Hugging Face ``tokenizer.json``, as their library's tokenizer.

    Raises:
        BadInput: the file is not one.
    """
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception
        raise BadInput(f"{path} is not a tokenizer.json: {' '.join(str(error).split())}") from None
