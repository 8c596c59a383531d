"""The owner's part of a mirror that is refreshed beside training: it costs a step next to nothing, and memory.

When an update has made the state that is to be put by, the card's copy engine takes it into host memory while the next
step runs forward and backward, which change nothing of it; the next update waits for the copy. From there a thread
sends it, or, where the keeper has mapped that memory, says that it is whole. There is room for two: before an owner
joins the reduction after which any rank may begin the next update that makes such a state, it waits until its keeper
has the last one. So the copy that gives way to the new one is older than what all keepers have, whoever dies, whenever.

Where a card is to write to it, getting the room may take seconds, and a world's waits for the end of the one before. So
a thread does it, and there a refresh comes only where all ranks have agreed, a step ahead, that it would hold none of
them up: there is room, and by the time that the last snapshot took, and a step does, it will have arrived.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from contextlib import nullcontext
from queue import SimpleQueue

import msgspec
import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.api import TrainingShard
from liver_slurm.engine.replica import Replica
from liver_slurm.transfer.connections import hung_up, receive_exactly
from liver_slurm.transfer.digest_plan import DigestPlan, PendingDigests
from liver_slurm.transfer.mirror.frames import (
    ACKNOWLEDGEMENT,
    BoxDescription,
    Header,
    Kind,
    decode_description,
    describe,
)
from liver_slurm.transfer.mirror.host_room import Lease
from liver_slurm.transfer.mirror.proof import digests_of, encode
from liver_slurm.transfer.mirror.shared_place import SharedPlace, place_of
from liver_slurm.transfer.mirror.snapshot import chunks_in, copy, replica_in, send, tensors_of
from liver_slurm.transfer.mirror.snapshot_owner import SnapshotOwner

_MARGIN = 1.25
"""Of the time that a snapshot is expected to take."""


class _Place:
    """Room for one snapshot."""

    def __init__(self, boxes: list[BoxDescription], memory: torch.Tensor) -> None:
        self.shared = SharedPlace(boxes, memory)
        self.shared.give_up()  # another world may have used the memory
        self.data = self.shared.data
        self.replica = replica_in(self.data, boxes)
        self.step, self.updates = -1, 0
        self.digests: bytes | PendingDigests = b""
        """Of the live state that it is of."""
        self.copied: torch.cuda.Event | None = None
        """Happens when a card has written all of it."""

    def wait(self) -> None:
        """Until all of it lies there."""
        if self.copied is not None:
            self.copied.synchronize()


class SnapshotSender(SnapshotOwner):
    """What the training thread calls returns at once, unless the keeper is slower than snapshots come."""

    def __init__(self, connection: socket.socket, every: int, lease: Lease, alone: bool) -> None:
        """
        Args:
            connection, every: see :class:`SnapshotOwner`.
            lease: of host memory; who made it ends it.
            alone: the keeper keeps what this owner has, and not the parity of several.
        """
        super().__init__(connection, every)
        self._lease = lease
        self._shares = alone and connection.family == socket.AF_UNIX
        """Whether the keeper may map it, on the same machine; and"""
        self._mapped = False
        """whether it has."""
        self._places: list[_Place] = []
        self._card: torch.device | None = None
        self._stream: torch.cuda.Stream | None = None
        self._plan, self._planned = DigestPlan([]), list[int]()
        """Computes the digests of the live state, where that lies on a card; and the addresses that it is for."""
        self._ready, self._arrived = threading.Event(), threading.Event()
        """There is room, or there will be none; the keeper has what it was sent last, or never will."""
        self._arrived.set()
        self._waits_for_all = self._agreed = False
        """Whether a refresh waits until all ranks are ready for it; and whether they are for the next step's."""
        self._seen, self._newest = -1, -1
        """The last step whose gradients were final, and the steps completed in the last state that was put by."""
        self._since = self._put_at = math.inf
        """When the gradients of that step were final, and when that state was put by."""
        self._step_s, self._took_s = math.inf, math.inf
        """How long the last step took, and the last snapshot until it had arrived; infinite: that is not known yet."""
        self._work: SimpleQueue[int | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def attach(self, shard: TrainingShard) -> None:
        # Not by where its state lies: a rank may have none, and all must refresh at the same steps.
        if shard.world.backend == "nccl":
            self._card, self._waits_for_all = torch.device("cuda", torch.cuda.current_device()), True
        description = describe(shard.replica())
        self._thread = threading.Thread(target=self._run, args=(description,), name="snapshots", daemon=True)
        self._thread.start()
        super().attach(shard)

    def refresh(self, shard: TrainingShard, step: int, finite: bool) -> None:
        """Have the state after the update that follows put by, if it is time to.

        Args:
            shard: whose gradients are final.
            finite: whether there will be an update. All ranks see the same.
        """
        begun = time.perf_counter()
        if self._updates is None:
            self._begin(shard)
            self._due = step + 1
        self._step_s, self._since, self._seen = max(0.0, begun - self._since), begun, step
        agreed, self._agreed = self._agreed or not self._waits_for_all, False
        if finite and agreed and step + 1 >= self._due:
            self._ready.wait()
            self._arrived.wait()
            self._due, self._pending = step + 1 + self._every, step + 1
            if not self._live.trained:
                self._put_by()  # what it has does not change
        self.seconds = time.perf_counter() - begun

    @property
    def ready(self) -> bool:
        """Whether a refresh after the next step would hold nobody up here; asked before that step.

        What the ranks agree on in that step counts for the one behind it.
        """
        if not self._waits_for_all or self.error:
            return True
        if not self._ready.is_set():
            return False
        coming = self._seen + 2
        newest = coming if self._agreed and coming >= self._due else self._newest
        if newest < 0 or not self._places:
            return True  # none was put by yet, or there is nothing to put by
        took = self._took_s
        if not self._arrived.is_set():  # the first one, or one that takes longer than the last
            took = max(took, time.perf_counter() - self._put_at)
        return (coming + 1 - newest) * self._step_s >= _MARGIN * took

    def all_ready(self) -> None:
        self._agreed = True

    def state_at(self, step: int) -> Replica:
        place = self._place_of(step)
        place.wait()
        return place.replica

    def send_state(self, connection: socket.socket, step: int) -> None:
        place = self._place_of(step)
        place.wait()
        send(connection, chunks_in(place.data), step, self.digests_at(step))

    def digests_at(self, step: int) -> bytes:
        found = self._place_of(step).digests
        return found if isinstance(found, bytes) else encode("mix", found.result())

    def updates_at(self, step: int) -> int:
        return self._place_of(step).updates

    def close(self) -> None:
        super().close()
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
        self._give_back()

    def _give_back(self) -> None:
        for place in self._places:
            place.wait()
        self._places = []

    def _place_of(self, step: int) -> _Place:
        for place in self._places:
            if place.step == step and step in self.own_steps:
                return place
        raise TransferError(f"the state after {step} steps is not put by here, but that after {self.own_steps}")

    # ---- the training thread

    def _begin(self, shard: TrainingShard) -> None:
        self._live, self._updates = shard.replica(), shard.updates()
        if self._card is not None:
            self._plan_digests()
        if self._live.trained:
            self._stop = self._updates.watch(self._before_update, self._put_by, None)

    def _plan_digests(self) -> DigestPlan:
        """Return what computes the digests of the live state, wherever its storage is by now."""
        views = tensors_of(self._live)
        places = [view.data_ptr() for view in views]
        if places != self._planned:
            self._plan, self._planned = DigestPlan(views), places
        return self._plan

    def _before_update(self) -> None:
        """Wait for copies as an update begins, which changes what is being copied."""
        for place in self._places:
            if place.copied is not None:
                torch.cuda.current_stream(self._card).wait_event(place.copied)

    def _put_by(self) -> None:
        """Copy the state into a free place, as the update is made."""
        if self._pending < 0 or not self._places:
            return
        begun = time.perf_counter()
        step, self._pending, self.own_steps = self._pending, -1, self.own_steps[-1:]
        self._newest, self._put_at = step, begun
        place = next(one for one in self._places if one.step not in self.own_steps)
        place.shared.give_up()
        place.step, place.updates = step, self._updates_made()
        if self._stream is None:
            copy(self._live, place.replica)
            place.digests = digests_of(self._live)
        else:
            plan = self._plan_digests()
            self._stream.wait_stream(torch.cuda.current_stream(self._card))
            with torch.cuda.stream(self._stream), torch.no_grad():
                for view, into in zip(tensors_of(self._live), tensors_of(place.replica), strict=True):
                    into.copy_(view, non_blocking=True)
                place.digests = plan.launch(self._stream)
                place.copied = self._stream.record_event(torch.cuda.Event(blocking=True))  # a thread waits for it
        self.own_steps = (*self.own_steps, step)
        self._arrived.clear()
        self._work.put(step)
        self.seconds += time.perf_counter() - begun

    # ---- the thread that sends

    def _run(self, description: bytes) -> None:
        with torch.cuda.device(self._card) if self._card is not None else nullcontext():
            try:
                try:
                    self._make_room(decode_description(description))
                finally:
                    self._ready.set()
                self._describe(description)
            except Exception as error:  # noqa: BLE001 - a thread's edge: it is logged, and there is no mirror
                self._failed(error)
            while (step := self._work.get()) is not None:
                self._deliver(step)

    def _deliver(self, step: int) -> None:
        """Send a snapshot; whatever fails, training does not wait for it."""
        try:
            self._send(step)
        except Exception as error:  # noqa: BLE001 - a thread's edge: it is logged, and there is no mirror
            self._failed(error)
        finally:
            self._took_s = time.perf_counter() - self._put_at
            self._arrived.set()

    def _make_room(self, boxes: list[BoxDescription]) -> None:
        if self._card is not None:
            self._stream = torch.cuda.Stream(self._card)
        nbytes = place_of(boxes) if boxes else 0
        self._places = [_Place(boxes, self._lease.take(nbytes, self._shares)) for _ in range(2)] if nbytes else []
        self.nbytes = 2 * nbytes

    def _describe(self, description: bytes) -> None:
        """Ask the keeper to map the places, or, if it may not or does not, tell it what will be sent."""
        if self._shares and self._places:
            where = msgspec.msgpack.encode(self._lease.places())
            header = Header(Kind.SHARED, nbytes=len(description), last=len(where))
            answer = bytearray(ACKNOWLEDGEMENT.size)
            try:
                self._connection.sendall(header.encode() + description + where)
                receive_exactly(self._connection, memoryview(answer))
            except OSError as error:
                self._failed(error)
                return
            self._mapped = ACKNOWLEDGEMENT.unpack(answer) == (1,)
        if not self._mapped:
            super()._describe(description)

    def _send(self, step: int) -> None:
        if not self._mapped:
            super()._send(step)
            return
        place = self._place_of(step)
        place.wait()
        place.shared.written(step, self.digests_at(step))
        if hung_up(self._connection):
            self._failed(ConnectionResetError("its keeper hung up"))
        else:
            self.sent = step
