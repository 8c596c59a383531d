"""The receiver's part of a one-sided transfer: it reads boxes out of their owner's memory into their final storage.

In the last step before the cutover the state stands still until that step's update, and is read beside training. As
soon as the update's gradients are final they are read, too, a third of the bytes, and the update is made here while the
owner makes it. What was not read in time, or cannot be replayed here, is read at the cutover.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.api import Groups
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.transfer.frames import HEADER_BYTES, Header, Kind, decode
from liver_slurm.transfer.one_sided.description import Description, Reader, View
from liver_slurm.transfer.optimizer_replay import Updated, decode_groups, update
from liver_slurm.transfer.proof import BoxDigests
from liver_slurm.transfer.shared_box import SharedBox
from liver_slurm.transfer.transports.base import Transport

_PART = 4 << 20
"""Bytes of state that a thread copies and replays at a time on a CPU, so that gradients need little staging."""
_BATCH = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Bytes read between two looks at the owner's counter, and of gradients that are made contiguous at a time."""


class _Part(NamedTuple):
    """A box, or on a CPU some rows of one."""

    targets: tuple[torch.Tensor, ...]
    sources: tuple[View, ...]
    gradient: View | None
    group: GroupSpec | None

    @property
    def nbytes(self) -> int:
        return sum(target.nbytes for target in self.targets)


