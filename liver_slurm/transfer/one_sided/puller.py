"""The receiver's part of a one-sided transfer: it reads boxes out of their owner's storage into their final one.

State stands still until the next update, and is read beside training. As soon as the update's gradients are final they
are read, too, a third of the bytes, and the update is made here while the owner makes it. Over a connection this goes
on for some steps; what was read, but whose gradient comes too late, is forgotten and read again. What was not read by
the cutover, or cannot be replayed here, is read then.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Groups
from liver_slurm.engine.update_rules import Updated, update
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.transfer.one_sided.description import BoxDescription, Reader, View
from liver_slurm.transfer.one_sided.line import Line
from liver_slurm.transfer.one_sided.staging import Staging
from liver_slurm.transfer.one_sided.words import Header, Kind
from liver_slurm.transfer.optimizer_replay import decode_groups
from liver_slurm.transfer.proof import BoxDigests
from liver_slurm.transfer.shared_box import SharedBox

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
    box: int
    """Number of its box."""
    moments: tuple[str, ...]
    """What those of a trained box are called."""

    @property
    def nbytes(self) -> int:
        return sum(target.nbytes for target in self.targets)

    @property
    def gradient_bytes(self) -> int:
        return self.gradient.nbytes if self.gradient is not None else 0

    def narrow(self, axis: int, begin: int, count: int) -> _Part:
        """Return the rows ``begin`` to ``begin + count`` along an axis."""
        return _Part(
            tuple(target.narrow(axis, begin, count) for target in self.targets),
            tuple(source.narrow(axis, begin, count) for source in self.sources),
            self.gradient.narrow(axis, begin, count) if self.gradient is not None else None,
            self.group,
            self.staged * count // self.targets[0].shape[axis],
            self.box,
            self.moments,
        )


class Puller:
    """Reads from one owner; :meth:`run` is the body of one thread."""

    def __init__(
        self,
        line: Line,
        reader: Reader,
        boxes: Sequence[SharedBox],
        described: Sequence[BoxDescription],
        pool: Executor | None,
        staging: Staging,
        device: torch.device,
        on_received: Callable[[Sequence[SharedBox]], None],
    ) -> None:
        """
        Args:
            line: to the owner.
            reader: of its state.
            boxes: where its boxes go, in the order of the plan.
            described: where it has them.
            pool: what reads and replays while training stands; None: the card does.
            staging: what gradients may take, in this puller and all others of this worker.
            on_received: called with the boxes once all are current, before their digests are taken.

        Raises:
            TransferError: the owner has other boxes than the plan says.
        """
        self.peer, self._reader, self._line = line.peer, reader, line
        self._pool, self._device, self._on_received = pool, device, on_received
        self._staging, self._stopped, self._boxes = staging, False, boxes
        self._parts = [
            part for box in _parts(boxes, described, reader) for part in _rows(box, _most(box, staging.share, device))
        ]
        reader.expect(view for box in boxes for view in box.state)
        self._digests = BoxDigests([boxes], pool)
        self._known: set[int] = set()
        """Parts that are at the version of the last word, by their place in the list."""
        self._version = -1
        """Of the last word; -1: there was none."""
        self._open = -1
        """How many boxes the last word let be read; -1: it was another one."""
        self.on_ended: Callable[[], None] = lambda: None
        self.ended = False
        """All boxes are as the owner's are."""
        self.begun = 0.0
        """When the owner said that training stands."""
        self.adam_step = -1
        """How many updates the owner has made; -1: it has not said, or trains nothing itself."""
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
            header = self._line.hear()
            while header.kind in (Kind.OPEN, Kind.UPDATING):
                if header.kind is Kind.OPEN:
                    self._read_beside_training(header)
                else:
                    self._replay_beside_training(header)
                header = self._line.hear()
            if header.kind is not Kind.CURRENT or header.nbytes:
                raise TransferError(f"worker {self.peer}: {header.kind.name} is not due")
            self.begun = time.perf_counter()
            self._bring_current(header.version)
            self.adam_step, self.ended = header.number, True
            self.on_ended()
            with self._reader.stream():
                (mine,) = self._digests.take()
            self._compare(self._line.hear(), mine)

    def cancel(self) -> None:
        """Read no more; from any thread. Who waits for the owner is thrown out as the line is closed."""
        self._stopped = True

    def close(self) -> None:
        """Give the owner's memory back."""
        self._reader.close()

    def _read_beside_training(self, header: Header) -> None:
        """Read what can be brought up to date later, for as long as the owner's state stays as it is."""
        if header.nbytes:
            raise TransferError(f"worker {self.peer}: nothing is due behind {header.kind.name}")
        if self._version not in (-1, header.version) or header.version < 0 or header.number <= self._open:
            raise TransferError(f"worker {self.peer}: {header.kind.name} is not due")
        self._version, self._open = header.version, header.number
        wanted = [
            n
            for n, part in enumerate(self._parts)
            if n not in self._known and part.box < header.number and self._replays(part)
        ]
        for batch in self._batches(wanted):
            if self._reader.counter() != 2 * header.version:
                return
            self._copy(batch)
            if self._reader.counter() != 2 * header.version:
                return
            self._known.update(batch)

    def _replays(self, part: _Part) -> bool:
        """Return whether an update can be replayed on a part: the card's kernel wants it in one piece."""
        alike = self._device.type == "cpu" or all(target.is_contiguous() for target in part.targets)
        return alike and (part.group is None or part.gradient is not None)

    def _replay_beside_training(self, header: Header) -> None:
        """Make the owner's update on what was read, while the owner makes it: it only reads the gradients."""
        if self._open < 0:
            raise TransferError(f"worker {self.peer}: {header.kind.name} is not due")
        if header.version != self._version + 1 or header.number < 0:
            raise TransferError(f"worker {self.peer}: an update to version {header.version} is not due")
        groups = self._hear_groups(header)
        self._version, self._open = header.version, -1

        made: list[int] = []

        def replay(batch: Sequence[int]) -> None:
            if self._replay(batch, header, groups):
                made.extend(self._parts[n].gradient_bytes for n in batch)
            else:
                self._known.difference_update(batch)

        replayed = [n for n in sorted(self._known) if self._parts[n].group is not None]
        self._each(replay, self._batches(replayed, staged=True))
        self.bytes_gradients += sum(made)

    def _hear_groups(self, header: Header) -> Groups:
        """Return what an update uses for each group of parameters."""
        if not 0 <= header.nbytes <= _GROUPS_BYTES or header.nbytes % torch.float64.itemsize:
            raise TransferError(f"worker {self.peer}: a table of {header.nbytes} bytes is not due")
        return decode_groups(self._line.content(header.nbytes).view(torch.float64))

    def _bring_current(self, version: int) -> None:
        """Read what is not at the last version."""
        if version != self._version:
            self._known.clear()
        self.bytes_early = sum(self._parts[n].nbytes for n in self._known)
        self._each(self._copy, self._batches([n for n in range(len(self._parts)) if n not in self._known]))
        if self._reader.counter() != 2 * version:
            raise TransferError(f"worker {self.peer} went on training while its state was read")
        self._on_received(self._boxes)

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

    def _replay(self, batch: Sequence[int], header: Header, groups: Groups) -> bool:
        """Make the owner's last update on parts that were read before it; False: its gradients are gone."""
        self._go_on()
        alike: dict[tuple[GroupSpec, tuple[str, ...]], list[_Part]] = {}
        for place in batch:
            part = self._parts[place]
            assert part.group is not None
            alike.setdefault((part.group, part.moments), []).append(part)
        staged = sum(self._parts[place].staged for place in batch)
        with torch.no_grad(), self._reader.stream(), self._staging.use(staged):
            for (group, moments), parts in alike.items():
                if group not in groups:
                    raise TransferError(f"the source world has no parameter group {group}")
                gradients = self._reader.fetch([part.gradient for part in parts if part.gradient is not None])
                if not self._reader.stands(header.version):
                    return False
                boxes: list[Updated] = [
                    (*part.targets, gradient) for part, gradient in zip(parts, gradients, strict=True)
                ]
                update(boxes, header.number, groups[group], moments)
        self._reader.synchronize()
        return True

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
        data = self._line.content(header.nbytes)
        labels = [box.label(view) for box in self._boxes for view in range(len(box.state))]
        theirs = data.view(torch.int64).tolist()
        differ = [label for label, one, other in zip(labels, theirs, mine, strict=True) if one != other]
        if differ:
            raise TransferError(
                f"worker {self.peer}: the digest of what arrived differs from the digest of what was sent, in "
                f"{len(differ)} of {len(mine)} boxes: {differ[0]}{', …' if differ[1:] else ''}"
            )
        self.digests_checked = len(mine)


