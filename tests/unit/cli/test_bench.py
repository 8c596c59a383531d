"""``liver-slurm bench``: finds the benchmark, prints its document or its table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from liver_slurm.bench import BENCHES

Liver = Callable[..., tuple[int, str, str]]
DOCUMENT: dict[str, Any] = {"bench": "plan", "cases": [{"name": "one", "quick": True}]}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark that takes no time."""
    bench = ModuleType("liver_slurm.bench.plan")
    bench.run = lambda quick: {**DOCUMENT, "quick": quick}  # type: ignore[attr-defined]
    bench.table = lambda document: f"{document['bench']}: {len(document['cases'])}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, bench.__name__, bench)


def test_help_lists_all_benchmarks(liver: Liver) -> None:
    code, out, _ = liver("bench", "--help")
    assert code == 0
    for name, text in BENCHES.items():
        assert name in out
        assert text in out


def test_an_unknown_benchmark_is_bad_input(liver: Liver) -> None:
    code, out, err = liver("bench", "nonsense")
    assert (code, out) == (2, "")
    assert "argument NAME: 'nonsense' is not allowed; allowed: train, " in err


def test_prints_a_document_or_a_table(liver: Liver, measured: None) -> None:
    code, out, _ = liver("bench", "plan", "--quick", "--json")
    assert (code, json.loads(out)) == (0, {**DOCUMENT, "quick": True})
    assert liver("bench", "plan") == (0, "plan: 1\n", "")


def test_a_case_that_failed_is_an_error(liver: Liver, measured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"bench": "plan", "cases": [{"name": "one"}, {"name": "two", "failed": {"pause": "it was lost"}}]}
    monkeypatch.setattr(sys.modules["liver_slurm.bench.plan"], "run", lambda quick: found)
    code, out, _ = liver("bench", "plan", "--json")
    assert (code, json.loads(out)) == (1, found)


def test_sizes_are_for_benchmarks_that_have_some(liver: Liver, measured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = liver("bench", "plan", "--size", "15M")
    assert (code, out) == (2, "")
    assert "bench plan: --size is not allowed; it is for bench reconfigure, recovery, overhead" in err
    assert liver("bench", "reconfigure", "--size", "3M")[0] == 2
    bench = ModuleType("liver_slurm.bench.reconfigure")
    bench.run = lambda quick, sizes=(): {"sizes": sizes, "cases": []}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, bench.__name__, bench)
    code, out, _ = liver("bench", "reconfigure", "--size", "15M", "--size", "1.3B", "--json")
    assert (code, json.loads(out)) == (0, {"sizes": ["15M", "1.3B"], "cases": []})
    assert json.loads(liver("bench", "reconfigure", "--json")[1])["sizes"] == []


def test_covariates_are_for_the_benchmark_that_draws_on_them(liver: Liver, measured: None) -> None:
    code, _, err = liver("bench", "plan", "--covariates", "rows.csv")
    assert code == 2
    assert "bench plan: --covariates is not allowed; it is for bench advisor" in err
