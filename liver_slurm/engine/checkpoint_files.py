"""The files of a checkpoint: each rank writes its share and a receipt, rank 0 makes a checkpoint of them.

Ranks speak to each other through the folder alone, which must be there for a checkpoint anyway. So no process group is
used, no rank waits for another but rank 0 for all, and what goes wrong with one checkpoint cannot reach the next one.
The files are those of ``torch.distributed.checkpoint``, with whose tools a checkpoint can be read too.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import torch
import xxhash
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from liver_slurm.base.errors import LiverError, first_line
from liver_slurm.base.files import replace_file, sync_folder
from liver_slurm.parallel.torch_private import place_in_file
from liver_slurm.reshard.tensors import Piece
from liver_slurm.rundir.checkpoint_index import Index, StoredBox, StoredTensor, uncovered
from liver_slurm.rundir.older_index import METADATA

Box = tuple[Piece, torch.Tensor]
"""A box, and its values."""
_RECEIPT = ".receipt-{:06d}"
_WAITING = ".waiting"
_LOOK, _SLOW_LOOK = 0.02, 1.0
"""Seconds between looks into the folder, at the beginning and later."""


class CheckpointError(LiverError):
    """A checkpoint could not be made; the message is one line."""


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank has written."""

    index: Index
    error: str = ""
    """Why its share is not there; empty: it is."""


# ---- a rank's share ------------------------------------------------------------------------------------------------


class _Digesting:
    """A file that counts and hashes what torch writes to it, and keeps a failure to be raised outside of torch."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hasher, self.length = xxhash.xxh3_128(), 0
        self.failure: OSError | None = None

    def write(self, content: Any) -> int:
        length = memoryview(content).nbytes
        if self.failure is None:
            try:
                self._stream.write(content)
            except OSError as error:
                self.failure = error  # torch would turn it into one of its own, about positions
        self._hasher.update(content)
        self.length += length
        return length

    def flush(self) -> None:
        """Do nothing: the whole file is flushed at its end."""

    def digest(self) -> str:
        return self._hasher.hexdigest()


def write_share(part: Path, rank: int, share: Iterable[Box], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write a rank's boxes and its receipt; both are on disk when this returns.

    Args:
        part: the checkpoint's folder; made if it is not there.
        share: the boxes that this rank is to write, one after the other.
        shapes: global shapes of their tensors.

    Raises:
        OSError: they cannot be written; nothing of this rank is left, and the receipt says why, if that can be written.
    """
    file = part / f"__{rank}_0.distcp"
    part.mkdir(parents=True, exist_ok=True)
    try:
        index = _write_boxes(file, share, shapes)
        _write_receipt(part, rank, Receipt(index=index))
    except Exception as error:
        refuse_share(part, rank, first_line(error))
        raise


def refuse_share(part: Path, rank: int, error: str) -> None:
    """Let rank 0 know that this rank's share will not come; frees what it has written."""
    try:
        part.mkdir(parents=True, exist_ok=True)  # rank 0 may not have come to it yet
        (part / f"__{rank}_0.distcp").unlink(missing_ok=True)
        _write_receipt(part, rank, Receipt(index={}, error=error or "it was given up"))
    except OSError:
        return  # the folder is gone, or as good as: rank 0 finds that nothing comes any more


def _write_boxes(file: Path, share: Iterable[Box], shapes: Mapping[str, tuple[int, ...]]) -> Index:
    index: Index = {}
    start = 0
    with file.open("wb") as stream:
        for piece, view in share:
            digesting = _Digesting(stream)
            torch.save(_alone(view), digesting)
            if digesting.failure is not None:
                raise digesting.failure
            box = StoredBox(piece.offset, piece.shape, file.name, start, digesting.length, digesting.digest())
            dtype = str(view.dtype).removeprefix("torch.")
            index.setdefault(piece.tensor, StoredTensor(dtype, shapes[piece.tensor], [])).boxes.append(box)
            start += digesting.length
        stream.flush()
        os.fsync(stream.fileno())
    return index


def _alone(view: torch.Tensor) -> torch.Tensor:
    """Return a box on the host, in a storage of its own: torch writes whole storages."""
    view = view.detach().cpu()
    return (
        view
        if view.is_contiguous() and view.untyped_storage().nbytes() == view.nbytes
        else view.clone(memory_format=torch.contiguous_format)
    )


def _write_receipt(part: Path, rank: int, receipt: Receipt) -> None:
    replace_file(part / _RECEIPT.format(rank), msgspec.msgpack.encode(receipt))


