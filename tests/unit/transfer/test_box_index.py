"""Boxes inside what a rank holds, as each mode names them."""

from __future__ import annotations

from itertools import accumulate, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Replica, TrainedBox
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.reshard.tensors import MOMENTS, Box, Piece, inside
from liver_slurm.transfer import box_index as module
from liver_slurm.transfer.box_index import BoxIndex, PieceIndex, ReplicaIndex, speaks

HELD = Piece("w", (2, 0), (3, 4))
STATE = tuple(torch.arange(12.0).view(3, 4) + 100 * kind for kind in range(3))
GRADIENT = -STATE[0]
FIXED = (Piece("f", (0,), (5,)), torch.arange(5.0))


def test_a_box_inside_a_piece_is_a_view_of_it() -> None:
    found = BoxIndex([(HELD, STATE[0]), FIXED]).shared(Piece("w", (3, 1), (2, 2)))
    assert found.gradient is found.group is None
    assert [view.tolist() for view in found.state] == [[[5.0, 6.0], [9.0, 10.0]]]
    assert found.state[0].untyped_storage().data_ptr() == STATE[0].untyped_storage().data_ptr()


def test_a_master_stands_for_its_moments_and_its_gradient() -> None:
    group = GroupSpec(wd_mult=0.0)
    box = TrainedBox(HELD, tuple(STATE[:3]), lambda: GRADIENT, group)
    index = ReplicaIndex(Replica([box], [FIXED]))
    found = index.shared(Piece("w@master", (4, 0), (1, 4)))
    assert [view.tolist() for view in found.state] == [[[8.0 + 100 * kind + n for n in range(4)]] for kind in range(3)]
    assert found.gradient is not None
    assert found.gradient.tolist() == [[-8.0, -9.0, -10.0, -11.0]]
    assert found.group == group
    assert index.shared(Piece("f", (1,), (2,))).state[0].tolist() == [1.0, 2.0]


def test_an_update_of_a_whole_matrix_is_not_replayed_on_a_box() -> None:
    """It has no gradient for its receiver, which so reads it when training stands."""
    box = TrainedBox(HELD, STATE[:2], lambda: GRADIENT, GroupSpec(), MOMENTS["muon"])
    found = ReplicaIndex(Replica([box], [])).shared(Piece("w@master", (4, 0), (1, 4)))
    assert found.gradient is None
    assert found.group == GroupSpec()
    assert found.names == ("w@master", "w@muon_momentum")


@pytest.mark.parametrize("tensor", ["w", "w@master"])
@pytest.mark.parametrize("make", [lambda: ReplicaIndex(None), lambda: BoxIndex([(HELD, STATE[0])])])
def test_what_is_not_there_is_named(tensor: str, make: type) -> None:
    with pytest.raises(TransferError, match=rf"^{tensor}: the box at \(1, 0\) of shape \(2, 3\) is not held here$"):
        make().shared(Piece(tensor, (1, 0), (2, 3)))


@st.composite
def pieces(draw: st.DrawFn) -> list[Piece]:
    """Pieces of two tensors that overlap nowhere: a grid whose cells have the drawn extents."""
    found = list[Piece]()
    for tensor in "vw":
        cuts = [draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)) for _ in range(draw(st.integers(0, 3)))]
        axes = [[*zip(accumulate(extents, initial=0), extents, strict=False)] for extents in cuts]
        cells = [*product(*axes)]
        chosen = draw(st.lists(st.sampled_from(cells), unique=True))
        found += [Piece(tensor, tuple(at for at, _ in cell), tuple(n for _, n in cell)) for cell in chosen]
    return found


@given(pieces(), st.data())
def test_a_box_is_found_in_the_piece_that_it_lies_in(held: list[Piece], data: st.DataObject) -> None:
    index = PieceIndex((piece, piece) for piece in held)
    axes = {piece.tensor: len(piece.shape) for piece in held}
    for tensor in data.draw(st.lists(st.sampled_from("vwx"))):
        offset, shape = (tuple(data.draw(st.integers(low, 5)) for _ in range(axes.get(tensor, 2))) for low in (0, 1))
        here = [piece for piece in held if piece.tensor == tensor and inside(offset, shape, piece) is not None]
        found = index.around(tensor, offset, shape)
        assert [found and found[1]] == (here or [None])
        assert found is None or found[0] == inside(offset, shape, found[1])


def test_thousands_of_pieces_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a tensor with all layers and all experts."""
    asked = list[Piece]()

    def counted(offset: Box, shape: Box, piece: Piece) -> tuple[slice, ...] | None:
        asked.append(piece)
        return inside(offset, shape, piece)

    monkeypatch.setattr(module, "inside", counted)
    held = [Piece("w", (layer, expert, 0), (1, 1, 4)) for layer in range(40) for expert in range(50)]
    view = torch.zeros(1, 1, 4)
    boxes = BoxIndex((piece, view) for piece in held)
    trained = ReplicaIndex(Replica([TrainedBox(piece, (view,), lambda: view, GroupSpec()) for piece in held], []))
    for tensor, index in (("w", boxes), ("w@master", trained)):
        asked.clear()
        for _, offset, _ in held:
            index.shared(Piece(tensor, (*offset[:2], 1), (1, 1, 2)))
        assert len(asked) == len(held)


def test_which_tensors_of_a_plan_have_boxes_of_their_own() -> None:
    assert [speaks(name) for name in ("w", "w@master", "w@exp_avg")] == [True, True, False]
