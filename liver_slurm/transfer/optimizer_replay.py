"""Trained state as overlap moves it: boxes of fp32 masters with Adam's moments, and Adam's update replayed on them.

State changes only inside the optimizer's step. Who has a box as it was after ``n`` updates and the reduced, clipped
gradient of update ``n + 1`` can make that update itself, bit for bit: Adam works element by element.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from itertools import islice
from typing import Protocol

import torch
from torch.optim.adamw import adamw

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.api import Groups, Hyperparameters, Replica, TrainedBox
from liver_slurm.parallel.torch_private import copy_all
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.reshard.tensors import Piece, inside
from liver_slurm.transfer.checksum import digests as digests_of
from liver_slurm.transfer.checksum import signed
from liver_slurm.transfer.shared_box import SharedBox

STATE_BYTES, GRADIENT_BYTES = 12, 4
"""Of one element: master and two moments; its gradient. All are fp32."""

_ALIGNMENT = 8

_BLOCK = 1 << 18
"""Elements that an update is replayed on at a time: Adam reads and writes them a dozen times, in the cache."""


_COLUMNS = len(GroupSpec._fields) + len(Hyperparameters._fields)


def encode_groups(groups: Groups) -> torch.Tensor:
    """As float64 numbers, [groups, columns]: exact, so that the replayed update uses the very same values."""
    return torch.tensor([[*group, *values] for group, values in groups.items()], dtype=torch.float64)


def decode_groups(table: torch.Tensor) -> Groups:
    """Inverse of :func:`encode_groups`; ``table`` may be flat.

    Raises:
        TransferError: it is no such table.
    """
    if table.numel() % _COLUMNS:
        raise TransferError(f"a table of parameter groups has {table.numel()} numbers, no multiple of {_COLUMNS}")
    split = len(GroupSpec._fields)
    rows = table.view(-1, _COLUMNS).tolist()
    return {GroupSpec(*row[:split]): Hyperparameters(*row[split:]) for row in rows}


class Index:
    """Finds the storage of any box inside what a rank holds."""

    def __init__(self, replica: Replica) -> None:
        self._trained: dict[str, list[TrainedBox]] = {}
        self._fixed: dict[str, list[tuple[Piece, torch.Tensor]]] = {}
        for box in replica.trained:
            self._trained.setdefault(box.piece.tensor, []).append(box)
        for piece, view in replica.fixed:
            self._fixed.setdefault(piece.tensor, []).append((piece, view))

    def content(self, parts: Iterable[Piece]) -> Content:
        """The parts of one message, all trained (then named by their masters) or all fixed.

        Raises:
            TransferError: one of them is not held here.
        """
        parts = list(parts)
        if parts[0].tensor.endswith("@master"):
            return Trained([self._trained_part(part) for part in parts])
        return Fixed([self._fixed_part(part) for part in parts])

    def shared(self, part: Piece) -> SharedBox:
        """A box for a one-sided transfer, named as in :meth:`content`.

        Raises:
            TransferError: it is not held here.
        """
        if part.tensor.endswith("@master"):
            box = self._trained_part(part)
            return SharedBox(box.state, box.gradient(), box.group)
        return SharedBox((self._fixed_part(part),))

    def _trained_part(self, part: Piece) -> TrainedBox:
        for box in self._trained.get(part.tensor.removesuffix("@master"), ()):
            found = box.part(part.offset, part.shape)
            if found is not None:
                return found
        raise _not_held(part)

    def _fixed_part(self, part: Piece) -> torch.Tensor:
        for piece, view in self._fixed.get(part.tensor, ()):
            place = inside(part.offset, part.shape, piece)
            if place is not None:
                return view[place]
        raise _not_held(part)


def _not_held(part: Piece) -> TransferError:
    return TransferError(f"{part.tensor}: the box at {part.offset} of shape {part.shape} is not held here")


class Content(Protocol):
    """The boxes of one message at one end, with their storage."""

    nbytes: int
    """Of the message that carries their state."""
    gradient_bytes: int
    """Of the message that carries their gradients; 0: they are not trained."""
    boxes: int

    def pack(self, buffer: torch.Tensor) -> None:
        """Copy the state into a uint8 buffer of ``nbytes`` on the state's device."""

    def unpack(self, buffer: torch.Tensor) -> None:
        """Inverse of :meth:`pack`."""

    def views(self) -> list[torch.Tensor]:
        """Every view of state, in the order of the digests."""


class Trained:
    """Boxes of masters and moments: first all masters, then all first, then all second moments."""

    def __init__(self, parts: Sequence[TrainedBox]) -> None:
        self._parts = parts
        elements = sum(part.master.numel() for part in parts)
        self.nbytes, self.gradient_bytes = STATE_BYTES * elements, GRADIENT_BYTES * elements
        self.boxes = 3 * len(parts)

    def views(self) -> list[torch.Tensor]:
        """See :class:`Content`."""
        return [view for kind in zip(*(part.state for part in self._parts), strict=True) for view in kind]

    def pack(self, buffer: torch.Tensor) -> None:
        """See :class:`Content`."""
        _gather(self.views(), buffer)

    def unpack(self, buffer: torch.Tensor) -> None:
        """See :class:`Content`."""
        views = self.views()
        copy_all(views, _split(views, buffer))

    def pack_gradients(self, buffer: torch.Tensor) -> None:
        """Copy the gradients into a uint8 buffer of ``gradient_bytes``."""
        _gather([part.gradient() for part in self._parts], buffer)

    def replay(self, buffer: torch.Tensor, step: int, groups: Groups) -> None:
        """Make the update that the source makes: with gradients as packed there, after ``step`` updates.

        Raises:
            TransferError: the source has no such parameter group.
        """
        by_group: dict[GroupSpec, list[tuple[TrainedBox, torch.Tensor]]] = {}
        masters = [part.master for part in self._parts]
        for part, gradient in zip(self._parts, _split(masters, buffer), strict=True):
            by_group.setdefault(part.group, []).append((part, gradient))
        for group, members in by_group.items():
            if group not in groups:
                raise TransferError(f"the source world has no parameter group {group}")
            update([(*part.state, gradient) for part, gradient in members], step, groups[group])


