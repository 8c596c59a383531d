"""Traces of several seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.simulation.load import Load
from liver_slurm.simulation.sources import Source


def test_a_seed_draws_which_nodes_go(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_text("hours,nodes\n0,20\n10,10\n20,0\n")
    source = Source(path)
    assert source.trace(1) == source.trace(1)
    assert source.trace(1) != source.trace(2)


def test_deaths_change_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_text("hours,nodes\n0,20\n10,10\n20,0\n")
    quiet, deadly = Source(path, hours=15.0).trace(3), Source(path, hours=15.0, deaths=1000.0).trace(3)
    assert quiet.seconds == deadly.seconds == 15 * 3600.0
    assert not any(span.sudden for span in quiet.spans)
    assert any(span.sudden for span in deadly.spans)
    assert {span.end for span in quiet.spans} <= {span.end for span in deadly.spans}


def test_a_load_is_drawn_for_each_seed() -> None:
    source = Source(Load(nodes=8, days=0.5), hours=6.0)
    assert source.trace(1).seconds == 6 * 3600.0
    assert source.trace(1) == source.trace(1)
    assert source.trace(1) != source.trace(2)


def test_a_load_that_leaves_nothing() -> None:
    with pytest.raises(BadInput, match="leaves no node idle"):
        Source(Load(nodes=1, days=0.1, utilization=1.0, median=80000.0, p99=80000.0, cv=0.0)).trace(0)
