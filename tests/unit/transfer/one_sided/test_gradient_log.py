"""Gradients that are kept for receivers that are behind, and how these find out that they are too late."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import pytest
import torch

from liver_slurm.transfer import threads
from liver_slurm.transfer.one_sided.gradient_log import GradientLog
from liver_slurm.transfer.shared_box import SharedBox

CPU = torch.device("cpu")
BOXES = [
    SharedBox((torch.zeros(2, 3),), torch.arange(6.0).view(3, 2).T),
    SharedBox((torch.zeros(4),)),  # not trained
    SharedBox((torch.zeros(5),), torch.arange(5.0)),
]


@pytest.fixture
def pool() -> Iterator[Executor]:
    made = threads.pool(2)
    yield made
    made.shutdown()


@pytest.fixture
def counter() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int64)


def test_what_is_kept_outlasts_the_next_step(pool: Executor, counter: torch.Tensor) -> None:
    # LS-31
    log = GradientLog([*BOXES, *BOXES], None, counter, CPU, pool)
    assert log.nbytes == 24 + 20, "once each"
    for version in (1, 2):
        log.keep(version, BOXES)
        log.wait()
        kept = [box.gradient.clone() for box in BOXES if box.gradient is not None]
        for box in BOXES:
            if box.gradient is not None:
                box.gradient.add_(100.0)
        assert int(counter) == 2 * version
        assert torch.equal(log.gradient(BOXES[0]), kept[0])
        assert torch.equal(log.gradient(BOXES[2]), kept[1])
    log.stand(3)
    assert int(counter) == 6
    assert log.gradient(BOXES[0]) is BOXES[0].gradient, "no step follows: it stays where it is"
    log.release()


def test_where_gradients_lie_changes_only_while_the_counter_says_so() -> None:
    """Who reads one looks at the counter before and afterwards, as in a seqlock."""
    # LS-31

    class Counter:
        """Notes where a gradient lies whenever it is moved."""

        def __init__(self) -> None:
            self.said: list[tuple[int, bool]] = []

        def fill_(self, value: int) -> None:
            self.said.append((value, log.gradient(BOXES[0]) is BOXES[0].gradient))

    counter: Any = Counter()
    log = GradientLog(BOXES, None, counter, CPU, None)
    log.keep(1, BOXES)
    log.stand(2)
    assert counter.said == [(1, True), (2, False), (3, False), (4, True)]


@pytest.mark.parametrize(("room", "held"), [(None, 3), (44, 3), (43, 2), (24, 2), (23, 0), (0, 0)])
def test_boxes_are_held_from_the_first_on_while_there_is_room(
    room: int | None, held: int, counter: torch.Tensor
) -> None:
    # LS-24
    log = GradientLog(BOXES, room, counter, CPU, None)
    assert log.holds(BOXES) == held
    assert log.nbytes <= (44 if room is None else room)
    log.keep(1, BOXES)
    if held == 2:
        assert log.gradient(BOXES[2]) is BOXES[2].gradient, "without a place"
