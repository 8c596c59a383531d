"""The sending half of overlap: boxes leave while training runs, and the gradients of those that have left follow them.

A box is read between two updates, at a known version. From then on every update's gradient is forwarded for it, copied
from the optimizer's pre-step hook on, where it is reduced and clipped, into staging of its own.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from liver_slurm.engine.api import Updates
from liver_slurm.transfer.cuda_stream import SideStream, mark
from liver_slurm.transfer.frames import Header, Kind, Outbox, Slots
from liver_slurm.transfer.optimizer_replay import Boxes, Content, Trained, digests, encode_groups
from liver_slurm.transfer.transports.base import Transport

_WINDOW = 16
"""Messages in flight. State is in slots, of which there are fewer; gradients lie in staging, so that no peer waits for
what another one has still to take."""

_TOGETHER = 8
"""Chunks whose gradients one thread stages after the other: it costs training's thread more to ask than to copy one."""


@dataclass
class Outgoing:
    """One chunk: boxes for one peer, in the order of the plan."""

    peer: int
    number: int
    """Of the chunk, counted for each pair of workers."""
    content: Content
    """The same object for every peer that is sent these boxes: they are staged once for all of them."""
    staging: slice | None = None
    """Where its gradients are staged; None: there is no room, so it waits for the pause (or has no gradients)."""


@dataclass
class SenderStats:
    """What a source did."""

    bytes_early: int = 0
    """State that left while training ran."""
    bytes_gradients: int = 0
    exposed_seconds: float = 0.0
    """How long training was held up in its hooks."""


