"""Which node is wanted when."""

from __future__ import annotations

from itertools import pairwise

import pytest

from liver_slurm.bench.replay.schedule import AWAY, GAPS, Reclaim, draw, trace_of


@pytest.mark.parametrize("seed", range(20))
def test_a_reclaim_comes_every_half_minute_to_minute(seed: int) -> None:
    reclaims = draw(900.0, nodes=2, notice=10.0, seed=seed)
    assert 900.0 / GAPS[1] - 2 <= len(reclaims) <= 900.0 / GAPS[0]
    assert all(earlier.at < later.at for earlier, later in pairwise(reclaims))
    assert all(AWAY[0] - 0.1 <= one.until - one.at - 10.0 <= AWAY[1] + 0.1 for one in reclaims)
    for node in (0, 1):
        of_node = [one for one in reclaims if one.node == node]
        assert all(earlier.until <= later.at for earlier, later in pairwise(of_node))


def test_a_trace_is_the_same_for_a_seed_and_another_for_another() -> None:
    assert draw(900.0, 2, 10.0, seed=1) == draw(900.0, 2, 10.0, seed=1) != draw(900.0, 2, 10.0, seed=2)


def test_a_node_is_on_offer_until_its_notice_is_over() -> None:
    made = trace_of([Reclaim(40.0, 70.0, 1), Reclaim(80.0, 120.0, 0)], seconds=100.0, nodes=2, notice=10.0)
    spans = {(span.node, span.begin, span.end) for span in made.spans}
    assert spans == {("node0", 0.0, 90.0), ("node1", 0.0, 50.0), ("node1", 70.0, 100.0)}
