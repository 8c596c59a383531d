"""What the replay of an optimizer's update needs besides state and gradients: each group's values, as they travel.

State changes only inside the optimizer's step. Who has a box as it was after ``n`` updates and the reduced, clipped
gradient of update ``n + 1`` can make that update itself, bit for bit, with :mod:`liver_slurm.engine.update_rules`.
"""

from __future__ import annotations

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Groups, Hyperparameters
from liver_slurm.reshard.shard_spec import GroupSpec

GRADIENT_BYTES = 4
"""Of one element of a gradient, which is fp32."""

_COLUMNS = len(GroupSpec._fields) + len(Hyperparameters._fields)


def encode_groups(groups: Groups) -> torch.Tensor:
    """Encode groups as float64 numbers, [groups, columns].

    They are exact, so that the replayed update uses the very same values.
    """
    return torch.tensor([[*group, *values] for group, values in groups.items()], dtype=torch.float64)


def decode_groups(table: torch.Tensor) -> Groups:
    """Undo :func:`encode_groups`; ``table`` may be flat.

    Raises:
        TransferError: it is no such table.
    """
    if table.numel() % _COLUMNS:
        raise TransferError(f"a table of parameter groups has {table.numel()} numbers, no multiple of {_COLUMNS}")
    split = len(GroupSpec._fields)
    rows = table.view(-1, _COLUMNS).tolist()
    return {GroupSpec(*row[:split]): Hyperparameters(*row[split:]) for row in rows}