# ---- the checkpoint ------------------------------------------------------------------------------------------------


def gather(part: Path, names: Mapping[int, str], patience: float, clock: Callable[[], float] = time.monotonic) -> Index:
    """Wait for every rank's receipt, on rank 0; returns the index of all that they have written.

    Args:
        names: the worker of each rank, for people.
        patience: seconds for which nothing may come into the folder, neither a receipt nor bytes.

    Raises:
        CheckpointError: a rank has failed, or nothing comes any more, or something is not stored exactly once.
        OSError: the folder cannot be read.
    """
    receipts: dict[int, Receipt] = {}
    progress = _Progress(part, clock)
    pause = _LOOK
    while True:
        present = set(os.listdir(part))
        for rank in names.keys() - receipts.keys():
            if _RECEIPT.format(rank) in present:
                receipts[rank] = receipt = _read_receipt(part / _RECEIPT.format(rank))
                if receipt.error:
                    raise CheckpointError(f"rank {rank} ({names[rank]}): {receipt.error}")
        if len(receipts) == len(names):
            return _whole(receipts[rank].index for rank in sorted(receipts))
        if progress.stalled_for(len(receipts)) > patience:
            missing = min(names.keys() - receipts.keys())
            raise CheckpointError(f"nothing has come from rank {missing} ({names[missing]}) for {patience:.0f} s")
        time.sleep(pause)
        pause = min(pause * 1.5, _SLOW_LOOK)
        if pause == _SLOW_LOOK:
            # An NFS client believes its own list of a folder for up to a minute, unless it has changed it itself.
            (part / _WAITING).unlink(missing_ok=True)
            (part / _WAITING).touch()


class _Progress:
    """How long nothing has come into a folder."""

    def __init__(self, part: Path, clock: Callable[[], float]) -> None:
        self._part, self._clock = part, clock
        self._seen, self._since, self._next_look = (-1, -1), clock(), 0.0

    def stalled_for(self, receipts: int) -> float:
        """Return the seconds since the last receipt or the last byte."""
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + _SLOW_LOOK  # it asks for the length of each file
            if (seen := (receipts, _bytes_in(self._part))) != self._seen:
                self._seen, self._since = seen, now
        return now - self._since


def _read_receipt(file: Path) -> Receipt:
    try:
        return msgspec.msgpack.decode(file.read_bytes(), type=Receipt)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from None


def _bytes_in(part: Path) -> int:
    found = 0
    with os.scandir(part) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # a receipt that was given its name since the folder was listed
                found += entry.stat().st_size if entry.name != _WAITING else 0
    return found


def _whole(shares: Iterable[Index]) -> Index:
    """Return one index of all shares; a box that several ranks hold is taken from the first."""
    index: Index = {}
    for share in shares:
        for name, tensor in share.items():
            known = index.setdefault(name, StoredTensor(tensor.dtype, tensor.shape, []))
            offsets = {box.offset for box in known.boxes}
            known.boxes.extend(box for box in tensor.boxes if box.offset not in offsets)
    gap = uncovered(index)
    if gap:
        raise CheckpointError(f"it would not be whole: {gap}")
    return index


def finish_folder(part: Path, index: Index, ranks: Iterable[int], objects: Mapping[str, StoredBox] = {}) -> None:
    """Write torch's own metadata, and remove the receipts; all is on disk when this returns.

    Args:
        objects: what is no tensor but bytes, by name, and where these lie.
    """
    replace_file(part / METADATA, pickle.dumps(_metadata(index, objects)))
    for rank in ranks:
        (part / _RECEIPT.format(rank)).unlink(missing_ok=True)
    (part / _WAITING).unlink(missing_ok=True)
    sync_folder(part)


def _metadata(index: Index, objects: Mapping[str, StoredBox]) -> Metadata:
    entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    places = {}
    for name, tensor in index.items():
        chunks = [ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.shape)) for box in tensor.boxes]
        properties = TensorProperties(dtype=getattr(torch, tensor.dtype))
        entries[name] = TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
        for number, box in enumerate(tensor.boxes):
            place = place_in_file(box.file, box.start, box.length)
            places[MetadataIndex(name, torch.Size(box.offset), number)] = place
    for name, one in objects.items():
        entries[name] = BytesStorageMetadata()
        places[MetadataIndex(name)] = place_in_file(one.file, one.start, one.length)
    return Metadata(entries, {name: (name,) for name in entries}, places)
