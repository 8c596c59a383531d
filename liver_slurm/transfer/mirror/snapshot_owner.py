"""The owner's part of a mirror that is refreshed: every some steps its state goes to the keeper, and is put by at home.

This one makes training wait. Between the gradients' norm and the reduction after which any rank may begin an update, no
rank's state changes. There each owner sends its state to its keeper and waits. So once any rank has begun that update,
every keeper has the state of the step; and until then nobody has given up the snapshot before. Its own copy an owner
makes just before its update. It takes the least memory, and :mod:`liver_slurm.transfer.mirror.snapshot_sender` the
least time.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable

import torch

from liver_slurm.base.errors import TransferError, traceback_of
from liver_slurm.engine.api import TrainingShard
from liver_slurm.engine.replica import Replica, Updates
from liver_slurm.transfer.mirror.frames import Header, Kind, decode_description, describe
from liver_slurm.transfer.mirror.proof import digests_of
from liver_slurm.transfer.mirror.snapshot import chunks_of, copy, parts_of, replica_in, room_of, send

log = logging.getLogger(__name__)


class SnapshotOwner:
    """Called by the training thread; a keeper that is gone costs the mirror, and nothing else."""

    def __init__(self, connection: socket.socket, every: int) -> None:
        """
        Args:
            connection: to the keeper, both ways.
            every: steps between two refreshes.
        """
        self._connection, self._every = connection, every
        self._live = self._own = Replica([], [])
        self._updates: Updates | None = None
        self._stop: Callable[[], None] | None = None
        self._due, self._pending, self._made = 0, -1, 0
        """Step that the next refresh is due at; step that is to be put by, and the updates made by then."""
        self._own_updates = 0
        self._digests: dict[int, bytes] = {}
        """Of the states that are put by here, and of the one that will be, by step."""
        self._given_up = False
        self.own_steps: tuple[int, ...] = ()
        """Steps completed in the state that is put by here; of one that does not change these are the last two."""
        self.nbytes = 0
        """Host memory that it takes."""
        self.sent = -1
        """Steps completed in the state that the keeper has."""
        self.seconds = 0.0
        """How long the last step was held up."""
        self.error = ""
        """Why there is no mirror any more; empty: nothing has failed."""

    def attach(self, shard: TrainingShard) -> None:
        """Keep the mirror of this shard, which may have no storage yet."""
        shard.when_gradients_are_final(lambda step, finite: self.refresh(shard, step, finite))

    def refresh(self, shard: TrainingShard, step: int, finite: bool) -> None:
        """Send the state after ``step`` completed steps if it is time to, and wait until the keeper has it.

        Args:
            shard: whose gradients are final.
            finite: whether there will be an update; a step without one refreshes nothing. All ranks see the same.
        """
        begun = time.perf_counter()
        if finite and step >= self._due:
            if self._updates is None:
                self._begin(shard)
            self._due, self._pending, self._made = step + self._every, step, self._updates_made()
            kept = {each: self._digests[each] for each in self.own_steps}
            self._digests = {**kept, step: digests_of(self._live)}
            self._send(step)
            if not self._live.trained:
                self.own_steps = (*self.own_steps[-1:], step)  # what it has does not change, and is sent already
        self.seconds = time.perf_counter() - begun

    @property
    def ready(self) -> bool:
        """Whether the first refresh can be made."""
        return True

    def all_ready(self) -> None:
        """Learn that all ranks are ready for a refresh after the next step."""

    def state_at(self, step: int) -> Replica:
        """Return the state of this rank after ``step`` completed steps: as it is put by here, or alive, if that is
        still it.

        Raises:
            TransferError: neither is.
        """
        if step == self._pending:
            return self._live
        if step not in self.own_steps:
            raise TransferError(f"the state after {step} steps is not put by here, but that after {self.own_steps}")
        return self._own

    def send_state(self, connection: socket.socket, step: int) -> None:
        """Send :meth:`state_at`.

        Raises:
            OSError, TransferError: there is none, or the other end has not got it.
        """
        send(connection, chunks_of(self.state_at(step)), step, self.digests_at(step))

    def digests_at(self, step: int) -> bytes:
        """Return the digests of :meth:`state_at` as it was alive, see :mod:`liver_slurm.transfer.mirror.proof`."""
        return self._digests[step]

    def updates_at(self, step: int) -> int:
        """Updates made in the state after ``step`` completed steps that is put by here."""
        assert step in self.own_steps
        return self._own_updates

    def drop(self, step: int) -> None:
        """Forget the state after ``step`` completed steps that is put by here: it is not what was alive."""
        self.own_steps = tuple(each for each in self.own_steps if each != step)

    def stop(self) -> None:
        """Watch the updates no more."""
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()

    def give_up(self) -> None:
        """Whatever fails from now on is no news: the connections are given up. Callable from any thread."""
        self._given_up = True

    def close(self) -> None:
        """Give all of it back; the connections must be given up."""
        self.stop()

    def _begin(self, shard: TrainingShard) -> None:
        """Find room for the state's copy, describe it to the keeper, and watch its updates."""
        self._live = shard.replica()
        description = describe(self._live)
        boxes = decode_description(description)
        self.nbytes = room_of(parts_of(boxes))
        on_card = any(box.master.is_cuda for box in self._live.trained)
        self._own = replica_in(torch.zeros(self.nbytes, dtype=torch.uint8, pin_memory=on_card), boxes)
        copy(Replica([], self._live.fixed), Replica([], self._own.fixed))
        self._updates = shard.updates()
        if self._live.trained:
            self._stop = self._updates.watch(self._put_by, lambda: None, None)
        self._describe(description)

    def _updates_made(self) -> int:
        assert self._updates is not None
        return self._updates.adam_step()

    def _describe(self, description: bytes) -> None:
        try:
            self._connection.sendall(Header(Kind.DESCRIPTION, nbytes=len(description)).encode() + description)
        except OSError as error:
            self._failed(error)

    def _send(self, step: int) -> None:
        if not self.error:
            try:
                self.send_state(self._connection, step)
            except (OSError, TransferError) as error:
                self._failed(error)
            else:
                self.sent = step

    def _put_by(self) -> None:
        """Put this step's copy in place of the last one's: an update begins, so keepers have what they were sent."""
        if self._pending < 0:
            return
        begun = time.perf_counter()
        step, self._pending, self.own_steps = self._pending, -1, ()
        copy(self._live, self._own)
        self.own_steps, self._own_updates = (step,), self._made
        self.seconds += time.perf_counter() - begun

    def _failed(self, error: Exception) -> None:
        self.error = str(error) or type(error).__name__
        if not self._given_up:
            log.warning("the state of this worker has no mirror any more: %s", self.error, exc_info=traceback_of(error))
