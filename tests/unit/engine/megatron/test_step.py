"""What a step takes note of."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from liver_slurm.engine.megatron.step import Waited


def test_only_the_time_in_which_samples_are_fetched_is_waiting() -> None:
    now = [0.0]
    state: Any = SimpleNamespace(computing=True)

    def samples() -> Iterator[tuple[torch.Tensor, ...]]:
        for seconds in (2.0, 1.0):
            assert not state.computing, "whoever waits for samples is not stuck in a step"
            now[0] += seconds
            yield (torch.zeros(1),)
        now[0] += 0.5  # a reader that ends takes its time, too

    waited = Waited(state, lambda: now[0])
    for _ in waited.over(samples()):
        assert state.computing
        now[0] += 10.0  # the step itself
    assert now[0] == 23.5
    assert waited.seconds == 3.5
