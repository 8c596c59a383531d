"""The folder of a checkpoint of Megatron-LM's: which of its iterations is meant, and what lies where in that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from liver_slurm.base.errors import BadInput
from liver_slurm.config.problem import one_line, shown
from liver_slurm.rundir.checkpoint_index import DamagedError, Index, StoredBox, check_lengths
from liver_slurm.rundir.older_index import METADATA, read_torch_metadata

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
"""What the tracker says, and the folder is called, where there is a model alone, of no iteration."""
BACKEND = "metadata.json"
FORMAT = "torch_dist"


def iteration_folder(iteration: int | None) -> str:
    """Return what the folder of an iteration is called; None: of a model alone."""
    return RELEASE if iteration is None else f"iter_{iteration:07d}"


def find_checkpoint(folder: Path) -> Path:
    """Return the folder of the newest iteration, or the one that is named itself.

    Raises:
        BadInput: there is none, or it is in another format.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder")
    tracker = folder / TRACKER
    path = folder / _newest(tracker) if tracker.is_file() else folder
    if any(path.glob("mp_rank_*")):
        raise BadInput(
            f"{path} has Megatron-LM's older format, mp_rank_*, which is code as much as data; allowed: {FORMAT}, as "
            f"Megatron-LM makes of it with --ckpt-convert-format {FORMAT} --ckpt-convert-save DIR"
        )
    if not (path / BACKEND).is_file():
        neither = f"neither {TRACKER} nor {BACKEND}" if path == folder else f"no {BACKEND}"
        raise BadInput(f"{path} is no whole checkpoint of Megatron-LM's format {FORMAT}: it has {neither}")
    try:
        backend = msgspec.json.decode((path / BACKEND).read_bytes(), type=dict[str, Any]).get("sharded_backend")
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{path / BACKEND} cannot be read: {one_line(error)}") from None
    if backend != FORMAT:
        raise BadInput(
            f"{path} has format {shown(backend)}; allowed: {FORMAT}, as Megatron-LM saves with --ckpt-format {FORMAT}"
        )
    return path


def _newest(tracker: Path) -> str:
    try:
        said = tracker.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{tracker} cannot be read: {one_line(error)}") from None
    if said != RELEASE and not (said.isascii() and said.isdecimal() and len(said) < 19):
        raise BadInput(f"{tracker} says {shown(said)}; allowed: the number of an iteration, or {RELEASE}")
    name = iteration_folder(None if said == RELEASE else int(said))
    if not (tracker.parent / name).is_dir():
        raise BadInput(
            f"{tracker} says {said}, but there is no {tracker.parent / name}; name the folder of another one"
        )
    return name


def read_places(path: Path) -> tuple[Index, dict[str, StoredBox]]:
    """Return which tensors lie where in a checkpoint, and where what is no tensor; nothing of it is run.

    Raises:
        BadInput: it is damaged or not whole, or its ``.metadata`` names what has no place there.
    """
    try:
        index, objects = read_torch_metadata(path)
        if gap := _outside(index):
            raise DamagedError(f"{path / METADATA} is not of a whole checkpoint: {gap}")
        check_lengths(path, index)
    except DamagedError as error:
        raise BadInput(f"{one_line(error)}; nothing of it was run; take another iteration, or save it again") from None
    return index, objects


def _outside(index: Index) -> str:
    """Say which tensor has a box that is not in it; empty: none has."""
    for name, tensor in index.items():
        for box in tensor.boxes:
            sides = zip(box.offset, box.shape, tensor.shape, strict=False)
            fits = len(box.offset) == len(box.shape) == len(tensor.shape)
            if not fits or any(a < 0 or b < 1 or a + b > whole for a, b, whole in sides):
                return f"{name} has shape {tensor.shape}, and a box of shape {box.shape} at {box.offset}"
    return ""
