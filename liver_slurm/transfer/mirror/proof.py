"""The proof that a mirror is what its owner has: digests of every box, both sides, after the same number of steps.

Replay makes the owner's update bit for bit, so digests are compared for equality. What arrived whole may still be
replayed wrongly, or change where it lies; nothing else would show that before the state is needed.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Sequence

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.api import Replica
from liver_slurm.reshard.mirrors import Difference
from liver_slurm.transfer.mirror.frames import digest_of

log = logging.getLogger(__name__)

EVERY = 20
"""Steps between two proofs of a mirror. Each digests the state once on both sides, beside the next step at the keeper;
what it costs is in docs/benchmarks.md."""
_MOST_NAMES = 8
"""Boxes that a difference names."""


def digests_of(replica: Replica) -> list[int]:
    """One digest of each trained box, of its master and moments, and then one of each weight that is not trained."""
    return [digest_of(box.state) for box in replica.trained] + [digest_of([view]) for _, view in replica.fixed]


def encode(digests: Sequence[int]) -> bytes:
    """As they go over the connection."""
    return struct.pack(f"<{len(digests)}Q", *digests)


def compare(replica: Replica, expected: bytes) -> tuple[str, ...]:
    """Tensors of the boxes whose digests are not the expected ones, each once and at most some; empty: all are.

    Args:
        expected: from :func:`encode`, for the same boxes.

    Raises:
        TransferError: it is for another number of boxes.
    """
    pieces = [box.piece for box in replica.trained] + [piece for piece, _ in replica.fixed]
    if len(expected) != struct.calcsize(f"<{len(pieces)}Q"):
        raise TransferError(f"digests came of another number of boxes than {len(pieces)}")
    theirs = struct.unpack(f"<{len(pieces)}Q", expected)
    wrong = [
        piece.tensor for piece, ours, each in zip(pieces, digests_of(replica), theirs, strict=True) if ours != each
    ]
    return tuple(dict.fromkeys(wrong))[:_MOST_NAMES]


class Proofs:
    """What became of the proofs of all mirrors that a worker keeps, in whatever world; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made = self._failed = 0
        self._last: Difference | None = None

    @property
    def counts(self) -> tuple[int, int]:
        """Proofs that were made, and those of them in which a mirror differed from what its owner had."""
        with self._lock:
            return self._made, self._failed

    @property
    def last(self) -> Difference | None:
        """The last difference; None: there was none."""
        with self._lock:
            return self._last

    def note(self, owner: str, step: int, boxes: tuple[str, ...]) -> None:
        """Count a proof.

        Args:
            step: completed steps in the state that was compared.
            boxes: those that differed.
        """
        with self._lock:
            self._made += 1
            if boxes:
                self._failed, self._last = self._failed + 1, Difference(owner, step, boxes)
        if boxes:
            log.error(
                "the mirror of %s is not what that has after %d steps, and is dropped: %s",
                owner,
                step,
                ", ".join(boxes),
            )
