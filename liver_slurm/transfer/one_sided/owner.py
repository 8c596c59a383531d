"""The owner's part of a one-sided transfer: it says when its state may be read, and proves what lies there.

Its training thread does no more than move a counter before and after an update, in a run's last step before a cutover.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch

from liver_slurm.engine.api import Updates
from liver_slurm.transfer.cuda_stream import SideStream, mark
from liver_slurm.transfer.frames import Header, Kind, Outbox
from liver_slurm.transfer.optimizer_replay import encode_groups
from liver_slurm.transfer.proof import BoxDigests
from liver_slurm.transfer.shared_box import SharedBox
from liver_slurm.transfer.transports.base import Transport


class Owner:
    """See the module. :meth:`run` is the body of one thread, :meth:`cancel` may be called by any, all else by
    training's."""

    def __init__(
        self,
        boxes: Mapping[int, Sequence[SharedBox]],
        counter: torch.Tensor,
        updates: Updates | None,
        transport: Transport,
        pool: Executor | None,
        device: torch.device,
    ) -> None:
        """
        Args:
            boxes: by peer, all that it reads.
            counter: int64, [1], on the state's device; see
                :class:`~liver_slurm.transfer.one_sided.description.Description`.
            updates: of the source world; None where nothing is read while it trains.
            transport: carries the few words to each peer.
            pool: shares the digests out among its threads.
        """
        self._boxes, self._counter, self._updates = boxes, counter, updates
        self._outbox = Outbox(transport, 2 * len(boxes))
        self._digests = BoxDigests(boxes.values(), pool)
        self._device, self._side = device, SideStream(device, 0)
        self._orders: SimpleQueue[Callable[[], bool] | None] = SimpleQueue()
        """For the thread: what to do next, which returns whether there is more; None: it is given up."""
        self._lock = threading.Lock()
        self._opened = False
        self._version = 0
        self._updated: Any = None
        """Event behind the last update; None on a CPU."""
        self._stop_watching: Callable[[], None] | None = None
        self.bytes_sent = sum(box.nbytes for some in boxes.values() for box in some)

    def attach(self) -> None:
        """Count the updates from now on; called between two steps."""
        if self._stop_watching is None and self._updates is not None:
            self._updated = mark(self._device)
            self._stop_watching = self._updates.watch(self._before_update, self._after_update, None)

    def open(self) -> None:
        """Let the state be read as it is now, until the next update; called in the last step before the cutover.

        From the control thread, too, if it hears of the cutover in that step.
        """
        with self._lock:
            if not self._opened and self._stop_watching is not None:
                self._opened = True
                # On a card the update before may still be under way, and who finds the counter odd reads nothing ahead.
                # Not what is in the stream by now: that may be the whole step up to the next update.
                said = partial(self._say, Header(Kind.OPEN, 0, self._version, 0), after=self._updated)
                self._orders.put(said)

    def detach(self) -> None:
        """Take the hooks off: training has nothing to do with this any more."""
        stop, self._stop_watching = self._stop_watching, None
        if stop is not None:
            stop()

    def finish(self, adam_step: int) -> None:
        """Let the state be read as it is now, for good: training stands, after ``adam_step`` updates."""
        self.detach()
        self._orders.put(partial(self._end, adam_step, mark(self._device)))

    def cancel(self) -> None:
        """Throw the thread out, the transport being aborted besides; from any thread."""
        self._orders.put(None)

    def run(self) -> None:
        """Tell the peers what may be read, and once training stands the digests of all that each of them reads.

        Raises:
            TransferError: a peer is gone, or the transfer was given up.
        """
        while (order := self._orders.get()) is not None and order():
            pass

    def _before_update(self) -> None:
        assert self._updates is not None
        with self._lock:
            self._counter.fill_(2 * self._version + 1)  # on a card in training's stream, ahead of the update's kernels
            if self._opened:
                table = encode_groups(self._updates.groups()).view(torch.uint8).view(-1)
                header = Header(Kind.UPDATING, self._updates.adam_step(), self._version + 1, table.numel())
                self._orders.put(partial(self._say, header, table, mark(self._device)))

    def _after_update(self) -> None:
        with self._lock:
            self._version += 1
            self._counter.fill_(2 * self._version)
            self._updated = mark(self._device)

    def _say(self, header: Header, content: torch.Tensor | None = None, after: Any = None) -> bool:
        """Tell every peer, once the card has come to the event ``after``."""
        if after is not None:
            after.synchronize()
        for peer in self._boxes:
            self._outbox.post(peer, header, content)
        return True

    def _end(self, adam_step: int, after: Any) -> bool:
        self._say(Header(Kind.CURRENT, adam_step, self._version, 0), after=after)
        with self._side.use():
            found = self._digests.take()
        for peer, words in zip(self._boxes, found, strict=True):
            data = torch.tensor(words, dtype=torch.int64).view(torch.uint8)
            self._outbox.post(peer, Header(Kind.DIGESTS, 0, self._version, data.numel()), data)
        self._outbox.flush()
        return False
