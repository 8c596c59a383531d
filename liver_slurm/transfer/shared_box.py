"""A box of state where one end of a transfer keeps it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from liver_slurm.reshard.shard_spec import GroupSpec


class SharedBox(NamedTuple):
    """A box that one worker reads from another's memory, at either end."""

    state: tuple[torch.Tensor, ...]
    """Master and moments of a trained box; else one view."""
    gradient: torch.Tensor | None = None
    """Of the last update, as the optimizer used it; None: the box is only ever copied."""
    group: GroupSpec | None = None

    @property
    def nbytes(self) -> int:
        """Of the state."""
        return sum(view.nbytes for view in self.state)
