"""``bench advisor``: its parts on few repetitions, its table, and input that is not for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.bench import advisor, advisor_missing, advisor_shift


def test_each_method_is_compared_on_each_design(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advisor_missing, "WRONG", {"outcome wrong": (True, False)})
    cases = advisor_missing.simulated(repetitions=4, networks=0)
    by_part: dict[str, set[str]] = {}
    for case in cases:
        by_part.setdefault(case["part"], set()).add(case["name"])
    methods = {"complete cases", "IPW", "IPW that ignores S", "SeqRI", "SeqMSM A", "SeqMSM B", "SeqDR"}
    assert set(by_part) == {f"missing outcomes, {name}, n 1000, outcome wrong" for name in ("mild", "severe")}
    assert all(names == methods for names in by_part.values())
    assert all((case["95 % covers"] is not None) == (case["name"] == "SeqDR") for case in cases)


def test_real_covariates_are_an_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advisor_missing, "RATES", (0.35,))
    random = np.random.default_rng(0)
    rows = np.column_stack([random.random(400) < 0.4, np.zeros((400, 4)), random.normal(size=(400, 4))])
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",")
    parts = {case["part"] for case in advisor_missing.on_covariates(tmp_path / "rows.csv", repetitions=2)}
    assert parts == {f"covariates of rows.csv, 35% missing, {carried} carried on" for carried in ("0.02", "0.6")}


def test_rules_for_elsewhere_are_judged_by_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advisor_shift, "SIZES", (250,))
    monkeypatch.setattr(advisor_shift, "USUAL_SIZE", 600)
    cases = advisor_shift.rules(repetitions=3)
    assert {case["name"] for case in cases} == {"Direct", "IPW", "SE", "source alone", "plug-in, no class"}
    for case in cases:
        assert 0.0 <= case["regret"] < 1.5
        assert 0.0 <= case["share wrong"] <= 1.0
    best = min(cases, key=lambda case: case["regret"])
    assert "hinge" in best["part"], "what bends is learned by what may bend"


def test_the_table_has_a_part_for_each_comparison() -> None:
    cases = [
        {"part": "reward elsewhere", "name": "SE", "bias": 0.01},
        {"part": "toy partition", "name": "greedy", "goodput": 1.2},
    ]
    shown = advisor.table({"cases": cases})
    assert shown.splitlines()[0] == "reward elsewhere"
    assert "toy partition\n" in shown
    assert "1.200" in shown


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advisor.importlib.util, "find_spec", lambda name: None if name == "sklearn" else object())
    with pytest.raises(BadInput, match=r"sklearn not installed; pip install 'liver-slurm\[advisor\]'"):
        advisor.run(quick=True)
