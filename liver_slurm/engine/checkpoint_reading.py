"""Reading boxes out of a checkpoint, whatever layout wrote it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from liver_slurm.base.errors import BadInput
from liver_slurm.engine.replica import Boxes
from liver_slurm.reshard.tensors import Piece
from liver_slurm.rundir.checkpoint_index import DamagedError, Index, StoredBox, checked, file_of
from liver_slurm.rundir.checkpoints import read_index


def read_boxes(path: Path, boxes: Boxes, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Fill boxes from a checkpoint; each byte that is used is compared with its digest first.

    Args:
        shapes: global shapes of their tensors.

    Raises:
        DamagedError: a file of it is damaged.
        BadInput: it does not have what is asked for.
    """
    fill_boxes(path, read_index(path), boxes, shapes)


def fill_boxes(path: Path, index: Index, boxes: Boxes, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Fill boxes from files of torch's, by an index of them; otherwise as :func:`read_boxes`.

    Args:
        path: folder of the files.
    """
    wanted: dict[str, list[tuple[Piece, torch.Tensor]]] = {}
    for piece, view in boxes:
        if piece.tensor not in index:
            raise BadInput(f"{path} does not fit this model: it has no {piece.tensor}")
        if index[piece.tensor].shape != shapes[piece.tensor]:
            raise BadInput(
                f"{path} does not fit this model: {piece.tensor} has shape {index[piece.tensor].shape} there, "
                f"{shapes[piece.tensor]} here"
            )
        wanted.setdefault(piece.tensor, []).append((piece, view))
    missing = {id(view): view.numel() for _, view in boxes}
    for file, stored in _by_file(path, index, wanted):
        with _opened(file) as stream:
            for box, targets in stored:
                value = _read(file, stream, box)
                for piece, view in targets:
                    missing[id(view)] -= _copy(box, value, piece, view)
    for piece, view in boxes:
        if missing[id(view)]:
            raise DamagedError(f"{path} is not whole: it has not all of {piece.tensor}")


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise DamagedError(f"{file} cannot be read: {error.strerror}") from None


_Targets = list[tuple[Piece, torch.Tensor]]


def _by_file(
    path: Path, index: Index, wanted: dict[str, _Targets]
) -> Iterator[tuple[Path, list[tuple[StoredBox, _Targets]]]]:
    """Yield what of each file is needed, in the order in which it lies there."""
    files: dict[str, list[tuple[StoredBox, _Targets]]] = {}
    for name, pieces in wanted.items():
        for box in index[name].boxes:
            targets = [(piece, view) for piece, view in pieces if _common(box, piece) is not None]
            if targets:
                files.setdefault(box.file, []).append((box, targets))
    for file, stored in sorted(files.items()):
        yield file_of(path, file), sorted(stored, key=lambda one: one[0].start)


def _read(file: Path, stream: BinaryIO, box: StoredBox) -> torch.Tensor:
    try:
        stream.seek(box.start)
        content = checked(file, box, stream.read(box.length))
        value: torch.Tensor = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except OSError as error:
        raise DamagedError(f"{file} cannot be read: {error.strerror}") from None
    except DamagedError:
        raise
    except Exception as error:
        # Without a digest: a file of an older version. Damaged bytes may raise anything.
        raise DamagedError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    if tuple(value.shape) != box.shape:
        raise DamagedError(f"{file} is damaged: a box of shape {tuple(value.shape)} where {box.shape} was written")
    return value


def _common(box: StoredBox, piece: Piece) -> tuple[tuple[int, int], ...] | None:
    """Return the first and last index, in each dimension, of what both have; None: nothing."""
    if len(box.offset) != len(piece.offset):
        return None
    spans = tuple(
        (max(a, b), min(a + length, b + other))
        for a, length, b, other in zip(box.offset, box.shape, piece.offset, piece.shape, strict=True)
    )
    return spans if all(first < last for first, last in spans) else None


def _copy(box: StoredBox, value: torch.Tensor, piece: Piece, view: torch.Tensor) -> int:
    """Copy what both have; returns how many elements that is."""
    spans = _common(box, piece)
    assert spans is not None
    source = value[tuple(slice(a - at, b - at) for (a, b), at in zip(spans, box.offset, strict=True))]
    view[tuple(slice(a - at, b - at) for (a, b), at in zip(spans, piece.offset, strict=True))].copy_(source)
    return int(source.numel())
