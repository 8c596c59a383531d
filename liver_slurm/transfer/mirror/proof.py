"""The proof that a mirror is what its owner has: digests of every box, both sides, after the same number of steps.

Replay makes the owner's update bit for bit, so digests are compared for equality. What arrived whole may still be
replayed wrongly, or change where it lies; nothing else would show that before the state is needed. Of a snapshot the
digests are those of the live state, wherever that lies, so they prove its way through host memory, too.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Sequence

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Replica
from liver_slurm.reshard.mirrors import Difference
from liver_slurm.transfer.checksum import Kind, digests
from liver_slurm.transfer.mirror.snapshot import DIGEST_BYTES, tensors_of

log = logging.getLogger(__name__)

EVERY = 20
"""Steps between two proofs of a mirror. Each digests the state once on both sides, beside the next step at the keeper;
what it costs is in docs/benchmarks.md."""
_MOST_NAMES = 8
"""Boxes that a difference names."""
_KINDS: tuple[Kind, ...] = ("xxh3", "mix")


def digests_of(replica: Replica) -> bytes:
    """Return the digests of a state's tensors, as they go over the connection; the state may lie anywhere."""
    views = tensors_of(replica)
    kind: Kind = "mix" if any(view.is_cuda for view in views) else "xxh3"
    return encode(kind, digests(views, kind))


def encode(kind: Kind, words: Sequence[int]) -> bytes:
    """Return the digests of a state's tensors, of one kind, as they go over the connection."""
    return struct.pack(f"<{len(words) + 1}Q", _KINDS.index(kind), *words)


def compare(replica: Replica, expected: bytes) -> tuple[str, ...]:
    """Tensors of the boxes whose digests are not the expected ones, each once and at most some; empty: all are.

    Args:
        replica: wherever it lies.
        expected: from :func:`digests_of`, of the same boxes.

    Raises:
        TransferError: it is of another number of boxes, or no digests.
    """
    views, names = tensors_of(replica), [box.piece.tensor for box in replica.trained for _ in box.state]
    names += [piece.tensor for piece, _ in replica.fixed]
    if len(expected) != DIGEST_BYTES * (len(views) + 1):
        raise TransferError(f"digests came of another number of tensors than {len(views)}")
    (kind, *theirs) = struct.unpack(f"<{len(views) + 1}Q", expected)
    if kind >= len(_KINDS):
        raise TransferError("digests came of a kind that is not known")
    found = zip(names, digests(views, _KINDS[kind]), theirs, strict=True)
    return tuple(dict.fromkeys(name for name, ours, each in found if ours != each))[:_MOST_NAMES]


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
