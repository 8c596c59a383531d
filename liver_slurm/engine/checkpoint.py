"""Checkpoints: each rank writes its boxes with torch.distributed.checkpoint; any layout reads them, bit for bit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from liver_slurm.base.errors import BadInput
from liver_slurm.engine.api import Boxes, TrainingShard
from liver_slurm.parallel import c10d
from liver_slurm.parallel.torch_private import wrapper_tensor
from liver_slurm.rundir.checkpoints import (
    begin_checkpoint,
    checkpoint_path,
    part_path,
    prune_checkpoints,
    publish_checkpoint,
    read_meta,
)

_FORMAT = 1


class _BoxTensor(torch.Tensor):  # type: ignore[misc]
    """All boxes that this rank holds of one global tensor, as torch.distributed.checkpoint's protocol wants them.

    It is a wrapper subclass without data, so that torch's flattening of state dicts takes it for a tensor.
    """

    boxes: dict[tuple[int, ...], torch.Tensor]
    global_shape: torch.Size

    @staticmethod
    def __new__(cls, global_shape: torch.Size, boxes: dict[tuple[int, ...], torch.Tensor]) -> _BoxTensor:
        dtype = next(iter(boxes.values())).dtype
        self: _BoxTensor = wrapper_tensor(cls, global_shape, dtype)
        self.global_shape, self.boxes = global_shape, boxes
        return self

    def __create_write_items__(self, name: str, _object: Any) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, torch.Size(offset), index),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(offsets=torch.Size(offset), sizes=view.size()),
                    properties=TensorProperties.create_from_tensor(view),
                    size=self.global_shape,
                ),
            )
            for index, (offset, view) in enumerate(self.boxes.items())
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(offsets=torch.Size(offset), sizes=view.size()) for offset, view in self.boxes.items()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        assert index.offset is not None
        return self.boxes[tuple(index.offset)]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        raise TypeError(f"{function} on a checkpoint's box tensor: it has no data of its own")

    def __repr__(self) -> str:
        return f"_BoxTensor({tuple(self.global_shape)}, {len(self.boxes)} boxes)"


def _as_state_dict(boxes: Boxes, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    by_tensor: dict[str, dict[tuple[int, ...], torch.Tensor]] = {}
    for piece, view in boxes:
        by_tensor.setdefault(piece.tensor, {})[piece.offset] = view
    return {name: _BoxTensor(torch.Size(shapes[name]), views) for name, views in by_tensor.items()}


def _global_shapes(state: TrainingShard) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for param in state.spec.params:
        for box in param.boxes:
            for suffix in ("", "@master", "@exp_avg", "@exp_avg_sq"):
                shapes[box.tensor + suffix] = box.global_shape
    return shapes


@dataclass(frozen=True)
class Written:
    """Result of writing a checkpoint: it is complete, or failed with an error."""

    step: int
    path: Path
    error: str
    seconds: float
    stall_seconds: float
    """Time that training stood still."""


class Checkpointer:
    """Writes checkpoints of one world; every member has one and calls it at the same steps."""

    def __init__(
        self,
        state: TrainingShard,
        folder: Path,
        keep: int,
        asynchronous: bool,
        after: Checkpointer | None = None,
        on_write: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        after: checkpointer of the world before, which may still be writing; its checkpoint is waited for first.
        on_write: called before each checkpoint's files are written.
        """
        self._state, self._folder, self._keep, self._asynchronous = state, folder, keep, asynchronous
        self._after, self._on_write = after, on_write
        self._shapes = _global_shapes(state)
        self._writing: threading.Thread | None = None

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is still being written."""
        here = self._writing is not None and self._writing.is_alive()
        return here or (self._after is not None and self._after.writing)

    def save(self, step: int, done: Callable[[Written], None]) -> None:
        """Write the state after ``step`` steps.

        A checkpoint that is still being written is waited for first. In asynchronous mode, training then waits only
        while the state is copied.

        Args:
            done: called once it is complete or has failed, perhaps from another thread.
        """
        begun = time.perf_counter()
        self.wait()
        boxes = self._state.boxes()
        counters = {"adam_step": max(self._state.steps(), default=step)}
        if self._asynchronous:
            boxes = [(piece, view.to("cpu", copy=True)) for piece, view in boxes]
        work = threading.Thread(
            target=self._write, args=(boxes, step, counters, begun, time.perf_counter() - begun, done), daemon=True
        )
        self._writing = work
        work.start()
        if not self._asynchronous:
            self.wait()

    def wait(self) -> None:
        """Wait until no checkpoint is being written."""
        after, self._after = self._after, None
        if after is not None:
            after.wait()
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _write(
        self,
        boxes: Boxes,
        step: int,
        counters: dict[str, int],
        begun: float,
        stall: float,
        done: Callable[[Written], None],
    ) -> None:
        path = checkpoint_path(self._folder, step)
        error = ""
        try:
            self._on_write()
            self._write_files(boxes, step, counters, path)
        except Exception as caught:  # noqa: BLE001 - a thread's edge: the run goes on, and the failure is reported
            error = f"{type(caught).__name__}: {caught}".splitlines()[0]
        seconds = time.perf_counter() - begun
        done(Written(step, path, error, seconds, stall if self._asynchronous else seconds))

    def _write_files(self, boxes: Boxes, step: int, counters: dict[str, int], path: Path) -> None:
        part = part_path(path)
        world = self._state.world
        if world.rank == 0:
            begin_checkpoint(path)
        host = world.groups["host"]
        with c10d.default_group(host):
            torch.distributed.barrier(group=host)
            dcp.save(
                _as_state_dict(boxes, self._shapes),
                storage_writer=dcp.FileSystemWriter(part, thread_count=1, sync_files=True),
                process_group=host,
            )
        if world.rank == 0:
            meta = {"format": _FORMAT, "step": step, "layout": str(world.layout), **counters}
            publish_checkpoint(path, meta)
            if self._keep > 0:
                prune_checkpoints(self._folder, self._keep)


def load_checkpoint(state: TrainingShard, path: Path) -> int:
    """Load a rank's state from a checkpoint of the same model, saved in any layout.

    Returns:
        the steps that it was trained for.

    Raises:
        BadInput: it is no checkpoint, or of another model.
    """
    meta = read_meta(path)
    if meta.get("format") != _FORMAT:
        raise BadInput(f"{path} has checkpoint format {meta.get('format')}, this version reads {_FORMAT}")
    wanted = _as_state_dict(state.boxes(), _global_shapes(state))
    try:
        dcp.load(wanted, storage_reader=dcp.FileSystemReader(path), no_dist=True)
    except (RuntimeError, ValueError, KeyError, dcp.CheckpointException) as error:
        raise BadInput(f"{path} does not fit this model: {str(error).splitlines()[0]}") from error
    state.set_step(int(meta["adam_step"]))
    return int(meta["step"])
