"""``liver-slurm advisor``: from simulated runs to advice, and bad input in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from simulation_lab import COSTS, elastic_job, setting, trace

from liver_slurm.advisor.model import Constant, Model, write_model
from liver_slurm.plugins.policies import advisor
from liver_slurm.simulation.elastic_run import ElasticRun
from liver_slurm.simulation.event_file import event_file
from liver_slurm.simulation.setting import BEGIN, Setting

Liver = Callable[..., tuple[int, str, str]]
DAY = 86400.0
PRICES = replace(COSTS, exposed_pause_s=100.0, recover_s=60.0)
"""A change costs more than what nodes make good that go away after two minutes."""


def nights_and_days(seed: int, days: float = 1.0) -> Setting:
    """One node every half an hour, which stays by night and is taken without a word by day."""
    random, spans, begin = Random(seed), [], 300.0
    while begin < days * DAY:
        night = (BEGIN + begin) % DAY < DAY / 2
        life = random.uniform(2500.0, 3500.0) if night else random.uniform(100.0, 200.0)
        spans.append((f"n{len(spans)}", begin, begin + life))
        begin += life + random.uniform(600.0, 1500.0)
    spans = [(name, first, min(last, days * DAY)) for name, first, last in spans]
    return setting(trace(days * DAY, *spans, sudden=True), 0.0, seed=seed)


def simulated(folder: Path, policy: str, seeds: range, **standby: object) -> float:
    """Simulate and log runs; returns the steps that count."""
    steps = 0.0
    for seed in seeds:
        with event_file(folder, f"{policy}-{seed}") as heard:
            steps += (
                ElasticRun(elastic_job(**standby), nights_and_days(seed), PRICES, policy, "pause", heard)
                .run()
                .account.steps
            )
    return steps


@pytest.mark.long
def test_from_simulated_runs_to_advice_that_is_worth_it(liver: Liver, home: Path) -> None:
    simulated(home / "log", "explore", range(20), explore=0.4)
    runs = sorted(map(str, (home / "log").iterdir()))
    code, out, err = liver("advisor", "collect", *runs, "-o", "table.jsonl", "--json")
    assert (code, err) == (0, "")
    collected = json.loads(out)
    assert collected["runs"] == 20
    assert min(each["decisions"] for each in collected["actions"].values()) > 100
    assert set(collected["not_seen"]) == {"the log ends"}

    code, out, err = liver("advisor", "fit", "table.jsonl", "--window", "1800", "-o", "advisor.json")
    assert (code, err) == (0, ""), err
    assert out.startswith("verdict:  the learned rule is better than to take always")
    assert liver("advisor", "explain", "advisor.json")[1] in out
    model = json.loads(liver("advisor", "explain", "advisor.json", "--json")[1])
    assert model["advises"]

    simulated(home / "new", "explore", range(100, 105), explore=0.5)
    new = sorted(map(str, (home / "new").iterdir()))
    liver("advisor", "collect", *new, "-o", "new.jsonl")
    options = ("--model", "advisor.json", "--features", "hour_sin", "--json")
    code, out, _ = liver("advisor", "evaluate", "new.jsonl", *options)
    assert code == 0
    takes, leaves, _, advice = json.loads(out)["rules"]
    assert advice["gain"]["low"] > 0.0
    assert (takes["taken"], leaves["taken"]) == (1.0, 0.0)
    assert 0.0 < advice["taken"] < 1.0

    greedy = simulated(home / "greedy", "greedy", range(200, 203))
    advised = simulated(home / "advised", "advisor", range(200, 203), advisor=str(home / "advisor.json"))
    assert advised > greedy
    events = "".join((path / "events.jsonl").read_text() for path in (home / "advised").iterdir())
    assert "advisor: leave 1 standby job for 900 s, mostly: " in events
    assert "advisor: take, mostly: " in events
    code, _, err = liver("advisor", "collect", *map(str, (home / "greedy").iterdir()), "-o", "greedy.jsonl")
    assert code == 0
    code, _, err = liver("advisor", "fit", "greedy.jsonl", "-o", "x.json")
    assert code == 2
    assert err.count("\n") == 1
    assert "policy greedy states no chance, so that nothing can be compared" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("collect", "nowhere", "-o", "t"), "there is no run 'nowhere'"),
        (("fit", "nowhere", "-o", "m"), "nowhere: cannot be read: No such file or directory"),
        (
            ("fit", "bad.jsonl", "-o", "m"),
            "bad.jsonl: is no table of decisions; `liver-slurm advisor collect` writes one",
        ),
        (("evaluate", "bad.jsonl"), "bad.jsonl: is no table of decisions"),
        (("fit", "bad.jsonl"), "the following arguments are required: -o/--output"),
        (("explain", "bad.jsonl"), "bad.jsonl: is no advisor's model"),
        (("explain", "nowhere"), "nowhere: cannot be read"),
        (("guess",), "there is no verb 'guess'"),
    ],
)
def test_bad_input_is_one_line(liver: Liver, home: Path, arguments: tuple[str, ...], said: str) -> None:
    (home / "bad.jsonl").write_text("{}\n")
    code, out, err = liver("advisor", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_without_scikit_learn_one_line_says_so(liver: Liver, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = liver("advisor", "fit", "t.jsonl", "-o", "m.json")
    assert code == 2
    assert err == "liver-slurm: error: advisor: sklearn, scipy not installed; pip install 'liver-slurm[advisor]'\n"


def test_a_model_without_advice_is_explained(liver: Liver, home: Path) -> None:
    model = Model(
        features_version=1, columns=(), rule=Constant(take=True), advises=False, verdict="take always: too few data",
        window_s=300.0, rule_class="linear", learned_by="plug-in", decisions=3, runs=1,
    )  # fmt: skip
    write_model(home / "m.json", model)
    code, out, _ = liver("advisor", "explain", "m.json")
    assert code == 0
    assert out.splitlines()[:3] == [
        "verdict:  take always: too few data",
        'policy:   standby.policy = "advisor" takes whatever is on offer, as greedy does',
        "outcome:  time gained within 5 min of a decision",
    ]
    code, out, _ = liver("advisor", "explain", "m.json", "--html", "m.html", "--png", "m.png")
    assert (code, out.splitlines()[-2:]) == (0, ["written to m.html", "written to m.png"])
    assert "take always: too few data" in (home / "m.html").read_text()
    assert (home / "m.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = liver("advisor", "explain", "m.json", "--png", "nowhere/m.png")
    assert (code, err.count("\n")) == (2, 1)
    assert advisor.check(elastic_job(advisor=str(home / "m.json"))) is None
