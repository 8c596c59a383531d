"""A box of state where one end of a transfer keeps it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import xxhash

from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.reshard.tensors import Box


class SharedBox(NamedTuple):
    """A box that one worker reads from another's memory, at either end."""

    state: tuple[torch.Tensor, ...]
    """Master and moments of a trained box; else one view."""
    gradient: torch.Tensor | None = None
    """Of the last update, as the optimizer used it; None: the box is only ever copied, once training stands if it is of
    a group."""
    group: GroupSpec | None = None
    names: tuple[str, ...] = ()
    """Of each view, the tensor that it is a box of."""
    offset: Box = ()
    """Where the box begins in all of them."""

    @property
    def identity(self) -> int:
        """A number of 62 bits that says which box of which tensors it is: the same at both ends."""
        which = (self.names, self.offset, tuple(self.state[0].shape))
        return xxhash.xxh3_64_intdigest(repr(which).encode()) >> 2

    @property
    def moments(self) -> tuple[str, ...]:
        """What the moments of a trained box are called."""
        return tuple(name.rpartition("@")[2] for name in self.names[1:])

    def label(self, view: int = 0) -> str:
        """Return what a person calls one of the views."""
        name = self.names[view] if view < len(self.names) else "a box"
        return f"{name} at {self.offset}"

    @property
    def nbytes(self) -> int:
        """Of the state."""
        return sum(view.nbytes for view in self.state)