class Sender:
    """Sends this worker's chunks; :meth:`run` is the body of one thread, all else but :meth:`open` is called by
    training's."""

    def __init__(
        self,
        outgoing: Sequence[Outgoing],
        boxes: Mapping[int, Boxes],
        updates: Updates,
        transport: Transport,
        slots: Slots,
        pool: Executor | None,
        device: torch.device,
        gradient_room: int | None,
    ) -> None:
        """
        Args:
            boxes: by peer, all that it is sent, whole; a box for several peers is one object, and hashed once.
            pool: what stages gradients, beside the update, and takes digests; None: the hook does, in its CUDA stream,
                and the sending thread.
            gradient_room: bytes that staged gradients may take at most; None: as many as there are.
        """
        self._boxes = boxes
        self._updates, self._slots, self._pool, self._device = updates, slots, pool, device
        self._outbox = Outbox(transport, _WINDOW)
        self._side = SideStream(device, slots.nbytes)
        self._hook_side = SideStream(device, slots.nbytes)
        self.outgoing, staged = _with_staging(outgoing, gradient_room)
        # Zeroed so that its pages exist before training's thread writes there.
        self._staging = torch.empty(staged, dtype=torch.uint8, pin_memory=device.type == "cuda").zero_()
        self.staging_bytes = staged
        """Of staged gradients."""
        self._changed = threading.Condition()
        self._captured = 0
        self._early = sum(chunk.staging is not None or not chunk.content.gradient_bytes for chunk in self.outgoing)
        self._version = 0
        self._open = self._updating = self._finishing = self._ended = False
        self._messages: deque[Callable[[], None]] = deque()
        self._in_staging = self._unstaged = 0
        self.peers = sorted(boxes)
        self._state_ready: Any = mark(device)
        self._stop_watching: Callable[[], None] | None = None
        self.stats = SenderStats()

    @property
    def bytes_sent(self) -> int:
        """State and gradients, so far."""
        return self._outbox.bytes_sent

    # ---- training's thread

    def attach(self) -> None:
        """Watch the updates from now on; called between two steps, before boxes may leave."""
        with self._changed:
            if self._stop_watching is None:
                self._stop_watching = self._updates.watch(self._before_update, self._after_update, self._before_zeroing)
                self._state_ready = mark(self._device)
                self._changed.notify_all()

    def open(self) -> None:
        """Boxes may leave as soon as updates are watched: in the middle of a step, too. From any thread."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def finish(self) -> None:
        """Training stands: send what has not left, and end."""
        self.detach()
        with self._changed:
            self._state_ready = mark(self._device)
            self._finishing = True
            self._changed.notify_all()

    def detach(self) -> None:
        """Take the hooks off: training, in whose thread they run, has nothing to do with this any more."""
        with self._changed:
            stop, self._stop_watching = self._stop_watching, None
            if stop is not None:
                stop()

    def cancel(self) -> None:
        """Throw the sending thread and a waiting hook out; from any thread, the transport being aborted besides."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def release(self) -> None:
        """All is sent: give the memory of staged gradients back."""
        self._staging = torch.empty(0, dtype=torch.uint8)

    def _before_update(self) -> None:
        begun = time.perf_counter()
        with self._changed:
            # One staging area: the last update's gradients must have left it.
            self._changed.wait_for(lambda: self._in_staging == 0 or self._ended)
            if not self._ended:
                self._updating = True
                if self._captured:
                    self._forward_gradients(self._version + 1)
                self._changed.notify_all()
            self.stats.exposed_seconds += time.perf_counter() - begun

    def _forward_gradients(self, version: int) -> None:
        """Stage the gradients of what has left, each box's once, and have them sent to whoever has the box."""
        table = encode_groups(self._updates.groups())
        self._messages.append(partial(self._send_table, version, self._updates.adam_step(), table))
        leaving = [chunk for chunk in self.outgoing[: self._captured] if chunk.staging is not None]
        once = list({chunk.content: chunk for chunk in leaving}.values())
        self._in_staging += len(leaving)
        staged: dict[Content, Callable[[], None]] = {}
        if self._pool is None:
            staged = {chunk.content: self._stage(chunk) for chunk in once}
        else:
            self._unstaged = len(once)
            for begin in range(0, len(once), _TOGETHER):
                some = once[begin : begin + _TOGETHER]
                wait = self._pool.submit(self._stage_beside, some).result
                staged |= dict.fromkeys((chunk.content for chunk in some), wait)
        self._messages.extend(partial(self._send_gradients, chunk, version, staged[chunk.content]) for chunk in leaving)

    def _stage_beside(self, chunks: Sequence[Outgoing]) -> None:
        """In the pool's thread, while the update is made, which only reads the gradients."""
        try:
            for chunk in chunks:
                self._stage(chunk)
        finally:
            with self._changed:
                self._unstaged -= len(chunks)
                self._changed.notify_all()

    def _stage(self, chunk: Outgoing) -> Callable[[], None]:
        """Copy gradients to staging; returns what waits until they are there."""
        assert isinstance(chunk.content, Trained)
        staged = self._staging[chunk.staging]
        with torch.no_grad():
            # On a GPU in training's own stream, before the update that follows.
            scratch = self._hook_side.scratch(staged)
            chunk.content.pack_gradients(scratch)
            self._hook_side.to_host(scratch, staged)
        event = mark(self._device)
        return event.synchronize if event is not None else _nothing

    def _before_zeroing(self) -> None:
        """A step begins before the last one's gradients are staged: seldom, as staging takes less than an update."""
        begun = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._unstaged == 0 or self._ended)
        self.stats.exposed_seconds += time.perf_counter() - begun

    def _after_update(self) -> None:
        with self._changed:
            self._version += 1
            self._updating = False
            self._state_ready = mark(self._device)
            self._changed.notify_all()

    # ---- the sending thread

    def run(self) -> None:
        """Send until the end, then the digests of everything that was sent.

        Raises:
            TransferError: a peer is gone, or the transfer was given up.
        """
        with torch.no_grad():
            while self._send_next():
                pass
            if self._ended:
                return
            self._end()
            self._send_digests()

    def _send_next(self) -> bool:
        """One message; False: there will be none any more."""
        with self._changed:
            idle = not self._has_work()
        if idle:
            self._outbox.flush()  # what is in flight holds staging that the next update may wait for
        else:
            self._outbox.make_room()
        work: Callable[[], None]
        with self._changed:
            self._changed.wait_for(self._has_work)
            if self._ended:
                return False
            if self._messages:
                work = self._messages.popleft()
            elif not self._may_capture():
                return False
            elif self._slots.free:
                # Under the lock that the hook takes: the update does not begin while a box is read.
                work = self._capture(self._slots.take())
            else:
                work = self._outbox.finish_one  # and have its slot
        work()
        return True

    def _has_work(self) -> bool:
        return bool(self._ended or self._messages or self._may_capture() or self._finishing)

    def _may_capture(self) -> bool:
        if self._finishing:
            return self._captured < len(self.outgoing)
        watched = self._stop_watching is not None
        return self._open and watched and not self._updating and self._captured < self._early

    def _capture(self, slot: torch.Tensor) -> Callable[[], None]:
        """Read the next chunk into a slot; what sends it."""
        chunk = self.outgoing[self._captured]
        self._captured += 1
        if not self._finishing:
            self.stats.bytes_early += chunk.content.nbytes
        host = slot[: chunk.content.nbytes]
        with self._side.use(after=self._state_ready):
            scratch = self._side.scratch(host)
            chunk.content.pack(scratch)
            self._side.to_host(scratch, host)
        header = Header(Kind.STATE, chunk.number, self._version, chunk.content.nbytes)
        return lambda: self._outbox.post(chunk.peer, header, host, lambda: self._slots.give(slot))

    def _send_table(self, version: int, adam_step: int, table: torch.Tensor) -> None:
        data = table.view(torch.uint8).view(-1)
        for peer in self.peers:
            self._outbox.post(peer, Header(Kind.GROUPS, adam_step, version, data.numel()), data)

    def _send_gradients(self, chunk: Outgoing, version: int, staged: Callable[[], None]) -> None:
        staged()
        data = self._staging[chunk.staging]
        self.stats.bytes_gradients += data.numel()
        self._outbox.post(chunk.peer, Header(Kind.GRADIENT, chunk.number, version, data.numel()), data, self._left)

    def _left(self) -> None:
        """A chunk's gradients have left the staging area."""
        with self._changed:
            self._in_staging -= 1
            self._changed.notify_all()

    def _end(self) -> None:
        header = Header(Kind.END, self._updates.adam_step(), self._version, 0)
        for peer in self.peers:
            self._outbox.post(peer, header, None)
        self._outbox.flush()

    def _send_digests(self) -> None:
        found: dict[Content, list[int]] = {}
        for peer in self.peers:
            boxes = self._boxes[peer].values()
            new = [content for content in boxes if content not in found]
            with self._side.use(after=self._state_ready):
                found |= zip(new, digests(new, self._pool), strict=True)
            data = torch.tensor([word for content in boxes for word in found[content]]).view(torch.uint8)
            self._outbox.post(peer, Header(Kind.DIGESTS, 0, self._version, data.numel()), data)
        self._outbox.flush()


def _nothing() -> None:
    """On a CPU what was copied is there."""


def _with_staging(outgoing: Sequence[Outgoing], room: int | None) -> tuple[list[Outgoing], int]:
    """Give chunks a place for their gradients while there is room; those without come last, in the order given."""
    early: list[Outgoing] = []
    late: list[Outgoing] = []
    places: dict[Content, slice | None] = {}
    used = 0
    for chunk in outgoing:
        size = chunk.content.gradient_bytes
        if chunk.content not in places:
            if room is not None and used + size > room:
                late.append(chunk)
                continue
            places[chunk.content] = slice(used, used + size) if size else None
            used += size
        early.append(Outgoing(chunk.peer, chunk.number, chunk.content, places[chunk.content]))
    return early + late, used
