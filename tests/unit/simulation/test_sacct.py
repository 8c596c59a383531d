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
5|gpu|RUNNING|2026-10-01T00:18:00|2026-10-01T00:20:00|1|n1
6|gpu|COMPLETED|2026-10-01T00:19:00|2026-10-01T00:20:00|1|n2
7|cpu|COMPLETED|2026-10-01T00:00:00|2026-10-01T00:01:00|1|m1
"""
"""As with ``--truncate``, from midnight to 00:20."""


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
    assert more.counts()[0] == (0.0, 2), "two nodes that no job had"


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    columns = [line.split("|") for line in HISTORY.splitlines()]
    turned = "\n".join("|".join([fields[6], "x", fields[4], fields[0], fields[3], fields[1]]) for fields in columns)
    turned = turned.replace("\n", "|\n") + "|"  # --parsable
    assert read(tmp_path, turned, partition="gpu").spans == read(tmp_path, HISTORY, partition="gpu").spans


def test_numbers_of_nodes_will_do(tmp_path: Path) -> None:
    text = "Start|End|NNodes\n1020|1620|1\n1020|1620|1\n1620|1920|1\n2100|2220|1\n2160|2220|1\n"
    trace = read(tmp_path, text)
    assert trace.counts() == [(0.0, 0), (600.0, 1), (900.0, 2), (1080.0, 1), (1140.0, 0)]
    assert read(tmp_path, text, nodes=5).counts()[0] == (0.0, 3)
    with pytest.raises(BadInput, match=r"--nodes 1: .* shows 2 nodes busy at once"):
        read(tmp_path, text, nodes=1)


def test_times_with_a_zone_and_over_the_new_year(tmp_path: Path) -> None:
    first = "2026-12-31T23:00:00+01:00|2026-12-31T22:30:00+00:00|1"
    second = "2026-12-31T22:45:00+00:00|2026-12-31T23:00:00+00:00|1"
    text = "\n".join(["Start|End|NNodes", first, first, second, second])
    assert read(tmp_path, text).counts() == [(0.0, 0), (1800.0, 2), (2700.0, 0)]


BUSY = "JobID|Partition|State|Start|End|NNodes|NodeList\n" + "".join(
    f"{node}{day}|gpu|COMPLETED|2026-10-0{day}T00:00:00|2026-10-0{day + 1}T00:00:00|1|n{node}\n"
    for node in range(1, 5)
    for day in range(1 if node > 1 else 3, 8)
)
"""Days 1 to 7 of four nodes that always have a job, without the first one of node 1."""


@pytest.mark.parametrize(("begun", "days"), [("2026-10-01T00:00:00", 7), ("2026-09-26T00:00:17", 7)])
def test_time_before_and_after_the_window_is_not_idle(tmp_path: Path, begun: str, days: int) -> None:
    """The window is a week, to whose jobs one belongs that began days before; cut off by sacct, or not."""
    trace = read(tmp_path, BUSY + f"1|gpu|COMPLETED|{begun}|2026-10-03T00:00:00|1|n1\n9|gpu|COMPLETED|{LAST}|1|n9\n")
    assert trace.seconds <= days * 86400.0
    assert {span.node for span in trace.spans} == {"n9"}, "the others are always busy"


LAST = "2026-10-01T00:00:00|2026-10-01T12:00:00"


def test_a_job_that_has_no_end_says_that_nothing_was_cut(tmp_path: Path) -> None:
    """From the first end to the last start all jobs are known: from 60 s to 600 s."""
    text = "Start|End|NNodes\n0|60|2\n0|540|1\n600|Unknown|1\n660|720|1\n"
    assert read(tmp_path, text).counts() == [(0.0, 2), (480.0, 3), (540.0, 2)]


def test_no_time_of_which_all_is_known(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no job in it ends before another one begins.* --truncate"):
        read(tmp_path, "Start|End|NNodes\n0|61|2\n7|Unknown|1\n")


def test_jobs_of_other_partitions_keep_nodes_busy(tmp_path: Path) -> None:
    rows = ["0|3600|gpu|n1", "0|3600|long|n2", "3600|32400|long|n1", "32400|36000|gpu|n1", "32400|36000|long|n2"]
    trace = read(tmp_path, "\n".join(["Start|End|Partition|NodeList", *rows, "7200|10800|gpu|n3"]), partition="gpu")
    assert [(one.node, one.begin, one.end) for one in trace.spans] == [("n3", 0, 7200), ("n3", 10800, 36000)]


@pytest.mark.parametrize("column", ["JobID", "JobIDRaw"])
def test_steps_are_no_jobs(tmp_path: Path, column: str) -> None:
    rows = ["1|0|7200|2", "1.batch|0|7200|1", "1.0|0|7200|2", "2|7200|14400|1", "3|7200|14400|1", "4|0|7200|1"]
    trace = read(tmp_path, "\n".join([f"{column}|Start|End|NNodes", *rows]))
    assert (trace.most, trace.node_seconds) == (1, 7200.0)


def test_fewer_nodes_than_have_names(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--nodes 1: .* names 2 nodes"):
        read(tmp_path, HISTORY, partition="gpu", nodes=1)


def test_it_is_said_what_was_read_and_assumed(tmp_path: Path) -> None:
    note = read(tmp_path, HISTORY).note
    assert "from 2026-10-01 00:00:00 to 2026-10-01 00:20:00" in note
    assert "drained or down" in note


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
