"""What imports of others' models and exports for others share: a folder that is there whole or not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from liver_slurm.base.errors import BadInput
from liver_slurm.base.files import sync_folder
from liver_slurm.engine.checkpoint import FORMAT, PATIENCE, check_averages
from liver_slurm.engine.checkpoint_files import Box, finish_folder, gather, write_share
from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.tensors import AVERAGE
from liver_slurm.rundir.checkpoint_index import DamagedError, write_index
from liver_slurm.rundir.checkpoints import part_path, publish_checkpoint, read_index
from liver_slurm.rundir.trust import close_to_writers

_NAME = "import"


def publish_import(
    to: Path,
    boxes: Iterable[Box],
    shapes: Mapping[str, tuple[int, ...]],
    meta: Mapping[str, Any],
    steps: int = 0,
    beside: Callable[[Path], list[str]] = lambda _part: [],
) -> list[str]:
    """Write a checkpoint of what was imported, of step 0; it is there whole or not.

    Args:
        to: the checkpoint, which must not be there.
        boxes: of its tensors, one after the other.
        shapes: global shapes of these.
        meta: what ``liver.json`` says of their model.
        steps: that the moments in it have gone through.
        beside: writes what lies beside the tensors into the folder that it is given, and names it.

    Returns:
        what ``beside`` returned.

    Raises:
        OSError: it cannot be written.
    """
    part = part_path(to, _NAME)
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        close_to_writers(part)
        write_share(part, 0, boxes, shapes)
        files = beside(part)
        index = gather(part, {0: _NAME}, PATIENCE)
        digest = write_index(part, index)
        finish_folder(part, index, [0])
        own: dict[str, Any] = {"format": FORMAT, "layout": str(Layout(1, 1, 1)), "step": 0, "adam_step": steps}
        publish_checkpoint(to, part, {**own, **meta}, digest)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return files


@contextmanager
def made_whole(to: Path) -> Iterator[Path]:
    """Give a folder to write an export into, which is called ``to`` once all is in it.

    Raises:
        OSError: it cannot be written.
    """
    part = to.with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        sync_folder(part)
        os.rename(part, to)
        sync_folder(to.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def best_sources(checkpoint: Path, wanted: Collection[str], averages: bool) -> dict[str, str]:
    """Map each weight to the checkpoint's tensor that has it, or its average, in full precision.

    Raises:
        BadInput: the checkpoint is damaged, is of another model, or has no averages.
    """
    try:
        index = read_index(checkpoint)
    except DamagedError as error:
        raise BadInput(str(error)) from None
    there = {name for name in index if "@" not in name}
    if different := sorted(there ^ set(wanted)):
        raise BadInput(
            f"{checkpoint} is not of the model that its job file describes: "
            f"it has {'a' if different[0] in there else 'no'} {different[0]}"
        )
    if averages:
        check_averages(checkpoint, index)
    kinds = (AVERAGE, "master") if averages else ("master",)
    return {name: next((f"{name}@{kind}" for kind in kinds if f"{name}@{kind}" in index), name) for name in wanted}
