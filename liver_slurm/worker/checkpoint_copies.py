"""A second place for checkpoints: each that is complete is copied there, beside training and beside the next one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from liver_slurm.rundir.checkpoint_index import DamagedError
from liver_slurm.rundir.checkpoints import copy_checkpoint

log = logging.getLogger(__name__)


class CheckpointCopies:
    """Copies the newest checkpoint in a thread of its own; one that is older than the next to copy is passed over."""

    def __init__(self, folder: Path, keep: int, report: Callable[[int, str], None]) -> None:
        """
        Args:
            folder: where copies lie.
            report: told that a checkpoint could not be copied, and why; or (0, "") that one was.
        """
        self._folder, self._keep, self._report = folder, keep, report
        self._changed = threading.Condition()
        self._next: Path | None = None
        self._copying: threading.Thread | None = None

    def copy(self, checkpoint: Path) -> None:
        """Copy a checkpoint, soon."""
        with self._changed:
            self._next = checkpoint
            if self._copying is None:
                self._copying = threading.Thread(target=self._run, name="copy checkpoints", daemon=True)
                self._copying.start()

    @property
    def under_way(self) -> bool:
        """Whether something is being copied."""
        return self._copying is not None

    def wait(self) -> None:
        """Wait until nothing is being copied."""
        with self._changed:
            self._changed.wait_for(lambda: self._copying is None)

    def _run(self) -> None:
        try:
            while (checkpoint := self._take()) is not None:
                self._copy(checkpoint)
        except BaseException:
            with self._changed:
                self._end()  # nobody must wait for this thread
            raise

    def _take(self) -> Path | None:
        """Return what is to be copied next; None: nothing, and this thread ends."""
        with self._changed:
            checkpoint, self._next = self._next, None
            if checkpoint is None:
                self._end()
            return checkpoint

    def _end(self) -> None:
        self._copying = None
        self._changed.notify_all()

    def _copy(self, checkpoint: Path) -> None:
        try:
            left = copy_checkpoint(checkpoint, self._folder, self._keep)
        except (OSError, DamagedError) as error:
            log.warning("%s is not copied to %s: %s", checkpoint.name, self._folder, error)
            self._report(1, f"{checkpoint.name} is not copied to {self._folder}: {error}")
        else:
            log.info("%s is copied to %s", checkpoint.name, self._folder)
            self._report(0, f"old copies cannot be removed: {left}" if left else "")