class Puller:
    """Reads from one owner; :meth:`run` is the body of one thread."""

    def __init__(
        self,
        peer: int,
        boxes: Sequence[SharedBox],
        owner: Description,
        reader: Reader,
        transport: Transport,
        pool: Executor | None,
        device: torch.device,
        on_received: Callable[[torch.Tensor], None],
    ) -> None:
        """
        Args:
            peer: the transport's number of the owner.
            boxes: where its boxes go, in the order of the plan.
            pool: what reads and replays while training stands; None: the card does.
            on_received: called with each view that was read.

        Raises:
            TransferError: the owner has other boxes than the plan says.
        """
        self.peer, self._reader, self._transport = peer, reader, transport
        self._pool, self._device, self._on_received = pool, device, on_received
        self._parts = list(_parts(boxes, owner, device))
        self._digests = BoxDigests([boxes], pool)
        self._known: set[int] = set()
        """Parts that were read in the last step, by their place in the list."""
        self._known_version = -1
        """What they are at."""
        self._header = torch.empty(HEADER_BYTES, dtype=torch.uint8)
        self.on_ended: Callable[[], None] = lambda: None
        self.ended = False
        """All boxes are as the owner's are."""
        self.adam_step = 0
        self.bytes_received = sum(part.nbytes for part in self._parts)
        self.bytes_early = self.bytes_gradients = self.staging_peak_bytes = self.digests_checked = 0

    def read_some(self) -> int:
        """Read one batch, whose content does not count yet; returns its bytes."""
        batch = next(self._batches(range(len(self._parts))), [])
        self._copy(batch)
        return sum(self._parts[place].nbytes for place in batch)

    def run(self) -> None:
        """Follow what the owner says until every digest is compared.

        Raises:
            TransferError: the owner is gone or says something that is not due, or a digest differs.
        """
        with torch.no_grad():
            header = self._hear()
            if header.kind is Kind.OPEN:
                self._read_beside_training(header.version)
                header = self._hear()
                if header.kind is Kind.UPDATING:
                    self._replay_beside_training(header)
                    header = self._hear()
            if header.kind is not Kind.CURRENT or header.nbytes:
                raise TransferError(f"worker {self.peer}: {header.kind.name} is not due")
            self._bring_current(header.version)
            self.adam_step, self.ended = header.number, True
            self.on_ended()
            with self._reader.stream():
                (mine,) = self._digests.take()
            self._compare(self._hear(), mine)

    def close(self) -> None:
        """Give the owner's memory back."""
        self._reader.close()

    def _hear(self) -> Header:
        self._transport.receive_now(self.peer, self._header)
        return decode(self._header)

    def _read_beside_training(self, version: int) -> None:
        """Read what can be brought up to date later, for as long as the owner's state stays as it is."""
        self._known_version = version
        for batch in self._batches([n for n, part in enumerate(self._parts) if self._replays(part)]):
            if self._reader.counter() != 2 * version:
                return
            self._copy(batch)
            if self._reader.counter() != 2 * version:
                return
            self._known.update(batch)

    def _replays(self, part: _Part) -> bool:
        """Whether an update can be replayed on a part: the card's kernel wants it in one piece."""
        alike = self._device.type == "cpu" or all(target.is_contiguous() for target in part.targets)
        return alike and (part.group is None or part.gradient is not None)

    def _replay_beside_training(self, header: Header) -> None:
        """Make the owner's update on what was read, while the owner makes it: it only reads the gradients."""
        if header.version != self._known_version + 1:
            raise TransferError(f"worker {self.peer}: an update to version {header.version} is not due")
        table = torch.empty(header.nbytes, dtype=torch.uint8)
        self._transport.receive_now(self.peer, table)
        groups = decode_groups(table.view(torch.float64))

        def replay(batch: Sequence[int]) -> None:
            self._replay(batch, header.number, groups)

        self._each(replay, self._batches([n for n in sorted(self._known) if self._parts[n].group is not None]))
        self._known_version = header.version

    def _bring_current(self, version: int) -> None:
        """Read what is not at the last version."""
        if version != self._known_version:
            self._known.clear()
        self.bytes_early = sum(self._parts[n].nbytes for n in self._known)
        self._each(self._copy, self._batches([n for n in range(len(self._parts)) if n not in self._known]))
        if self._reader.counter() != 2 * version:
            raise TransferError(f"worker {self.peer} went on training while its state was read")
        for part in self._parts:
            for target in part.targets:
                self._on_received(target)

    def _each(self, work: Callable[[Sequence[int]], None], batches: Iterator[list[int]]) -> None:
        if self._pool is None:
            for batch in batches:
                work(batch)
            return
        for done in [self._pool.submit(work, batch) for batch in batches]:
            done.result()

    def _copy(self, batch: Sequence[int]) -> None:
        parts = [self._parts[place] for place in batch]
        targets = [target for part in parts for target in part.targets]
        self._reader.copy(targets, [source for part in parts for source in part.sources])

    def _replay(self, batch: Sequence[int], step: int, groups: Groups) -> None:
        """Make the owner's last update on parts that were read before it."""
        by_group: dict[GroupSpec, list[_Part]] = {}
        for place in batch:
            part = self._parts[place]
            assert part.group is not None
            by_group.setdefault(part.group, []).append(part)
        with torch.no_grad(), self._reader.stream():
            for group, parts in by_group.items():
                if group not in groups:
                    raise TransferError(f"the source world has no parameter group {group}")
                gradients = self._reader.fetch([part.gradient for part in parts if part.gradient is not None])
                boxes: list[Updated] = [
                    (*part.targets, gradient) for part, gradient in zip(parts, gradients, strict=True)
                ]
                update(boxes, step, groups[group])
                fetched = sum(gradient.nbytes for gradient in gradients)
                self.bytes_gradients += fetched
                self.staging_peak_bytes = max(self.staging_peak_bytes, fetched)
        self._reader.synchronize()

    def _batches(self, places: Sequence[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        filled = 0
        for place in places:
            batch.append(place)
            filled += self._parts[place].nbytes
            if filled >= _BATCH[self._device.type]:
                yield batch
                batch, filled = [], 0
        if batch:
            yield batch

    def _compare(self, header: Header, mine: Sequence[int]) -> None:
        if header.kind is not Kind.DIGESTS or header.nbytes != 8 * len(mine):
            raise TransferError(f"worker {self.peer}: {header.nbytes} bytes of digests are not due")
        data = torch.empty(header.nbytes, dtype=torch.uint8)
        if header.nbytes:
            self._transport.receive_now(self.peer, data)
        differ = sum(one != other for one, other in zip(data.view(torch.int64).tolist(), mine, strict=True))
        if differ:
            raise TransferError(
                f"worker {self.peer}: the digest of what arrived differs from the digest of what was sent, in {differ} "
                f"of {len(mine)} boxes"
            )
        self.digests_checked = len(mine)


def _parts(boxes: Sequence[SharedBox], owner: Description, device: torch.device) -> Iterator[_Part]:
    """Match the receiver's boxes with the owner's."""
    if len(boxes) != len(owner.boxes):
        raise TransferError(f"a peer has {len(owner.boxes)} boxes where the plan says {len(boxes)}")
    for box, described in zip(boxes, owner.boxes, strict=True):
        views = (*described.state, *([described.gradient] if described.gradient is not None else []))
        expected = [*box.state, *([box.state[0]] if described.gradient is not None else [])]
        alike = [
            view.shape == tuple(target.shape) and view.dtype == str(target.dtype).removeprefix("torch.")
            for view, target in itertools.zip_longest(views, expected)
            if view is not None and target is not None
        ]
        if len(alike) != max(len(views), len(expected)) or not all(alike):
            raise TransferError("a peer has a box of another shape or type than the plan says")
        part = _Part(box.state, described.state, described.gradient, box.group)
        yield from _rows(part) if device.type == "cpu" else [part]


def _rows(part: _Part) -> Iterator[_Part]:
    """Cut a part into parts of about :data:`_PART` bytes, along its outermost axis that is longer than 1."""
    shape = part.targets[0].shape
    axis = next((axis for axis, size in enumerate(shape) if size > 1), None)
    if axis is None or part.nbytes <= _PART:
        yield part
        return
    at_a_time = max(1, _PART * shape[axis] // part.nbytes)
    for begin in range(0, shape[axis], at_a_time):
        count = min(at_a_time, shape[axis] - begin)
        yield _Part(
            tuple(target.narrow(axis, begin, count) for target in part.targets),
            tuple(source.narrow(axis, begin, count) for source in part.sources),
            part.gradient.narrow(axis, begin, count) if part.gradient is not None else None,
            part.group,
        )
