"""Checkpoints on disk: what they are called, which of them are complete, and removing old ones.

A checkpoint is a folder ``step-N`` with a ``liver.json`` in it. It is written under another name, and gets its own when
all of it is on disk; it loses it before any of it is removed. So one that has its name is complete. Whether it still is
what was written, :func:`verify` says.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from liver_slurm.base.errors import BadInput
from liver_slurm.base.files import replace_file, sync_file, sync_folder
from liver_slurm.rundir.checkpoint_index import (
    DamagedError,
    Index,
    check_files,
    check_trust,
    decode_index,
    digest_of,
    read_file,
    uncovered,
)
from liver_slurm.rundir.older_index import read_older_index

CONSUMED = "consumed_samples"
"""Key of ``liver.json``: the samples of its steps. Older versions did not write it."""
_PREFIX = "step-"
_META = "liver.json"
_REMOVED = ".removed"
_PART = ".part"
_INDEX_DIGEST, _SEAL = "index", "seal"
"""Keys of ``liver.json``: the digest of the index, and that of all other keys. Older versions wrote neither."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint after ``step`` steps lies."""
    return folder / f"{_PREFIX}{step:08d}"


def checkpoint_step(checkpoint: Path) -> int:
    """Return the steps that are completed in a checkpoint, by its name."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    found = [meta.parent for meta in folder.glob(f"{_PREFIX}*/{_META}")]
    return sorted((one for one in found if _is_name(one.name)), key=checkpoint_step)


def _is_name(name: str) -> bool:
    return name.startswith(_PREFIX) and name.removeprefix(_PREFIX).isdecimal()


# ---- writing -------------------------------------------------------------------------------------------------------


def part_path(path: Path, attempt: str = "") -> Path:
    """Return the folder in which the files of checkpoint ``path`` are written; each attempt at it has its own."""
    return path.with_name(f".{path.name}{'.' if attempt else ''}{attempt}{_PART}")


def publish_checkpoint(path: Path, part: Path, meta: dict[str, Any], index_digest: str) -> None:
    """Make a checkpoint count whose files are all on disk in the folder ``part``; so is its name when this returns.

    One that had the name is replaced. ``meta``: what ``liver.json`` says.
    """
    meta = {**meta, _INDEX_DIGEST: index_digest}
    replace_file(part / _META, msgspec.json.encode({**meta, _SEAL: _seal(meta)}))
    doomed = _set_aside(path)
    os.replace(part, path)
    sync_folder(path.parent)
    if doomed is not None:
        shutil.rmtree(doomed, ignore_errors=True)  # what stays is removed with the old ones


def copy_checkpoint(path: Path, folder: Path, keep: int) -> str:
    """Copy a checkpoint into another folder; it is complete there and on disk when this returns, or not there.

    Returns: what could not be removed of old ones, see :func:`prune_checkpoints`.

    Raises:
        OSError: it cannot be copied.
        DamagedError: what arrived is not what was written.
    """
    copy = folder / path.name
    part = part_path(copy, "copy")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for file in path.iterdir():
            shutil.copyfile(file, part / file.name)
            sync_file(part / file.name)
        sync_folder(part)
        check_files(part, read_index(part), contents=True)
        doomed = _set_aside(copy)
        os.replace(part, copy)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync_folder(folder)
    if doomed is not None:
        shutil.rmtree(doomed, ignore_errors=True)
    return prune_checkpoints(folder, keep, checkpoint_step(path))


def _seal(meta: dict[str, Any]) -> str:
    return digest_of(msgspec.json.encode(dict(sorted(meta.items()))))


# ---- reading -------------------------------------------------------------------------------------------------------


def read_meta(path: Path) -> dict[str, Any]:
    """Return what a checkpoint's ``liver.json`` says.

    Raises:
        BadInput: there is none, or it cannot be read.
    """
    try:
        return _meta(path)
    except DamagedError as error:
        raise BadInput(f"{path} is no checkpoint of liver-slurm: {error}") from error


def _meta(path: Path) -> dict[str, Any]:
    file = path / _META
    check_trust(path)
    try:
        meta = msgspec.json.decode(read_file(file), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise DamagedError(f"{file} is damaged: {error}") from None
    seal = meta.pop(_SEAL, None)
    if seal is not None and seal != _seal(meta):
        raise DamagedError(f"{file} is damaged: its digest is not the one that was written down")
    if _is_name(path.name) and meta.get("step") != checkpoint_step(path):
        raise DamagedError(f"{file} is damaged: it speaks of step {meta.get('step')}")
    return meta


def read_index(path: Path) -> Index:
    """Return what lies where in a checkpoint.

    Raises:
        DamagedError: it cannot be said.
    """
    digest = _meta(path).get(_INDEX_DIGEST)
    return read_older_index(path) if digest is None else decode_index(path, str(digest))


def verify(path: Path, *, contents: bool = True) -> None:
    """Verify that a checkpoint is what was written: its description, and every file of it.

    Args:
        contents: read all of it and compare digests; otherwise only the files' lengths are looked at.

    Raises:
        DamagedError: it is not; the message names the file.
    """
    index = read_index(path)
    gap = uncovered(index)
    if gap:
        raise DamagedError(f"{path} is not whole: {gap}")
    check_files(path, index, contents=contents)


def sound_checkpoints(
    folders: Sequence[Path], refused: dict[Path, str], at_most: int | None = None, *, contents: bool = True
) -> Iterator[Path]:
    """Yield the checkpoints that :func:`verify` finds whole, newest first; each is looked at when it is asked for.

    Args:
        folders: where they lie; of two of one step, that of the first folder comes first.
        refused: those that are not whole are entered here, each with what is wrong; what is there is not looked at.
        at_most: only those with so many steps or fewer.
    """
    found = [path for folder in folders for path in reversed(list_checkpoints(folder))]
    for path in sorted(found, key=checkpoint_step, reverse=True):  # stable
        if path not in refused and (at_most is None or checkpoint_step(path) <= at_most):
            try:
                verify(path, contents=contents)
            except DamagedError as error:
                refused[path] = str(error)
            else:
                yield path


# ---- removing ------------------------------------------------------------------------------------------------------


def prune_checkpoints(folder: Path, keep: int, newest: int, best: int = -1) -> str:
    """Remove all but the newest ``keep`` checkpoints up to step ``newest``, and leftovers of those and of older steps.

    That of step ``best`` stays, too. One beyond ``newest`` is of a time that the run went back from; it is replaced
    when the run comes there again.

    Returns: what could not be removed, and why; empty: all was. It is tried again the next time.
    """
    failures: list[str] = []

    def failed(_call: object, name: str, caught: tuple[object, BaseException, object]) -> None:
        failures.append(f"{name}: {getattr(caught[1], 'strerror', caught[1])}")

    complete = [path for path in list_checkpoints(folder) if checkpoint_step(path) <= newest]
    old = complete[: -keep or None] if keep else []
    for path in [path for path in old if checkpoint_step(path) != best]:
        try:
            _set_aside(path)
        except OSError:  # noqa: PERF203 - one that cannot be removed must not keep the others
            failed(None, str(path), sys.exc_info())  # type: ignore[arg-type]
    for left in [*folder.glob(f".{_PREFIX}*{_REMOVED}"), *_old_parts(folder, newest)]:
        shutil.rmtree(left, onerror=failed)
    return failures[0] + (f", and {len(failures) - 1} more" if len(failures) > 1 else "") if failures else ""


def _old_parts(folder: Path, newest: int) -> Iterator[Path]:
    for part in folder.glob(f".{_PREFIX}*{_PART}"):
        number = part.name.removeprefix(f".{_PREFIX}").split(".")[0]
        if number.isdecimal() and int(number) < newest:  # another world may be writing the same step's
            yield part


def _set_aside(path: Path) -> Path | None:
    """Have a checkpoint count no more; returns where its files are, None if it is not there."""
    doomed = path.with_name(f".{path.name}.{os.urandom(4).hex()}{_REMOVED}")
    try:
        os.replace(path, doomed)
    except FileNotFoundError:
        return None
    return doomed
