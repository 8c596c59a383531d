"""Sums of gradients are megatron-core's own, bit for bit, whoever adds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from one_rank import shard_of

from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection
from liver_slurm.engine.megatron import gradients, shard

STEPS = 3


def _job(precision: Any, tied: bool) -> JobConfig:
    return JobConfig(
        model=ModelSection(
            num_layers=2, hidden_size=32, num_attention_heads=4, vocab_size=256,
            share_embeddings_and_output_weights=tied,
        ),
        train=TrainSection(seq_length=16, micro_batch_size=1, global_batch_size=3, precision=precision),
    )  # fmt: skip


class _Tokens:
    def __init__(self, tokens: Any) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def batch(self, first: int, count: int) -> Any:
        return self._tokens[first : first + count]


def _trained(config: JobConfig) -> dict[str, torch.Tensor]:
    """The sums of the last of some steps of three microbatches, and what the weights have become."""
    tokens = np.random.default_rng(0).integers(0, 256, (3 * STEPS, 17))
    samples: Any = _Tokens(tokens)
    with shard_of(config) as made:
        for step in range(STEPS):
            made.train_step(samples, step)
        sums = {f"sums of {name}": each.main_grad.clone() for name, each in made.parameters.items()}
        return sums | {name: each.detach().clone() for name, each in made.parameters.items()}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_they_are_added_once_and_rounded_as_before(precision: str, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config, added = _job(precision, tied), []

    def counted(sums: torch.Tensor, gradient: torch.Tensor) -> None:
        added.append(gradient.dtype)
        sums.add_(gradient)

    with monkeypatch.context() as patch:
        patch.setattr(gradients, "add_to_sums", counted)
        ours = _trained(config)
    monkeypatch.setattr(shard, "add_gradients_first", lambda _: None)
    theirs = _trained(config)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert any(each.any() for each in ours.values())
    weights = len(ours) // 2
    assert added == [torch.bfloat16] * (weights * 3 * STEPS if precision == "bf16" else 0)
