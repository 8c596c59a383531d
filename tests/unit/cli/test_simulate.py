"""``liver-slurm simulate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from liver_slurm.rundir.paths import RunDir

Liver = Callable[..., tuple[int, str, str]]
JOB = """\
[model]
num_layers = 4
hidden_size = 64
num_attention_heads = 4
[data]
paths = ["$PYTHON_STDLIB"]
[train]
steps = 1000
seq_length = 64
global_batch_size = 8
[[live.component]]
tasks_per_node = 2
[standby]
partitions = ["spot"]
max_jobs = 2
tasks_per_node = 2
[elastic]
layouts = ["tp1pp1dp2", "tp1pp1dp4", "tp1pp1dp6"]
"""


@pytest.fixture
def job_file(home: Path) -> str:
    (home / "job.toml").write_text(JOB)
    (home / "trace.csv").write_text("seconds,nodes\n0,0\n100,1\n1500,2\n2500,0\n3600,0\n")
    (home / "costs.json").write_text('{"step_s": {"tp1pp1dp2": 1.0, "tp1pp1dp4": 0.5}, "join_s": 20, "prepare_s": 5}')
    (home / "bench.json").write_text('{"bench": "plan", "cases": []}')
    return "job.toml"


def test_the_document(liver: Liver, job_file: str) -> None:
    code, out, err = liver(
        "simulate", job_file, "--trace", "trace.csv", "--costs", "costs.json", "--policy", "greedy", "--json"
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert {"trace", "notice_s", "queue_wait_s", "seed", "costs", "cases"} <= found.keys()
    assert found["trace"]["offered_device_s"] == 3600 * 2 + 1400 * 2 + 1000 * 4
    cases = {(case["policy"], case["mode"]): case for case in found["cases"]}
    keys = {"policy", "mode", "ettr", "capacity_goodput", "tokens", "changes", "paused_s"}
    assert all(keys <= case.keys() for case in cases.values())
    assert cases["greedy", "overlap"]["ettr"] > cases["greedy", "pause"]["ettr"] > 0.98
    assert list(cases)[2:] == [
        ("guaranteed-only", "none"), ("checkpoint-restart", "restart"), ("data-parallel-only", "pause"),
        ("foresight", "none"),
    ]  # fmt: skip
    assert cases["greedy", "overlap"]["changes"] == 2, "both nodes go at once"


def test_a_page_shows_each_run_against_what_was_offered(liver: Liver, home: Path, job_file: str) -> None:
    asked = (
        "simulate",
        job_file,
        "--trace",
        "trace.csv",
        "--costs",
        "costs.json",
        "--policy",
        "greedy",
        "--mode",
        "pause",
    )
    code, out, err = liver(*asked, "--html", "page.html", "--seeds", "2")
    assert (code, err) == (0, "")
    page = (home / "page.html").read_text()
    for text in ("<svg", "greedy, pause: ETTR", "checkpoint-restart", "foresight", "exposed_pause_s", "means"):
        assert text in page, text
    assert [row.split()[0] for row in out.splitlines() if row.startswith("greedy")] == ["greedy"]
    code, _, err = liver(*asked, "--html", "no/folder/page.html")
    assert (code, err.count("\n")) == (2, 1)
    assert "no/folder/page.html cannot be written" in err


def test_the_table_says_what_was_assumed(liver: Liver, job_file: str) -> None:
    code, out, err = liver("simulate", job_file, "--trace", "trace.csv", "--costs", "costs.json", "--mode", "pause")
    assert (code, err) == (0, "")
    for word in ("3 changes of capacity", "notice:", "from costs.json", "assumed: LiveR", "hysteresis", "cost-aware"):
        assert word in out


def test_several_seeds(liver: Liver, job_file: str) -> None:
    common = ("simulate", job_file, "--trace", "trace.csv", "--queue-wait", "10-60", "--policy", "greedy")
    code, out, err = liver(*common, "--seeds", "3", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["seed"], found["seeds"]) == (0, 3)
    for case in found["cases"]:
        low, high = case["intervals"]["ettr"]
        assert low <= case["ettr"] <= high
    code, out, err = liver(*common, "--seeds", "3", "--mode", "pause")
    assert (code, err) == (0, "")
    assert "means of 3 seeds" in out
    assert " ± " in out
    assert liver(*common, "--seeds", "0")[0] == 2


def test_a_load_instead_of_a_trace(liver: Liver, job_file: str) -> None:
    load = "nodes=8,days=0.2,median=900,longest=7200,utilization=0.6"
    common = ("simulate", job_file, "--load", load, "--costs", "costs.json", "--mode", "pause")
    code, out, err = liver(*common, "--policy", "greedy", "--seeds", "2")
    assert (code, err) == (0, "")
    assert "jobs that ask for" in out
    code, out, _ = liver(*common, "--policy", "greedy", "--json")
    assert json.loads(out)["trace"]["note"].endswith(" s")


def test_costs_are_written_and_read_again(liver: Liver, job_file: str, home: Path) -> None:
    common = ("simulate", job_file, "--trace", "trace.csv", "--hours", "0.2", "--policy", "greedy", "--json")
    code, first, _ = liver(*common, "--save-costs", "mine.json")
    assert code == 0
    code, second, _ = liver(*common, "--costs", "mine.json")
    assert code == 0
    assert json.loads(first)["cases"] == json.loads(second)["cases"]


def test_costs_of_several_files(liver: Liver, job_file: str, home: Path) -> None:
    case = {
        "name": "15M distributed", "parameters": 15000000, "mirror_s": 5.5, "mirror_detected_s": 0.5,
        "checkpoint_s": 9.0, "checkpoint_detected_s": 0.6,
    }  # fmt: skip
    measured = {"bench": "recovery", "machine": {"cores": 2, "device": "cpu"}, "cases": [case]}
    (home / "recovery.json").write_text(json.dumps(measured))
    files = ("--costs", "costs.json", "--costs", "recovery.json")
    code, out, err = liver("simulate", job_file, "--trace", "trace.csv", "--policy", "greedy", "--json", *files)
    assert (code, err) == (0, "")
    costs = json.loads(out)["costs"]
    assert (costs["join_s"], costs["detect_s"]) == (20, 0.5)
    assert costs["notes"]["detect_s"].startswith("from recovery.json, bench recovery of 15M")


def test_costs_are_taken_from_a_run(liver: Liver, job_file: str, run_dir: RunDir) -> None:
    code, _, err = liver("simulate", job_file, "--trace", "trace.csv", "--calibrate", "nowhere")
    assert (code, err.count("\n")) == (2, 1)
    code, out, err = liver("simulate", job_file, "--trace", "trace.csv", "--calibrate", str(run_dir.path))
    assert (code, err) == (0, "")
    assert f"measured in {run_dir.path.name}" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--trace", "none.csv"), "--trace none.csv: cannot be read: No such file or directory; name a file"),
        (("--trace", "job.toml"), "is of no known form"),
        (("--trace", "trace.csv", "--costs", "trace.csv"), "--costs trace.csv: cannot be read as JSON"),
        (("--trace", "trace.csv", "--costs", "bench.json"), "--costs bench.json: no figure of bench train"),
        (("--trace", "trace.csv", "--by-node"), "--by-node: all layouts of elastic.layouts"),
        (("--trace", "trace.csv", "--policy", "wild"), "there is no policy 'wild'"),
        (("--trace", "trace.csv", "--queue-wait", "soon"), "--queue-wait soon"),
        (("--trace", "trace.csv", "--notice", "-5"), "--notice"),
        (("--trace", "trace.csv", "--set", "standby.max_jobs=0"), "standby.max_jobs"),
        (
            ("--trace", "trace.csv", "--set", "train.rampup_batch_size=[4, 4, 9]"),
            "train.rampup_batch_size: a simulation",
        ),
        (("--trace", "trace.csv", "--hours", "0"), "--hours: 0 is too little; write more than 0"),
        (("--trace", "trace.csv", "--interval", "0"), "--interval: 0 is too little"),
        (
            ("--trace", "trace.csv", "--set", "train.earlier_batches=[[4, 4]]"),
            "train.earlier_batches: a simulation",
        ),
        ((), "--trace"),
        (("--trace", "trace.csv", "--load", "nodes=8"), "not allowed with argument --trace"),
        (("--load", "utilization=0.8"), "--load: nodes is missing"),
        (("--load", "nodes=8,hurry=1"), "--load: 'hurry=1': write KEY=VALUE, with one of nodes, days"),
        (("--load", "nodes=8", "--nodes", "8"), "are for --trace"),
    ],
)
def test_bad_input_is_told_in_one_line(liver: Liver, job_file: str, options: tuple[str, ...], said: str) -> None:
    code, out, err = liver("simulate", job_file, *options)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
