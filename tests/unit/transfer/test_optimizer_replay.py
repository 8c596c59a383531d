"""Hyperparameters of groups of parameters travel exactly."""

from __future__ import annotations

import pytest
import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Hyperparameters
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.transfer.optimizer_replay import decode_groups, encode_groups

PLAIN, UNDECAYED = GroupSpec(), GroupSpec(wd_mult=0.0)


def test_groups_travel_exactly() -> None:
    groups = {
        PLAIN: Hyperparameters(1 / 3, 0.1, 0.9, 0.95, 1e-8),
        UNDECAYED: Hyperparameters(1e-300, 0.0, 0.9, 0.95, 1),
        GroupSpec(lr_mult=0.5): Hyperparameters(1e-3, 0.1, momentum=1 / 7),
    }
    assert decode_groups(encode_groups(groups).view(-1)) == groups
    with pytest.raises(TransferError, match="no multiple"):
        decode_groups(torch.zeros(5, dtype=torch.float64))
