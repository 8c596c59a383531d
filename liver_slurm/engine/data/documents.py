"""Find the documents at a path: text files, .jsonl files, and folders of sources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from liver_slurm.base.errors import BadInput
from liver_slurm.config.data_files import text_files


def documents(path: Path) -> Iterator[str]:
    """Yield the texts at a path: of a file one, of a .jsonl file one a line (its ``text``), of a folder its files'.

    In a folder files that are empty or not UTF-8 are passed over.

    Raises:
        BadInput: a file that was named is not UTF-8 text, or a line of a .jsonl file is none.
    """
    if path.is_dir():
        for file in text_files(path):
            yield from _file_documents(file, named=False)
    else:
        yield from _file_documents(path, named=True)


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
