"""The owner's part of a one-sided transfer: it says when its state may be read, and proves what lies there.

Its training thread moves a counter before and after an update. Where receivers read over a slow link, and so many steps
ahead, it has the gradients of what they have copied, too; see :mod:`~liver_slurm.transfer.one_sided.gradient_log`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Updates
from liver_slurm.transfer.connections import Connections
from liver_slurm.transfer.cuda_stream import SideStream, mark
from liver_slurm.transfer.one_sided.gradient_log import GradientLog
from liver_slurm.transfer.one_sided.service import Answers, Service, Word
from liver_slurm.transfer.one_sided.staging import Staging
from liver_slurm.transfer.one_sided.words import Header, Kind
from liver_slurm.transfer.optimizer_replay import encode_groups
from liver_slurm.transfer.proof import BoxDigests
from liver_slurm.transfer.shared_box import SharedBox


class _Said(NamedTuple):
    """A word for one peer; digests are taken when they are asked for."""

    header: Header
    content: torch.Tensor | int | None
    """Or of which group the digests are."""
    after: Any
    """Event on the card that it is said behind; None on a CPU."""


class Owner:
    """The owner's end of a one-sided transfer. :meth:`run` is the body of one thread, :meth:`cancel` may be called by
    any, all else by training's, or by the one that prepares."""

    def __init__(
        self,
        groups: Sequence[Mapping[int, Sequence[SharedBox]]],
        counter: torch.Tensor,
        updates: Updates | None,
        pool: Executor | None,
    ) -> None:
        """
        Args:
            groups: what is read together, by peer, which are the same in all groups: first what has room in the new
                world while training runs, then one late layer after the other.
            counter: int64, [1], on the state's device; see
                :class:`~liver_slurm.transfer.one_sided.description.Description`.
            updates: of the source world; None where nothing is read while it trains.
            pool: shares the digests and copies of gradients out among its threads.
        """
        self._groups, self._counter, self._updates, self._pool = groups, counter, updates, pool
        self._boxes = groups[0]
        self._digests = [BoxDigests(group.values(), pool) for group in groups]
        self._device = counter.device
        self._side = SideStream(self._device)
        self._log_counter = torch.zeros(1, dtype=torch.int64)
        self._log = GradientLog([], 0, self._log_counter, self._device, pool)
        self._changed = threading.Condition()
        self._words: dict[int, list[_Said]] = {peer: [] for peer in groups[0]}
        self._served = dict.fromkeys(groups[0], 0)
        """How many groups each peer was told everything of."""
        self._proofs: list[dict[int, torch.Tensor]] = []
        """Digests of each group so far, by peer."""
        self._taking = threading.Lock()
        self._services: list[Service] = []
        self._failure: BaseException | None = None
        self._far: frozenset[int] = frozenset()
        self._opened: set[int] = set()
        self._ahead = self._last = self._updating = self._given_up = False
        self._version = 0
        self._updated: Any = None
        """Event behind the last update; None on a CPU."""
        self._stop_watching: Callable[[], None] | None = None
        self.bytes_sent = [sum(box.nbytes for some in group.values() for box in some) for group in groups]
        """What peers read of each group."""
        self.exposed_seconds = 0.0
        """How long training was held up in its hooks."""

    def serve(self, connections: Connections, staging: Staging, turn: Callable[[], None] | None = None) -> None:
        """Answer all peers from now on, each in a thread of its own, until connections are given up.

        Args:
            turn: see :class:`Answers`.
        """
        answers = Answers((self._counter, self._log_counter), self._gradient, self._word, self._told, turn)
        for peer in self._words:
            boxes = [box for group in self._groups for box in group[peer]]
            self._services.append(Service(connections, peer, boxes, answers, self._line_ended(peer), staging))

    def follow(self, far: Collection[int], gradient_room: int | None) -> None:
        """Let these peers read many steps ahead; called once it is known how each of them reads.

        Args:
            gradient_room: bytes that copies of gradients may take; None: as many as there are.
        """
        self._far = frozenset(far)
        if self._updates is not None and far:
            followed = [box for peer in sorted(far) for box in self._boxes[peer]]
            self._log = GradientLog(followed, gradient_room, self._log_counter, self._device, self._pool)

    @property
    def gradient_bytes(self) -> int:
        """Memory for copies of gradients."""
        return self._log.nbytes

    # ---- training's thread

    def attach(self) -> None:
        """Count the updates from now on; called between two steps."""
        if self._stop_watching is None and self._updates is not None:
            self._updated = mark(self._device)
            zeroing = self._before_zeroing if self._far else None
            self._stop_watching = self._updates.watch(self._before_update, self._after_update, zeroing)

    def open(self, last: bool) -> None:
        """Let the state be read as it is now, until the next update: by all in the last step before the cutover.

        Before that, by those that read over a connection. From the control thread, too, if it hears of the cutover in
        that step.
        """
        with self._changed:
            if self._stop_watching is None or self._last:
                return
            if not self._ahead:
                for service in self._services:
                    service.forget()
            self._ahead, self._last = True, last
            if not self._updating:  # else it is said behind the update; behind the last one training stands
                self._say_open()

    def detach(self) -> None:
        """Take the hooks off: training has nothing to do with this any more."""
        stop, self._stop_watching = self._stop_watching, None
        if stop is not None:
            self._log.wait()
            stop()

    def finish(self, adam_step: int, group: int = 0) -> None:
        """Let a group be read as it is now, for good: training stands, after ``adam_step`` updates; -1: not known."""
        self.detach()
        with self._changed:
            after = mark(self._device)
            for peer, boxes in self._groups[group].items():
                self._say([peer], Header(Kind.CURRENT, adam_step, self._version, 0), after=after)
                nbytes = 8 * sum(len(box.state) for box in boxes)
                self._say([peer], Header(Kind.DIGESTS, 0, self._version, nbytes), group)

    def _before_update(self) -> None:
        begun = time.perf_counter()
        assert self._updates is not None
        with self._changed:
            self._updating = True
            self._counter.fill_(2 * self._version + 1)  # on a card in training's stream, ahead of the update's kernels
            version = self._version + 1
            if self._far and self._last:
                self._log.stand(version)
            elif self._far and self._ahead and not self._given_up:  # then those who copy have gone
                asked = [box for service in self._services for box in self._boxes[service.peer][: service.asked]]
                self._log.keep(version, asked)
            if self._opened:
                table = encode_groups(self._updates.groups()).view(torch.uint8).view(-1)
                header = Header(Kind.UPDATING, max(0, self._updates.adam_step()), version, table.numel())
                self._say(self._opened, header, table, mark(self._device))
        self.exposed_seconds += time.perf_counter() - begun

    def _after_update(self) -> None:
        with self._changed:
            self._version += 1
            self._updating = False
            self._counter.fill_(2 * self._version)
            self._updated = mark(self._device)
            if self._ahead and not self._last:
                self._opened.clear()
                self._say_open()

    def _before_zeroing(self) -> None:
        """Wait for the last step's gradients to be copied: seldom, as that takes less than an update."""
        begun = time.perf_counter()
        self._log.wait()
        self.exposed_seconds += time.perf_counter() - begun

    def _say_open(self) -> None:
        """Tell who may read how many boxes from the first on; the caller has the lock.

        On a card the update before may still be under way, and who finds the counter odd reads nothing ahead. Not
        behind what is in the stream by now: that may be the whole step up to the next update.
        """
        for peer, boxes in self._boxes.items():
            known = self._log.holds(boxes) if peer in self._opened else 0
            many = len(boxes) if self._last else self._log.holds(boxes)
            if many > known and (self._last or peer in self._far):
                self._opened.add(peer)
                self._say([peer], Header(Kind.OPEN, many, self._version, 0), after=self._updated)

    def _say(
        self, peers: Collection[int], header: Header, content: torch.Tensor | int | None = None, after: Any = None
    ) -> None:
        """Have it said; the caller has the lock."""
        for peer in peers:
            self._words[peer].append(_Said(header, content, after))
        self._changed.notify_all()

    # ---- other threads

    def run(self, group: int = 0) -> None:
        """Wait until all peers were told everything of a group.

        Raises:
            TransferError: one is gone, or asked for what there is not.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._given_up or self._failure or all(served > group for served in self._served.values())
            )
            if self._failure is not None and not self._given_up:
                raise self._failure

    def release(self) -> None:
        """Give the memory of copied gradients back, as all is proven."""
        self._log.release()

    def cancel(self) -> None:
        """Say no more, connections being given up besides; from any thread."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()

    def close(self) -> None:
        """Wait for the threads that answer, once connections are given up, and give memory back."""
        self.cancel()
        for service in self._services:
            service.join()
        self._log.release()

    def _word(self, peer: int, number: int) -> Word | None:
        """Return the word of that number, waited for; None: there will be none any more."""
        with self._changed:
            said = self._words[peer]
            if number > len(said):
                raise TransferError(f"worker {peer} asked for word {number} before word {len(said)}")
            self._changed.wait_for(lambda: self._given_up or number < len(said))
            if self._given_up:
                return None
            header, content, after = said[number]
        if after is not None:
            after.synchronize()
        if not isinstance(content, int):
            return header, content
        return header, self._proof(content)[peer]

    def _told(self, peer: int, header: Header) -> None:
        if header.kind is Kind.DIGESTS:
            with self._changed:
                self._served[peer] += 1
                self._changed.notify_all()

    def _proof(self, group: int) -> dict[int, torch.Tensor]:
        """Return the digests of what each peer reads of a group, taken once for all of them."""
        with self._taking:
            if len(self._proofs) == group:
                with self._side.use():
                    found = self._digests[group].take()
                self._proofs.append(
                    {
                        peer: torch.tensor(words, dtype=torch.int64).view(torch.uint8)
                        for peer, words in zip(self._groups[group], found, strict=True)
                    }
                )
            return self._proofs[group]

    def _gradient(self, box: SharedBox) -> torch.Tensor:
        return self._log.gradient(box)

    def _line_ended(self, peer: int) -> Callable[[BaseException | None], None]:
        def ended(failure: BaseException | None) -> None:
            with self._changed:
                if self._served[peer] < len(self._groups) and self._failure is None:
                    self._failure = failure or TransferError("the transfer was given up")
                    self._changed.notify_all()

        return ended
