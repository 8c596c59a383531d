"""The owner's part of a mirror: it sends what an update needs before any rank may begin that update."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.api import TrainingShard
from liver_slurm.engine.replica import Boxes, Replica, Updates
from liver_slurm.transfer.checksum import memory
from liver_slurm.transfer.connections import receive_exactly
from liver_slurm.transfer.mirror.frames import ACKNOWLEDGEMENT, Header, Kind, describe, digest_of
from liver_slurm.transfer.mirror.proof import EVERY, digests_of
from liver_slurm.transfer.optimizer_replay import encode_groups

log = logging.getLogger(__name__)

AT_ONCE = 256 << 20
"""Bytes of state that a step takes along until the mirror has all of it: training waits for them."""
PRIMED_BYTES = 64 << 20
"""Bytes of state that go to the keeper before a world is committed; of more, training would stand still too long."""
MOST_DIFFERENT = 3
"""Proofs in a row that do not hold before the mirror is given up, as where the keeper's processor rounds otherwise."""


class MirrorOwner:
    """A keeper that is gone costs the mirror, and nothing else.

    Called by the training thread, but for :meth:`prime`: a new world's first pass changes nothing of its state.
    """

    def __init__(self, connection: socket.socket, at_once: int = AT_ONCE, every: int = EVERY) -> None:
        """
        Args:
            connection: to the keeper, both ways.
            at_once: see :data:`AT_ONCE`.
            every: steps between two proofs; there is one also as soon as the keeper has all of the state.
        """
        self._connection, self._at_once, self._every = connection, at_once, every
        self._next_proof, self._asked = 0, -1
        """Completed steps from which on there is to be a proof; and those of the one that was not answered yet."""
        self._differed = 0
        """Proofs in a row that did not hold."""
        self._replica = Replica([], [])
        self._described = False
        """The keeper knows what boxes there are."""
        self._updates: Updates | None = None
        self._stop: Callable[[], None] | None = None
        self._ends = [0]
        self._gradients = torch.empty(0)
        """In host memory, of all boxes."""
        self._sent = self._step = 0
        """Boxes whose state the keeper has; and the step whose gradients it got last."""
        self._lock = threading.Lock()
        """Held by whoever sends."""
        self.seconds = 0.0
        """How long the last step was held up."""
        self.error = ""
        """Why there is no mirror any more; empty: nothing has failed."""

    @property
    def whole(self) -> bool:
        """The keeper has all of the state."""
        return self._described and self._sent == len(self._replica.trained) and not self.error

    @property
    def nbytes(self) -> int:
        """Host memory that gradients on their way take."""
        return int(self._gradients.nbytes)

    def prime(self, shard: TrainingShard, step: int) -> None:
        """Send all of the state, if it is small: then the mirror is whole before the first update.

        Args:
            shard: whose state is that after ``step`` completed steps.
        """
        trained = shard.replica().trained
        if not 0 < sum(view.nbytes for box in trained for view in box.state) <= PRIMED_BYTES:
            return  # the keeper would need room for it while it keeps the world before
        with self._lock:
            if not self.error and not self._described:
                try:
                    self._describe(shard)  # its updates are watched from the first step on: they have no number before
                    self._send_state(step)
                    self._acknowledged(step)
                except (OSError, TransferError) as error:
                    self._failed(error)

    def ship(self, shard: TrainingShard, step: int, finite: bool) -> None:
        """Send what the update behind ``step`` completed steps needs, and wait until the keeper has it.

        Args:
            shard: whose gradients are final and clipped.
            finite: whether there will be an update.
        """
        begun = time.perf_counter()
        with self._lock:
            if not self.error:
                try:
                    self._ship(shard, step, finite)
                except (OSError, TransferError) as error:
                    self._failed(error)
        self.seconds = time.perf_counter() - begun

    def stop(self) -> None:
        """Watch the updates no more."""
        with self._lock:
            stop, self._stop = self._stop, None
        if stop is not None:
            stop()

    def _ship(self, shard: TrainingShard, step: int, finite: bool) -> None:
        if not self._described:
            self._describe(shard)
        if self._updates is None:
            self._watch(shard)
        if self._asked >= 0:
            self._hear_proof()
        self._step = step
        if finite and self._replica.trained:
            self._send_gradients()
        else:
            self._connection.sendall(Header(Kind.SKIPPED, step).encode())
        self._acknowledged(step)

    def _acknowledged(self, step: int) -> None:
        """Wait until the keeper has what was sent."""
        if self._answer() != step:
            raise TransferError("the keeper of a mirror acknowledged another step")

    def _answer(self) -> int:
        answer = bytearray(ACKNOWLEDGEMENT.size)
        receive_exactly(self._connection, memoryview(answer))
        (step,) = ACKNOWLEDGEMENT.unpack(answer)
        return int(step)

    def _hear_proof(self) -> None:
        """Learn whether the keeper has what was here after the last update; if not, it gets all of it again."""
        asked, self._asked = self._asked, -1
        answer = self._answer()
        if answer not in (asked, ~asked):
            raise TransferError("the keeper of a mirror answered another proof")
        self._differed = self._differed + 1 if answer == ~asked else 0
        if self._differed:
            self._sent = self._next_proof = 0
            log.warning("the mirror of this worker differed after %d steps: its state is sent again", asked)
        if self._differed == MOST_DIFFERENT:
            raise TransferError(f"it differed {MOST_DIFFERENT} times in a row, the last time after {asked} steps")

    def _describe(self, shard: TrainingShard) -> None:
        self._replica = shard.replica()
        if self._replica.fixed and not self._replica.trained:
            raise TransferError("it has only weights that are not trained")
        self._ends = [0, *accumulate(box.master.numel() for box in self._replica.trained)]
        on_card = any(box.master.is_cuda for box in self._replica.trained)
        self._gradients = torch.empty(self._ends[-1], pin_memory=on_card)
        description = describe(self._replica)
        self._connection.sendall(Header(Kind.DESCRIPTION, nbytes=len(description)).encode() + description)
        self._described = True

    def _watch(self, shard: TrainingShard) -> None:
        self._updates = shard.updates()
        if self._replica.trained:
            self._stop = self._updates.watch(lambda: None, self._made, None)

    def _made(self) -> None:
        """Tell the keeper that the update is made."""
        if not self.error:
            try:
                self._connection.sendall(Header(Kind.MADE, self._step).encode())
                if self.whole and self._step + 1 >= self._next_proof:
                    self._prove(self._step + 1)
            except OSError as error:
                self._failed(error)

    def _prove(self, step: int) -> None:
        """Say what the state is after ``step`` completed steps; nothing changes it meanwhile."""
        begun = time.perf_counter()
        digests = digests_of(self._replica)
        self._connection.sendall(Header(Kind.PROOF, step, nbytes=len(digests)).encode() + digests)
        self._asked, self._next_proof = step, step + self._every
        self.seconds += time.perf_counter() - begun

    def _failed(self, error: Exception) -> None:
        self.error = str(error)
        log.warning("the state of this worker has no mirror any more: %s", error)

    def _send_gradients(self) -> None:
        assert self._updates is not None
        first, last = self._sent, self._next()
        boxes = self._replica.trained[:last]
        gradients = _gathered([box.gradient() for box in boxes], self._gradients[: self._ends[last]])
        table = encode_groups(self._updates.groups()).view(torch.uint8).view(-1)
        parts = [gradients, *self._state(first, last)]
        header = Header(
            Kind.GRADIENTS, self._step, max(0, self._updates.adam_step()), first, last, table.numel(), digest_of(parts)
        )
        self._connection.sendall(header.encode() + bytes(memory(table)))
        for part in parts:
            self._connection.sendall(memory(part))
        self._sent = last

    def _send_state(self, step: int) -> None:
        last = len(self._replica.trained)
        parts = self._state(0, last)
        self._connection.sendall(Header(Kind.PRIMED, step, last=last, digest=digest_of(parts)).encode())
        for part in parts:
            self._connection.sendall(memory(part))
        self._sent = last

    def _state(self, first: int, last: int) -> list[torch.Tensor]:
        """Return the state of some boxes, in host memory."""
        new = self._replica.trained[first:last]
        state = [_gathered(list(views)) for views in zip(*(box.state for box in new), strict=True)]
        return [*state, *(view.cpu().contiguous().view(-1).view(torch.uint8) for _, view in self._fixed(first, last))]

    def _next(self) -> int:
        """Return how many boxes the keeper has the state of after this step."""
        last = self._sent
        trained, nbytes = self._replica.trained, 0
        while last < len(trained):
            nbytes += sum(view.nbytes for view in trained[last].state)
            if last > self._sent and nbytes > self._at_once:
                break
            last += 1
        return last

    def _fixed(self, first: int, last: int) -> Boxes:
        """Return the weights that are not trained, with the last of the others."""
        return self._replica.fixed if first < last == len(self._replica.trained) else ()


def _gathered(views: Sequence[torch.Tensor], into: torch.Tensor | None = None) -> torch.Tensor:
    """Copy views of one dtype into one run of host memory."""
    flat = [view.detach().reshape(-1) for view in views]
    if into is None:
        return torch.cat(flat).cpu()
    if flat and flat[0].is_cuda:
        into.copy_(torch.cat(flat), non_blocking=True)
        torch.cuda.current_stream(flat[0].device).synchronize()
        return into
    return torch.cat(flat, out=into) if flat else into
