"""Checkpoints of a world: each rank writes its share beside training; any layout reads them, bit for bit."""

from __future__ import annotations

import itertools
import logging
import shutil
import threading
import time
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liver_slurm.base.errors import BadInput, first_line, traceback_of
from liver_slurm.config.batch_sizes import samples_before
from liver_slurm.config.train import TrainSection
from liver_slurm.engine.api import TrainingShard
from liver_slurm.engine.checkpoint_files import finish_folder, gather, refuse_share, write_share
from liver_slurm.engine.checkpoint_reading import read_boxes
from liver_slurm.engine.replica import Boxes
from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.tensors import AVERAGE, KNOWN, Piece
from liver_slurm.rundir.checkpoint_index import DamagedError, Index, write_index
from liver_slurm.rundir.checkpoints import (
    CONSUMED,
    checkpoint_path,
    part_path,
    prune_checkpoints,
    publish_checkpoint,
    read_index,
    read_meta,
)

log = logging.getLogger(__name__)

FORMAT = 1
PATIENCE = 120.0
"""Seconds for which nothing may come from the ranks that still write; a slow disk only has to go on."""
_LAST_WORD = 1.0
"""Seconds that a worker that leaves may take to say so in the folder: its node is waited for."""


def _global_shapes(state: TrainingShard) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for param in state.spec.params:
        for box in param.boxes:
            for suffix in ("", "@master", *(f"@{name}" for name in KNOWN)):
                shapes[box.tensor + suffix] = box.global_shape
    return shapes


def _weight(piece: Piece) -> str:
    return piece.tensor.partition("@")[0]


def own_share(
    pieces: Iterable[tuple[Piece, int]], layout: Layout, rank: int, shared: set[str], split: bool, experts: set[str]
) -> set[int]:
    """Return which of a rank's pieces it is to write, by their number, so that each is written by one of its replicas.

    What tensor parallel ranks hold alike is small, and written by each.

    Args:
        pieces: the rank's pieces, each with its bytes; data parallel replicas have the same weights in the same order.
        shared: weights that the first and the last pipeline stage both hold; the first one writes them.
        split: optimizer state is split among data parallel ranks; otherwise they hold it alike.
        experts: weights that not all data parallel ranks hold, but only those of the same experts.
    """
    stage, chosen = layout.coordinate("pp", rank), set()
    alike: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    for number, (piece, nbytes) in enumerate(pieces):
        if _weight(piece) in shared and stage > 0:
            continue
        if split and "@" in piece.tensor:
            chosen.add(number)
        else:
            alike[_weight(piece) in experts].append((number, nbytes))
    chosen |= _even_share(alike[False], layout.dense_replicas, layout.dense_replica(rank))
    return chosen | _even_share(alike[True], layout.edp, layout.coordinate("edp", rank))