Updated = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Master, first and second moment, gradient."""


def update(boxes: Sequence[Updated], step: int, values: Hyperparameters) -> None:
    """Make one update of Adam's: on a GPU of all boxes in a few launches, on a CPU a block at a time."""
    if boxes and boxes[0][0].is_cuda:
        _update(boxes, step, values)
        return
    for box in boxes:
        for block in _cut(box):
            _update([block], step, values)


def _cut(box: Updated) -> Iterator[Updated]:
    """The same in blocks of at most :data:`_BLOCK` elements, of whole rows where there are such."""
    first = box[0]
    if first.numel() <= _BLOCK:
        yield box
        return
    rows = _BLOCK // first[0].numel()
    if rows and first.shape[0] > 1:
        yield from zip(*(tensor.split(rows) for tensor in box), strict=True)
        return
    for row in zip(*box, strict=True):
        yield from _cut(row)


def _update(members: Sequence[Updated], step: int, values: Hyperparameters) -> None:
    """AdamW as torch does it (Loshchilov & Hutter 2019), with the kernel that the engine's optimizer uses.

    On a GPU that is the fused one, whose result is the same on any slice, and which wants its operands contiguous. On a
    CPU the fused kernel's result depends on alignment, so neither side uses it.
    """
    masters, exp_avgs, exp_avg_sqs, gradients = map(list, zip(*members, strict=True))
    fused = masters[0].is_cuda
    state = [*masters, *exp_avgs, *exp_avg_sqs]
    scattered = [tensor for tensor in state if fused and not tensor.is_contiguous()]
    if scattered:
        copies = {id(tensor): tensor.contiguous() for tensor in scattered}
        masters, exp_avgs, exp_avg_sqs = (
            [copies.get(id(tensor), tensor) for tensor in kind] for kind in (masters, exp_avgs, exp_avg_sqs)
        )
    adamw(
        masters,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        [],
        list(torch.full((len(members),), float(step), device=masters[0].device).unbind()),
        foreach=False,
        fused=fused,
        amsgrad=False,
        beta1=values.beta1,
        beta2=values.beta2,
        lr=values.lr,
        weight_decay=values.weight_decay,
        eps=values.eps,
        maximize=False,
    )
    if scattered:
        copy_all(scattered, [copies[id(tensor)] for tensor in scattered])


class Fixed:
    """Boxes of weights that are not trained."""

    gradient_bytes = 0

    def __init__(self, parts: Sequence[torch.Tensor]) -> None:
        self._parts = parts
        self.boxes = len(parts)
        self._places, at = [], 0
        for view in parts:
            self._places.append(at)
            at += view.numel() * view.element_size()
            at += -at % _ALIGNMENT
        self.nbytes = at

    def views(self) -> list[torch.Tensor]:
        """See :class:`Content`."""
        return list(self._parts)

    def pack(self, buffer: torch.Tensor) -> None:
        """See :class:`Content`."""
        copy_all(self._split(buffer), self._parts)

    def unpack(self, buffer: torch.Tensor) -> None:
        """See :class:`Content`."""
        copy_all(self._parts, self._split(buffer))

    def _split(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        return [
            buffer[at : at + view.numel() * view.element_size()].view(view.dtype).view(view.shape)
            for view, at in zip(self._parts, self._places, strict=True)
        ]


Boxes = Mapping[Piece, Content]
"""Whole boxes as the plan moves them between two workers, in its order: what digests are taken of. Chunks are smaller,
and for each digest the thread that trains may have to wait for the interpreter."""


def digests(contents: Iterable[Content], pool: Executor | None = None) -> list[list[int]]:
    """Of each content, 64-bit digests of its views, as signed numbers, which is how torch stores them.

    Args:
        pool: shares the contents out among its threads; None: this thread does it, and waits for a GPU but once.
    """
    contents = list(contents)
    if pool is not None:
        return list(pool.map(lambda content: digests([content])[0], contents))
    words = iter(digests_of(view for content in contents for view in content.views()))
    return [list(map(signed, islice(words, content.boxes))) for content in contents]


def _gather(views: Sequence[torch.Tensor], buffer: torch.Tensor) -> None:
    copy_all(_split(views, buffer), views)


def _split(views: Sequence[torch.Tensor], buffer: torch.Tensor) -> list[torch.Tensor]:
    """The place of each fp32 view in a buffer that holds them one after the other."""
    flat = buffer.view(torch.float32)
    parts = flat[: sum(view.numel() for view in views)].split([view.numel() for view in views])
    return [part.view(view.shape) for view, part in zip(views, parts, strict=True)]
