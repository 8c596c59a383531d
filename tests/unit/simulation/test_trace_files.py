"""Traces in every form that is known, and bad ones."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.simulation.trace import Published, Trace
from liver_slurm.simulation.trace_files import read_trace


def read(folder: Path, text: str, **how: Any) -> Trace:
    path = folder / "trace"
    path.write_text(text)
    return read_trace(path, Random(0), **how)


BAMBOO = "0,add,node1\n0,add,node2\n60000,add,node3\n90000,remove,node1\n120000,remove,node2\n"
PARCAE_COUNTS = "0,1\n0,2\n60000,3\n90000,2\n120000,1\n"
PARCAE = """\
[0, "add", {"nodes": ["a", "b"], "duration": 60000, "throughput_opt_strategy": [2, 1]}]
[60000, "add", {"nodes": ["c"], "duration": 30000}]
[90000, "remove", {"nodes": ["a"], "duration": 15000}]
[105000, "migration", {"nodes": [], "duration": 15000}]
"""
GCLOUD = """\
2021-12-11, 11:11:30, 2
2021-12-11, 11:12:30, 3
2021-12-11, 11:13:00, 2
2021-12-11, 11:13:30, 2
"""
SECONDS = "seconds,nodes\n0,2\n60,3\n90,2\n120,0\n"
MINUTES = "# of my cluster\nminutes,free\n0,2\n1,3\n1.5,2\n2,0\n"
EVENLY = "nodes\n2\n2\n3\n2\n"


@pytest.mark.parametrize(
    ("text", "how"),
    [
        (BAMBOO, {}), (PARCAE_COUNTS, {}), (PARCAE, {}), (GCLOUD, {}), (SECONDS, {}), (MINUTES, {}),
        (EVENLY, {"interval": 30.0}),
    ],
)  # fmt: skip
def test_every_form(tmp_path: Path, text: str, how: dict[str, Any]) -> None:
    trace = read(tmp_path, text, **how)
    assert trace.seconds == 120.0
    assert trace.counts() == [(0.0, 2), (60.0, 3), (90.0, 2)]


def test_names_are_those_of_the_file(tmp_path: Path) -> None:
    spans = read(tmp_path, BAMBOO).spans
    assert [(span.node, span.begin, span.end) for span in spans] == [
        ("node1", 0.0, 90.0), ("node2", 0.0, 120.0), ("node3", 60.0, 120.0),
    ]  # fmt: skip


def test_what_parcae_chose_is_kept(tmp_path: Path) -> None:
    line = '[{}, "no-op", {{"nodes": {}, "duration": 60000, "liveput_predict_strategy": [{}, 13]}}]\n'
    trace = read(tmp_path, line.replace("no-op", "add").format(0, '["a"]', 2) + line.format(60000, [], 1))
    assert trace.published == (Published("parcae", ((0.0, 2, 13), (60.0, 1, 13))),)
    assert read(tmp_path, PARCAE).published == (Published("parcae-reactive", ((0.0, 2, 1),)),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("nodes\n5\n", "say with --interval"),
        ("hello\n", "is of no known form"),
        ("hello,world,again\n", "line 1: 'hello,world,again' is of no known form"),
        ("0,add,a\n0,add,a\n", "line 2: a comes although it is there"),
        ("0,remove,a\n", "line 1: a goes although it is not there"),
        ("9,add,a\n5,add,b\n", "line 2: 0.005 s comes after 0.009 s"),
        ("0,add,a\n5,move,a\n", "line 2: '5,move,a': write MILLISECONDS,add|remove,NODE"),
        ("0,1\n5,many\n", "line 2: 'many' is no number of nodes"),
        ("0,1\n5\n", "line 2: '5': write TIME,COUNT"),
        ("0,1\n-5,2\n", "line 2: '-5' is no time"),
        ("seconds,nodes\n", "no line below the header"),
        ("seconds,nodes\n5,1\n4,1\n", "line 3: its time comes before"),
        ("seconds,nodes\n5,0\n9,0\n", "never a node in it"),
        ("[0, 1]\n", "line 1: '[0, 1]': write [MILLISECONDS"),
        ('[0, "melt", {"nodes": ["a"], "duration": 5}]\n', "nodes can be added or removed, and this is 'melt'"),
        ("2021-12-11, 25:11:30, 2\n", "write YYYY-MM-DD, HH:MM:SS, COUNT"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "trace") in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_trace(tmp_path / "none", Random(0))
