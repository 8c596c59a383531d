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
from liver_slurm.transfer.one_sided.staging import Staging
from liver_slurm.transfer.optimizer_replay import Updated, decode_groups, update
from liver_slurm.transfer.proof import BoxDigests
from liver_slurm.transfer.shared_box import SharedBox
from liver_slurm.transfer.transports.base import Transport

_PART = 4 << 20
"""Bytes of state that a thread copies and replays at a time on a CPU, at most."""
_BATCH = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Bytes read between two looks at the owner's counter, and replayed at a time if staging allows."""
_GROUPS_BYTES = 1 << 20
"""More than what an update uses for all groups of parameters takes."""


class _Part(NamedTuple):
    """A box, or some rows of one."""

    targets: tuple[torch.Tensor, ...]
    sources: tuple[View, ...]
    gradient: View | None
    group: GroupSpec | None
    staged: int
    """Bytes that its gradient takes here while it is replayed."""

    @property
    def nbytes(self) -> int:
        return sum(target.nbytes for target in self.targets)

    def narrow(self, axis: int, begin: int, count: int) -> _Part:
        """Rows ``begin`` to ``begin + count`` along an axis."""
        return _Part(
            tuple(target.narrow(axis, begin, count) for target in self.targets),
            tuple(source.narrow(axis, begin, count) for source in self.sources),
            self.gradient.narrow(axis, begin, count) if self.gradient is not None else None,
            self.group,
            self.staged * count // self.targets[0].shape[axis],
        )


class Puller:
    """Reads from one owner; :meth:`run` is the body of one thread."""

    def __init__(
        self,
        peer: int,
        boxes: Sequence[SharedBox],
        memory: tuple[Description, Reader],
        transport: Transport,
        pool: Executor | None,
        staging: Staging,
        device: torch.device,
        on_received: Callable[[torch.Tensor], None],
    ) -> None:
        """
        Args:
            peer: the transport's number of the owner.
            boxes: where its boxes go, in the order of the plan.
            memory: what the owner says of its memory, and what reads it.
            pool: what reads and replays while training stands; None: the card does.
            staging: what gradients may take, in this puller and all others of this worker.
            on_received: called with each view that was read.

        Raises:
            TransferError: the owner has other boxes than the plan says.
        """
        owner, reader = memory
        self.peer, self._reader, self._transport = peer, reader, transport
        self._pool, self._device, self._on_received = pool, device, on_received
        self._staging, self._stopped = staging, False
        self._parts = [
            part for box in _parts(boxes, owner, reader) for part in _rows(box, _most(box, staging.share, device))
        ]
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
        self.bytes_early = self.bytes_gradients = self.digests_checked = 0

    def read_some(self) -> int:
        """Read a batch of the largest parts, whose content does not count yet; returns its bytes.

        Small ones would say how long a call takes, and not how fast memory is read.
        """
        largest = sorted(range(len(self._parts)), key=lambda place: -self._parts[place].nbytes)
        batch = next(self._batches(largest), [])
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
                if header.nbytes:
                    raise TransferError(f"worker {self.peer}: nothing is due behind {header.kind.name}")
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

    def cancel(self) -> None:
        """Read no more; from any thread. Who waits for a word of the owner's is thrown out by the transport."""
        self._stopped = True

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
        if header.version != self._known_version + 1 or header.number < 0:
            raise TransferError(f"worker {self.peer}: an update to version {header.version} is not due")
        groups = self._hear_groups(header)

        def replay(batch: Sequence[int]) -> None:
            self._replay(batch, header.number, groups)

        replayed = [n for n in sorted(self._known) if self._parts[n].group is not None]
        self._each(replay, self._batches(replayed, staged=True))
        self.bytes_gradients = sum(
            part.gradient.nbytes for part in map(self._parts.__getitem__, replayed) if part.gradient is not None
        )
        self._known_version = header.version

    def _hear_groups(self, header: Header) -> Groups:
        """What an update uses for each group of parameters."""
        if not 0 <= header.nbytes <= _GROUPS_BYTES or header.nbytes % torch.float64.itemsize:
            raise TransferError(f"worker {self.peer}: a table of {header.nbytes} bytes is not due")
        table = torch.empty(header.nbytes, dtype=torch.uint8)
        if header.nbytes:
            self._transport.receive_now(self.peer, table)
        return decode_groups(table.view(torch.float64))

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
        try:
            for done in [self._pool.submit(work, batch) for batch in batches]:
                done.result()
        except BaseException:
            self.cancel()  # of the other batches nothing is wanted any more
            raise

    def _go_on(self) -> None:
        if self._stopped:
            raise TransferError("the transfer was given up")

    def _copy(self, batch: Sequence[int]) -> None:
        self._go_on()
        parts = [self._parts[place] for place in batch]
        targets = [target for part in parts for target in part.targets]
        self._reader.copy(targets, [source for part in parts for source in part.sources])

    def _replay(self, batch: Sequence[int], step: int, groups: Groups) -> None:
        """Make the owner's last update on parts that were read before it."""
        self._go_on()
        by_group: dict[GroupSpec, list[_Part]] = {}
        for place in batch:
            part = self._parts[place]
            assert part.group is not None
            by_group.setdefault(part.group, []).append(part)
        staged = sum(self._parts[place].staged for place in batch)
        with torch.no_grad(), self._reader.stream(), self._staging.use(staged):
            for group, parts in by_group.items():
                if group not in groups:
                    raise TransferError(f"the source world has no parameter group {group}")
                gradients = self._reader.fetch([part.gradient for part in parts if part.gradient is not None])
                boxes: list[Updated] = [
                    (*part.targets, gradient) for part, gradient in zip(parts, gradients, strict=True)
                ]
                update(boxes, step, groups[group])
        self._reader.synchronize()

    def _batches(self, places: Sequence[int], staged: bool = False) -> Iterator[list[int]]:
        """Cut into what is read or replayed at a time.

        Args:
            staged: the gradients of a batch pass through staging, and keep within a thread's share.
        """
        batch: list[int] = []
        filled = taken = 0
        for place in places:
            part = self._parts[place]
            room = part.staged if staged else 0
            if batch and (filled + part.nbytes > _BATCH[self._device.type] or taken + room > self._staging.share):
                yield batch
                batch, filled, taken = [], 0, 0
            batch.append(place)
            filled, taken = filled + part.nbytes, taken + room
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


def _parts(boxes: Sequence[SharedBox], owner: Description, reader: Reader) -> Iterator[_Part]:
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
        staged = reader.staged(described.gradient) if described.gradient is not None else 0
        yield _Part(box.state, described.state, described.gradient, box.group, staged)


def _most(box: _Part, share: int, device: torch.device) -> int:
    """Bytes of state that a part of the box may have: what a thread copies at a time, and stages gradients of."""
    most = _PART if device.type == "cpu" else box.nbytes
    return min(most, share * box.nbytes // box.staged) if box.staged else most


def _rows(part: _Part, most: int) -> Iterator[_Part]:
    """Cut a part into parts of at most so many bytes, along its outermost axes; an element is not cut."""
    shape = part.targets[0].shape
    axis = next((axis for axis, size in enumerate(shape) if size > 1), None)
    if axis is None or part.nbytes <= most:
        yield part
        return
    at_a_time = most * shape[axis] // part.nbytes
    for begin in range(0, shape[axis], max(1, at_a_time)):
        row = part.narrow(axis, begin, min(max(1, at_a_time), shape[axis] - begin))
        yield from [row] if at_a_time else _rows(row, most)
