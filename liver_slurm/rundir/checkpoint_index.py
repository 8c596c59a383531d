"""The index of a checkpoint: which box of which tensor lies where in which file, with a digest of its bytes.

It is what a reader goes by, and by what a checkpoint is verified before it is used. Nothing in it is code, and nothing
here needs torch. Checkpoints of versions before the index have a pickle of torch's instead, see
:mod:`liver_slurm.rundir.older_index`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import xxhash

from liver_slurm.base.files import replace_file
from liver_slurm.rundir.trust import distrust

INDEX = "index.msgpack"
_BLOCK = 4 << 20
_READERS = 4
"""Files that are read at once: one stream seldom has all that a parallel file system can give."""


class StoredBox(msgspec.Struct, frozen=True, array_like=True):
    """A box of a tensor, as ``torch.save`` wrote it, in ``length`` bytes of a file from byte ``start`` on."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start: int
    length: int
    digest: str
    """xxh3 of these bytes, hexadecimal; empty: written by a version that computed none."""

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


class StoredTensor(msgspec.Struct, frozen=True, array_like=True):
    """A tensor of a checkpoint."""

    dtype: str
    """Such as ``float32``."""
    shape: tuple[int, ...]
    boxes: list[StoredBox]


Index = dict[str, StoredTensor]
"""Tensors by name."""

_decoder = msgspec.msgpack.Decoder(Index)


class DamagedError(Exception):
    """A checkpoint cannot be used: a file of it is not what was written, or others can write it; it says which."""


def write_index(folder: Path, index: Index) -> str:
    """Write the index into a checkpoint's folder; returns its digest."""
    content = msgspec.msgpack.encode(index)
    replace_file(folder / INDEX, content)
    return digest_of(content)


def decode_index(path: Path, digest: str) -> Index:
    """Read the index of a checkpoint's folder.

    Raises:
        DamagedError: it is missing, or not the one with this digest.
    """
    file = path / INDEX
    content = read_file(file)
    if digest_of(content) != digest:
        raise DamagedError(f"{file} is damaged: its digest is not the one that was written down")
    try:
        return _decoder.decode(content)
    except msgspec.DecodeError as error:
        raise DamagedError(f"{file} is damaged: {error}") from None


def read_file(file: Path) -> bytes:
    """Return the content of a file of a checkpoint.

    Raises:
        DamagedError: it cannot be read, or is empty.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DamagedError(f"{file} cannot be read: {error.strerror}") from None
    if not content:
        raise DamagedError(f"{file} is empty")
    return content


def digest_of(content: bytes | memoryview) -> str:
    """Return the digest of bytes, hexadecimal."""
    return xxhash.xxh3_128_hexdigest(content)


def uncovered(index: Mapping[str, StoredTensor]) -> str:
    """Say what is not stored exactly once; empty: every element of every tensor is."""
    for name, tensor in index.items():
        if len({box.offset for box in tensor.boxes}) < len(tensor.boxes):
            return f"{name} has a box twice"
        stored = sum(box.size for box in tensor.boxes)
        if stored != math.prod(tensor.shape):
            return f"{stored} of {math.prod(tensor.shape)} elements of {name} are there"
    return ""


def check_files(path: Path, index: Mapping[str, StoredTensor], *, contents: bool) -> None:
    """Check that the files which an index speaks of are there, whole.

    Args:
        contents: read all of them and compare digests; otherwise only their lengths are looked at.

    Raises:
        DamagedError: one is missing, too short, or has other bytes than were written.
    """
    by_file = _by_file(index)
    for file in by_file:
        check_trust(file_of(path, file))
    check_lengths(path, index)
    if contents:
        with ThreadPoolExecutor(_READERS) as readers:
            list(readers.map(lambda one: _check_contents(path / one[0], one[1]), by_file.items()))


def check_lengths(path: Path, index: Mapping[str, StoredTensor]) -> None:
    """Check that the files which an index speaks of are there, and are not cut short.

    Raises:
        DamagedError: one is missing or too short.
    """
    for file, boxes in _by_file(index).items():
        _check_length(file_of(path, file), max(box.start + box.length for box in boxes))


def _by_file(index: Mapping[str, StoredTensor]) -> dict[str, list[StoredBox]]:
    found: dict[str, list[StoredBox]] = {}
    for tensor in index.values():
        for box in tensor.boxes:
            found.setdefault(box.file, []).append(box)
    return found


def check_trust(path: Path) -> None:
    """Check that a file or folder of a checkpoint is there, and that nobody else can write it.

    Raises:
        DamagedError: it is not, or somebody can.
    """
    try:
        problem = distrust(path)
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}"
    if problem:
        raise DamagedError(problem)


def file_of(path: Path, name: str) -> Path:
    """Return the file of that name in a checkpoint's folder.

    Raises:
        DamagedError: it would lie elsewhere.
    """
    if Path(name).name != name:
        raise DamagedError(f"{path} is damaged: it names a file {name!r}")
    return path / name


def _check_length(file: Path, expected: int) -> None:
    try:
        length = file.stat().st_size
    except OSError as error:
        raise DamagedError(f"{file} cannot be read: {error.strerror}") from None
    if length < expected:
        raise DamagedError(f"{file} is cut short: it has {length} bytes where {expected} were written")


def _check_contents(file: Path, boxes: Iterable[StoredBox]) -> None:
    try:
        with file.open("rb") as stream:
            for box in sorted(boxes, key=lambda one: one.start):
                if box.digest:
                    stream.seek(box.start)
                    _check_box(file, box, _digest(iter(lambda: stream.read(_BLOCK), b""), box.length))
    except OSError as error:
        raise DamagedError(f"{file} cannot be read: {error.strerror}") from None


def _digest(blocks: Iterable[bytes], length: int) -> str:
    hasher = xxhash.xxh3_128()
    for block in blocks:
        hasher.update(memoryview(block)[:length])
        length -= min(length, len(block))
        if not length:
            break
    return hasher.hexdigest()


def _check_box(file: Path, box: StoredBox, digest: str) -> None:
    if digest != box.digest:
        raise DamagedError(
            f"{file} is damaged: bytes {box.start} to {box.start + box.length - 1} are not those that were written"
        )


def checked(file: Path, box: StoredBox, content: bytes) -> bytes:
    """Return the bytes of a box as they were read, if they are those that were written.

    Raises:
        DamagedError: they are not.
    """
    if len(content) < box.length:
        raise DamagedError(f"{file} is cut short: it ends before byte {box.start + box.length}")
    if box.digest:
        _check_box(file, box, digest_of(content))
    return content
