"""How the boxes of a chunk travel.

In host memory a large box is a message of its own, and goes straight out of its storage, or into it, where it lies
there in one piece: that saves a pass over it at either end. All others are staged, the small ones together as the
chunk's last message. Sizes decide, which both ends know; how a box lies is each end's own affair. A GPU packs faster
than it begins another message, so there a chunk is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

LARGE = 256 << 10
"""Bytes from which on a box is large: a message costs about as much as to copy a tenth of it."""
ALIGNMENT = 8
"""Of every box in its staging."""


@dataclass
class Packed:
    """A chunk's messages, in the order in which they travel: contiguous bytes each."""

    messages: list[torch.Tensor] = field(default_factory=list)
    staged: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """(Place in a message, where the box lies)."""
    slot: torch.Tensor | None = None
    """Staging that they need; None: none."""

    def pack(self) -> None:
        """Copy what is staged to its place."""
        for place, view in self.staged:
            place.copy_(view)

    def unpack(self) -> None:
        """Copy what is staged from its place."""
        for place, view in self.staged:
            view.copy_(place)


def lay_out(views: Sequence[torch.Tensor], device: torch.device, take: Callable[[], torch.Tensor]) -> Packed:
    """Lay out the messages of a chunk.

    Args:
        views: its boxes.
        device: where messages must lie.
        take: gives staging: uint8, on ``device``, with room for all boxes, each aligned to :data:`ALIGNMENT`.
    """
    packed = Packed()
    large = LARGE if device.type == "cpu" else float("inf")
    at = 0

    def stage(view: torch.Tensor) -> None:
        nonlocal at
        if packed.slot is None:
            packed.slot = take()
        place = packed.slot[at : at + view.nbytes]
        packed.staged.append((place.view(view.dtype).view(view.shape), view))
        at += view.nbytes + -view.nbytes % ALIGNMENT

    for view in views:
        if view.nbytes < large:
            continue
        if view.is_contiguous() and view.device == device:
            packed.messages.append(view.view(-1).view(torch.uint8))
        else:
            begin = at
            stage(view)
            assert packed.slot is not None
            packed.messages.append(packed.slot[begin : begin + view.nbytes])
    begin = at
    for view in views:
        if view.nbytes < large:
            stage(view)
    if packed.slot is not None and at > begin:
        packed.messages.append(packed.slot[begin:at])
    return packed