def _even_share(alike: Sequence[tuple[int, int]], replicas: int, replica: int) -> set[int]:
    """Return which of numbered pieces, each with its bytes, one of several replicas is to write."""
    chosen, total, before = set(), sum(nbytes for _, nbytes in alike), 0
    for number, nbytes in alike:
        if min(replicas - 1, (2 * before + nbytes) * replicas // max(2 * total, 1)) == replica:
            chosen.add(number)
        before += nbytes
    return chosen


@dataclass(frozen=True)
class Written:
    """Result of writing a checkpoint: it is complete, or failed with an error."""

    step: int
    path: Path
    error: str
    seconds: float
    stall_seconds: float
    """Time that training stood still."""
    left: str = ""
    """It is complete, but this of an old one could not be removed."""


class Checkpointer:
    """Writes checkpoints of one world; every member has one and calls it at the same steps."""

    def __init__(
        self,
        state: TrainingShard,
        folder: Path,
        keep: int,
        asynchronous: bool,
        train: TrainSection,
        after: Checkpointer | None = None,
        on_write: Callable[[], None] = lambda: None,
        patience: float = PATIENCE,
    ) -> None:
        """Args:
        train: the job's; it says whether ranks share the optimizer's state out, and which samples steps took.
        after: checkpointer of the world before, which may still be writing; its checkpoint is waited for first.
        on_write: called before each checkpoint's files are written.
        patience: see :data:`PATIENCE`.
        """
        self._state, self._folder, self._keep, self._asynchronous = state, folder, keep, asynchronous
        self._train, self._after, self._on_write, self._patience = train, after, on_write, patience
        self._shapes = _global_shapes(state)
        self._rank, self._layout = state.world.rank, state.world.layout
        self.best = -1
        """Step of a checkpoint that stays, however many newer ones there are; -1: of none."""
        self._writing: threading.Thread | None = None
        self._part: Path | None = None
        self._numbers = itertools.count()

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
            done: called once this rank's part is over, perhaps from another thread. On rank 0 that is when the
                checkpoint is complete or has failed; on the others, when their share is written or could not be.
        """
        begun = time.perf_counter()
        self.wait()
        share = self._share()
        if self._asynchronous:
            share = [(piece, view.to("cpu", copy=True)) for piece, view in share]
        counters = {
            "step": step,
            "adam_step": max(self._state.steps(), default=step),
            CONSUMED: samples_before(self._train, step),
        }
        stall = time.perf_counter() - begun
        path = checkpoint_path(self._folder, step)
        self._part = part_path(path, f"g{self._state.world.membership.generation}-{next(self._numbers)}")

        def write() -> None:
            error, left = "its writer ended without a word", ""
            try:
                left = self._write(path, share, counters)
                error = ""
            except Exception as caught:  # a thread's edge: the run goes on, and the failure is reported
                error = first_line(caught)
                log.error("checkpoint of step %d: %s", step, error, exc_info=traceback_of(caught))
            finally:
                seconds = time.perf_counter() - begun
                done(Written(step, path, error, seconds, stall if self._asynchronous else seconds, left))

        self._writing = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._writing.start()
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

    def abandon(self) -> None:
        """Let rank 0 know that this rank leaves: what it has not written by now, it never will."""
        if self._after is not None:
            self._after.abandon()
        if self._writing is not None and self._writing.is_alive() and self._part is not None and self._rank != 0:
            word = threading.Thread(target=refuse_share, args=(self._part, self._rank, "it has left"), daemon=True)
            word.start()
            word.join(_LAST_WORD)

    def _share(self) -> Boxes:
        boxes = self._state.boxes()
        shared = {box.tensor for param in self._state.spec.params if param.shared for box in param.boxes}
        experts = {box.tensor for param in self._state.spec.params if param.expert for box in param.boxes}
        sizes = [(piece, view.nbytes) for piece, view in boxes]
        split = self._train.distributed_optimizer
        chosen = own_share(sizes, self._layout, self._rank, shared, split, experts)
        return [box for number, box in enumerate(boxes) if number in chosen]

    def _write(self, path: Path, share: Boxes, counters: dict[str, int]) -> str:
        """Write this rank's share, and on rank 0 the checkpoint; returns what is left of old ones."""
        part, rank = self._part, self._rank
        assert part is not None
        try:
            self._on_write()
            write_share(part, rank, share, self._shapes)
            return self._publish(path, part, counters) if rank == 0 else ""
        except Exception as error:
            if rank == 0:
                shutil.rmtree(part, ignore_errors=True)  # what stays is removed with the old ones
            else:
                refuse_share(part, rank, first_line(error))
            raise

    def _publish(self, path: Path, part: Path, counters: dict[str, int]) -> str:
        names = dict(enumerate(self._state.world.membership.members))
        index = gather(part, names, self._patience)
        digest = write_index(part, index)
        finish_folder(part, index, names)
        publish_checkpoint(path, part, {"format": FORMAT, "layout": str(self._layout), **counters}, digest)
        return prune_checkpoints(self._folder, self._keep, counters["step"], self.best)


def load_checkpoint(state: TrainingShard, path: Path, averages: bool = False) -> int:
    """Load a rank's state from a checkpoint of the same model, saved in any layout.

    Moving averages of the weights that it does not have begin with the weights.

    Args:
        averages: load them in place of the weights, too: for an evaluation of them.

    Returns:
        the steps that it was trained for.

    Raises:
        BadInput: it is no checkpoint, or damaged, or of another model, or has no averages.
    """
    meta, stored = _checked_meta(path), _stored(path)
    if averages:
        check_averages(path, stored)
    instead = ("", "master") if averages else ()
    boxes = []
    for piece, view in state.boxes():
        weight, _, kind = piece.tensor.partition("@")
        tensor = f"{weight}@{AVERAGE}" if kind in instead and f"{weight}@{AVERAGE}" in stored else piece.tensor
        boxes.append((piece._replace(tensor=tensor), view))
    _read(state, path, _with_averages(path, boxes, stored))
    state.set_step(int(meta["adam_step"]))
    return int(meta["step"])


def load_start(state: TrainingShard, path: Path, optimizer: bool) -> None:
    """Load what a run begins with at step 0 from a checkpoint of the same model, in any layout and precision.

    Weights and masters are both read from the checkpoint's masters, or from its weights where it has no masters. The
    shard is fresh: its moments are zero, and moving averages begin with the weights.

    Args:
        optimizer: load the moments and averages too.

    Raises:
        BadInput: it is no checkpoint, or damaged, or of another model, or has no moments.
    """
    meta, stored, boxes = _checked_meta(path), _stored(path), []
    for piece, view in state.boxes():
        weight, _, kind = piece.tensor.partition("@")
        if kind in ("", "master") or (kind == AVERAGE and not optimizer):
            boxes.append((piece._replace(tensor=_full_precision(weight, stored)), view))
        elif optimizer:
            boxes.append((piece, view))
    _read(state, path, _with_averages(path, boxes, stored))
    state.set_step(int(meta["adam_step"]) if optimizer else 0)


def check_averages(path: Path, stored: Iterable[str]) -> None:
    """Check that a checkpoint has moving averages of its weights.

    Args:
        stored: names of its tensors.

    Raises:
        BadInput: it has none.
    """
    if not any(name.endswith(f"@{AVERAGE}") for name in stored):
        raise BadInput(f"{path} has no moving average of its weights: it is of a run with train.ema_decay = 0")


def _full_precision(weight: str, stored: Container[str]) -> str:
    """Name the tensor of a checkpoint that has a weight in full precision."""
    return f"{weight}@master" if f"{weight}@master" in stored else weight


def _with_averages(path: Path, boxes: Boxes, stored: Container[str]) -> Boxes:
    """Let moving averages that a checkpoint does not have be read from its weights, and say so."""
    found, begun = [], False
    for piece, view in boxes:
        weight, _, kind = piece.tensor.partition("@")
        if kind == AVERAGE and piece.tensor not in stored:
            piece, begun = piece._replace(tensor=_full_precision(weight, stored)), True
        found.append((piece, view))
    if begun:
        log.warning("%s has no moving average of the weights, so that begins with its weights", path)
    return found


def _stored(path: Path) -> Index:
    try:
        return read_index(path)
    except DamagedError as error:
        raise BadInput(str(error)) from error


def _read(state: TrainingShard, path: Path, boxes: Boxes) -> None:
    try:
        read_boxes(path, boxes, _global_shapes(state))
    except DamagedError as error:
        raise BadInput(str(error)) from error


def _checked_meta(path: Path) -> dict[str, Any]:
    meta = read_meta(path)
    if meta.get("format") != FORMAT:
        raise BadInput(f"{path} has checkpoint format {meta.get('format')}, this version reads {FORMAT}")
    return meta
