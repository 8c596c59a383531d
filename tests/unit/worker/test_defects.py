"""Defects that are done on purpose: each changes what it is about, and nothing else."""

from __future__ import annotations

import pytest
import torch

from liver_slurm.base.faults import Defect
from liver_slurm.reshard.plan import RankMoves
from liver_slurm.reshard.tensors import Move
from liver_slurm.transfer.shared_box import SharedBox
from liver_slurm.worker.defects import spoil, with_a_wrong_expert, without_a_name

SPOILING = (Defect.UNLOADED, Defect.CORRUPT, Defect.PERMUTED, Defect.SWAPPED, Defect.STALE, Defect.CAST)


def boxes() -> list[SharedBox]:
    """Two trained boxes; the first weight is one whose values look alike in any order."""
    values = torch.Generator().manual_seed(1)

    def box(name: str, master: torch.Tensor) -> SharedBox:
        moments = tuple(torch.rand(4, 3, generator=values) for _ in range(2))
        names = (f"{name}@master", f"{name}@exp_avg", f"{name}@exp_avg_sq")
        return SharedBox((master, *moments), names=names, offset=(0, 0))

    return [box("zeros", torch.zeros(4, 3)), box("w", torch.rand(4, 3, generator=values))]


@pytest.mark.parametrize("defect", SPOILING)
def test_one_tensor_is_another_one_by_it(defect: Defect) -> None:
    before, after = boxes(), boxes()
    name = spoil(defect, after)
    changed = {
        tensor
        for one, other in zip(before, after, strict=True)
        for tensor, was, now in zip(one.names, one.state, other.state, strict=True)
        if not torch.equal(was, now)
    }
    assert name in changed
    assert len(changed) == (2 if defect is Defect.SWAPPED else 1)
    assert defect is not Defect.STALE or name.endswith(("@exp_avg", "@exp_avg_sq"))


@pytest.mark.parametrize("defect", SPOILING)
def test_nothing_is_done_to_what_would_be_the_same(defect: Defect) -> None:
    assert not spoil(defect, [])
    zeros = [SharedBox((torch.zeros(3),), names=("w@exp_avg",)), SharedBox((torch.zeros(3),), names=("v",))]
    assert bool(spoil(defect, zeros)) is (defect is Defect.CORRUPT)


def test_moves_lose_a_name_or_have_experts_in_each_others_place() -> None:
    dense = [Move("w", 0, 1, (row, 0), (1, 2)) for row in range(2)]
    experts = [Move("experts.up", 0, 1, (0, expert, 0), (1, 1, 2)) for expert in range(2)]
    moves = RankMoves([], [*dense, *experts], [Move("w", 1, 1, (2, 0), (1, 2))])
    assert without_a_name(moves) == (RankMoves([], experts, []), "w")
    wrong, name = with_a_wrong_expert(moves)
    assert (name, wrong.receives) == ("experts.up", [*dense, *reversed(experts)])
    assert with_a_wrong_expert(RankMoves([], dense, [])) == (RankMoves([], dense, []), "")
