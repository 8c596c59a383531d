"""A site's own history."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.simulation.sacct import expand
from liver_slurm.simulation.trace import Trace
from liver_slurm.simulation.trace_files import read_trace

HISTORY = """\
JobID|Partition|State|Start|End|NNodes|NodeList
1|gpu|COMPLETED|2026-10-01T00:00:00|2026-10-01T00:10:00|2|n[1-2]
1.batch||COMPLETED|2026-10-01T00:00:00|2026-10-01T00:10:00|1|n1
2|gpu|CANCELLED by 7|2026-10-01T00:10:00|2026-10-01T00:15:00|1|n2
3|cpu|COMPLETED|2026-10-01T00:05:00|2026-10-01T00:20:00|1|m1
4|gpu|PENDING|Unknown|Unknown|1|None assigned
5|gpu|RUNNING|2026-10-01T00:18:00|Unknown|1|n1
6|gpu|COMPLETED|2026-10-01T00:19:00|2026-10-01T00:20:00|1|n2
"""


def read(folder: Path, text: str, **how: Any) -> Trace:
    path = folder / "history.txt"
    path.write_text(text)
    return read_trace(path, Random(0), **how)


def test_a_node_is_on_offer_while_no_job_has_it(tmp_path: Path) -> None:
    trace = read(tmp_path, HISTORY, partition="gpu")
    assert trace.seconds == 1200.0
    assert [(span.node, span.begin, span.end) for span in trace.spans] == [
        ("n1", 600.0, 1080.0), ("n2", 900.0, 1140.0),
    ]  # fmt: skip
    more = read(tmp_path, HISTORY, partition="gpu", nodes=4)
    assert more.offered(10.0) == 2, "two nodes that no job had"


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    columns = [line.split("|") for line in HISTORY.splitlines()]
    turned = "\n".join("|".join([fields[6], "x", fields[4], fields[0], fields[3], fields[1]]) for fields in columns)
    turned = turned.replace("\n", "|\n") + "|"  # --parsable
    assert read(tmp_path, turned, partition="gpu").spans == read(tmp_path, HISTORY, partition="gpu").spans


def test_numbers_of_nodes_will_do(tmp_path: Path) -> None:
    text = "Start|End|NNodes\n1000|1600|2\n1600|1900|1\n2080|Unknown|1\n2140|2200|1\n"
    trace = read(tmp_path, text)
    assert trace.counts() == [(0.0, 0), (600.0, 1), (900.0, 2), (1080.0, 1), (1140.0, 0)]
    assert read(tmp_path, text, nodes=5).offered(10.0) == 3
    with pytest.raises(BadInput, match=r"--nodes 1: .* shows 2 nodes busy at once"):
        read(tmp_path, text, nodes=1)


def test_times_with_a_zone_and_over_the_new_year(tmp_path: Path) -> None:
    first = "2026-12-31T23:00:00+01:00|2026-12-31T22:30:00+00:00|1"
    second = "2026-12-31T22:45:00+00:00|2026-12-31T23:00:00+00:00|1"
    assert read(tmp_path, f"Start|End|NNodes\n{first}\n{second}\n").counts() == [(0.0, 0), (1800.0, 1), (2700.0, 0)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("JobID|End|NNodes\n1|5|1\n", "no column Start"),
        ("JobID|Start|End\n1|0|5\n", "no column NodeList or NNodes"),
        ("Start|End|NNodes\n1|2\n", "line 2: 2 columns, the header has 3"),
        ("Start|End|NNodes\nnoon|2|1\n", "line 2: 'noon' is no time"),
        ("Start|End|NNodes\n1|2|many\n", "line 2: neither NodeList nor NNodes"),
        ("Start|End|NNodes\nUnknown|Unknown|1\n", "no job in it has started"),
    ],
)
def test_bad_output_is_told_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_partition_needs_its_column(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no column Partition to find gpu in"):
        read(tmp_path, "Start|End|NNodes\n0|5|1\n", partition="gpu")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3,07],m5", ["n1", "n2", "n3", "n07", "m5"]),
        ("n[08-10]", ["n08", "n09", "n10"]),
        ("r[1-2]n[1-2]-ib", ["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib"]),
        ("", []),
    ],
)
def test_lists_of_nodes(text: str, names: list[str]) -> None:
    assert list(expand(text)) == names
