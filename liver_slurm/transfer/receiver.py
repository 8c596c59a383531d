"""The receiving half of overlap: boxes arrive in their final storage and are kept current by replaying updates."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from functools import partial
from typing import NamedTuple

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.api import Groups
from liver_slurm.reshard.tensors import Piece
from liver_slurm.transfer.cuda_stream import SideStream
from liver_slurm.transfer.frames import HEADER_BYTES, Header, Kind, Slots, decode
from liver_slurm.transfer.optimizer_replay import Boxes, Content, Trained, decode_groups, digests
from liver_slurm.transfer.route import Route


class Arrivals(NamedTuple):
    """What one peer sends to this worker."""

    peer: int
    """The transport's number of the source."""
    chunks: Mapping[int, Content]
    """By number, the boxes of each chunk in this worker's new state."""
    boxes: Boxes
    """All of them, whole."""


class Receiver:
    """What arrives from one peer; :meth:`run` is the body of one thread."""

    def __init__(
        self,
        arrivals: Arrivals,
        route: Route,
        slots: Slots,
        pool: Executor | None,
        device: torch.device,
        on_ended: Callable[[], None],
    ) -> None:
        """
        Args:
            slots: staging, shared by all of a worker's receivers.
            pool: what replays updates, so that the next gradients arrive meanwhile, and takes digests; None: this
                thread does.
            on_ended: called, in the thread, when all boxes are at the source's last version.
        """
        self.peer, self._incoming, self._boxes = arrivals
        self._transport, self._slots, self._pool = route.transport, slots, pool
        self._replays: list[Future[None]] = []
        self._on_received, self._on_ended = route.on_received, on_ended
        self._side = SideStream(device, slots.nbytes)
        self._header = torch.empty(HEADER_BYTES, dtype=torch.uint8)
        self._versions: dict[int, int] = {}
        self._groups: Groups = {}
        self._groups_version = -1
        self._step = 0
        self._digests: dict[Piece, list[int]] = {}
        self._proven = False
        self.ended = False
        self.adam_step = 0
        """How many updates the source had made by then."""
        self.bytes_received = 0
        """Of state."""
        self.digests_checked = 0

    def run(self) -> None:
        """Receive until every digest is compared.

        Raises:
            TransferError: the peer is gone, the transfer was given up, a message is not due, or a digest differs.
        """
        with torch.no_grad():
            while not self._proven:
                self._receive(self._header)
                header = decode(self._header)
                self._check(header)
                if header.kind is Kind.END:
                    self._end(header)
                elif header.kind is Kind.GROUPS:
                    self._settle()  # a box's updates are made one after the other
                    table = torch.empty(header.nbytes, dtype=torch.uint8)
                    self._receive(table)
                    self._groups = decode_groups(table.view(torch.float64))
                    self._groups_version, self._step = header.version, header.number
                elif header.kind is Kind.DIGESTS:
                    self._compare(header)
                else:
                    self._take(header)

    def _receive(self, buffer: torch.Tensor) -> None:
        self._transport.receive_now(self.peer, buffer)

    def _check(self, header: Header) -> None:
        """That a message of this length and version is due now."""
        kind, number, version, nbytes = header
        if kind in (Kind.GROUPS, Kind.END):
            if self.ended:
                raise TransferError(f"worker {self.peer} goes on after its end")
            return
        if kind is Kind.DIGESTS:
            if not self.ended or nbytes != 8 * sum(content.boxes for content in self._boxes.values()):
                raise TransferError(f"worker {self.peer}: {nbytes} bytes of digests are not due")
            return
        content, known = self._incoming.get(number), self._versions.get(number)
        if content is None:
            raise TransferError(f"chunk {number} of worker {self.peer} is not due here")
        if kind is Kind.STATE:
            due = known is None and nbytes == content.nbytes
        else:
            due = known == version - 1 == self._groups_version - 1 and nbytes == content.gradient_bytes
        if not due:
            raise TransferError(
                f"chunk {number} of worker {self.peer}: {kind.name} of {nbytes} bytes for version {version} is not "
                f"due after version {known}"
            )

    def _take(self, header: Header) -> None:
        """State, or gradients to replay."""
        content = self._incoming[header.number]
        host = self._slots.take(header.nbytes)
        try:
            self._receive(host)
        except BaseException:
            self._slots.give(host)
            raise
        if header.kind is Kind.STATE:
            self._use(host, content.unpack)
            self.bytes_received += header.nbytes
            for view in content.views():
                self._on_received(view)
        else:
            assert isinstance(content, Trained)
            replay = partial(content.replay, step=self._step, groups=self._groups)
            if self._pool is None:
                self._use(host, replay)
            else:
                self._replays.append(self._pool.submit(self._use, host, replay))
        self._versions[header.number] = header.version

    def _use(self, host: torch.Tensor, work: Callable[[torch.Tensor], None]) -> None:
        """Do what is to be done with a message, and give its slot back."""
        try:
            with torch.no_grad(), self._side.use():
                scratch = self._side.scratch(host)
                self._side.to_device(host, scratch)
                work(scratch)
        finally:
            self._slots.give(host)

    def _settle(self) -> None:
        """Wait until all that has arrived is replayed.

        Raises:
            TransferError: see :meth:`liver_slurm.transfer.optimizer_replay.Trained.replay`.
        """
        for replay in self._replays:
            replay.result()
        self._replays.clear()

    def _end(self, header: Header) -> None:
        behind = [
            number
            for number, content in self._incoming.items()
            if number not in self._versions or (content.gradient_bytes and self._versions[number] != header.version)
        ]
        if behind:
            raise TransferError(
                f"{len(behind)} chunks of worker {self.peer} are not at version {header.version}, the last one"
            )
        self._settle()
        self.adam_step = header.number
        self.ended = True
        self._on_ended()
        # While the source takes them there.
        with self._side.use():
            self._digests = dict(zip(self._boxes, digests(self._boxes.values(), self._pool), strict=True))

    def _compare(self, header: Header) -> None:
        data = torch.empty(header.nbytes, dtype=torch.uint8)
        self._receive(data)
        sent = iter(data.view(torch.int64).tolist())
        for piece, found in self._digests.items():
            if list(itertools.islice(sent, len(found))) != found:
                raise TransferError(
                    f"{piece.tensor}, the box at {piece.offset} from worker {self.peer}: the digest of what arrived "
                    "differs from the digest of what was sent"
                )
            self.digests_checked += len(found)
        self._proven = True