def _parts(boxes: Sequence[SharedBox], described: Sequence[BoxDescription], reader: Reader) -> Iterator[_Part]:
    """Match the receiver's boxes with the owner's."""
    if len(boxes) != len(described):
        raise TransferError(f"a peer has {len(described)} boxes where the plan says {len(boxes)}")
    for number, (box, there) in enumerate(zip(boxes, described, strict=True)):
        views = (*there.state, *([there.gradient] if there.gradient is not None else []))
        expected = [*box.state, *([box.state[0]] if there.gradient is not None else [])]
        alike = [
            view.shape == tuple(target.shape) and view.dtype == str(target.dtype).removeprefix("torch.")
            for view, target in itertools.zip_longest(views, expected)
            if view is not None and target is not None
        ]
        if len(alike) != max(len(views), len(expected)) or not all(alike):
            raise TransferError(f"a peer has a box of another shape or type than the plan says: {box.label()}")
        if there.identity != box.identity:
            raise TransferError(f"a peer has another box where the plan says {box.label()}")
        staged = reader.staged(there.gradient) if there.gradient is not None else 0
        yield _Part(box.state, there.state, there.gradient, box.group, staged, number, box.moments)


def _most(box: _Part, share: int, device: torch.device) -> int:
    """Return the bytes of state that a part of the box may have.

    It is what a thread copies at a time, and stages gradients of.
    """
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
