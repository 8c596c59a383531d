"""Initial values: the same model whatever part of it a rank draws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection
from liver_slurm.engine.megatron import initial
from liver_slurm.reshard.shard_spec import BoxSpec

CONFIG = JobConfig(model=ModelSection(num_layers=2, vocab_size=120), train=TrainSection(seed=5))


def draw(name: str, whole: tuple[int, int], offset: tuple[int, int], shape: tuple[int, int]) -> torch.Tensor:
    part = torch.full(shape, float("nan"))
    initial._draw(part, offset, BoxSpec(name, whole, offset, shape, 0, layered=False), 0, CONFIG)
    return part


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 60), st.data())
def test_any_part_is_what_the_whole_has_there(rows: int, columns: int, block: int, data: st.DataObject) -> None:
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    height, width = data.draw(st.integers(1, rows - top)), data.draw(st.integers(1, columns - left))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initial, "_BLOCK", block)
        whole = draw("w", (rows, columns), (0, 0), (rows, columns))
        part = draw("w", (rows, columns), (top, left), (height, width))
    assert torch.equal(part, whole[top : top + height, left : left + width])


def test_rows_that_pad_the_vocabulary_are_zero() -> None:
    lower = draw("embedding", (128, 4), (64, 0), (64, 4))
    assert lower[:56].all()
    assert not lower[56:].any()


def test_deviations() -> None:
    usual, residual = (
        draw("fc1.weight", (400, 300), (0, 0), (400, 300)),
        draw("linear_fc2.weight", (400, 300), (0, 0), (400, 300)),
    )
    assert usual.std().item() == pytest.approx(CONFIG.model.init_method_std, rel=0.02)
    assert residual.std().item() == pytest.approx(CONFIG.model.init_method_std / 2, rel=0.02)
