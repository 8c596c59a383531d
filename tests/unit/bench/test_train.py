"""What else would train a model, measured beside us."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from liver_slurm.base.errors import LiverError
from liver_slurm.bench import machine, train
from liver_slurm.bench.plain_gpt import Shape
from liver_slurm.bench.train import ONE, WARM, Case, Others, cases, table

TINY = Shape(1, 32, 2, 1, 48, 128, 16, 1, 2, WARM + 2, tied=True, bf16=True)


@pytest.mark.parametrize("module", ["plain_gpt", "megatron_gpt"])
def test_each_trains_the_model(module: str) -> None:
    seconds = train._seconds(module, TINY)
    assert seconds is not None
    assert len(seconds) == TINY.steps
    assert min(seconds) > 0.0


def test_what_cannot_be_built_is_one_line() -> None:
    with pytest.raises(LiverError, match=r"^the baseline megatron_gpt failed: \S"):
        train._seconds("megatron_gpt", replace(TINY, heads=3, groups=2))


def test_each_shape_is_measured_once_and_in_bf16_where_there_is_no_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, bool]] = []

    def seconds(module: str, shape: Shape) -> list[float] | None:
        measured.append((module, shape.fp8))
        return [9.0] * WARM + [0.5] if module == "plain_gpt" else None

    monkeypatch.setattr(train, "_seconds", seconds)
    monkeypatch.setattr(machine, "has_transformer_engine", lambda: False)
    others, tokens = Others(), TINY.global_batch * TINY.sequence
    for shape in (TINY, replace(TINY, fp8=True), TINY):
        assert others.plain(shape) == tokens / 0.5
        assert others.megatron(shape) is None, "it does not fit"
    assert measured == [("plain_gpt", False), ("megatron_gpt", False)]
    monkeypatch.setattr(machine, "has_transformer_engine", lambda: True)
    others.megatron(replace(TINY, fp8=True))
    assert measured[2:] == [("megatron_gpt", True)]


def test_the_job_is_in_fp8_where_the_case_is(tmp_path: Any) -> None:
    found = {case.name: train._job(case, tmp_path).train.fp8 for case in cases(False, 1, True)}
    assert found == {"1.3B": False, "7B": False, "1.3B FP8": True, "7B FP8": True}
    assert [case.name for case in cases(False, 1, False)] == ["1.3B", "7B"], "a card before FP8"
    assert [case.name for case in cases(True, 1, True)] == ["1.3B"]


def test_a_case_that_fails_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(case: Case, _others: Others, _device: str) -> dict[str, Any]:
        if case.name == "bad":
            raise LiverError("no room")
        return measured(case.name)

    monkeypatch.setattr(train, "_case", one)
    document = train.measure([Case(name, TINY, ONE) for name in ("bad", "good")])
    assert [case.get("failed") for case in document["cases"]] == ["no room", None]
    assert table(document).splitlines()[-1] == "bad in tp1pp1dp1 failed: no room"


def measured(name: str) -> dict[str, Any]:
    """What is found of a case that Megatron has no room for."""
    case = {"name": name, "layout": str(ONE), "tokens_per_s": 1234.0, "mfu": None}
    plain = {"reference_tokens_per_s": 1000.0, "ratio": 1.234}
    return case | plain | {"megatron_tokens_per_s": None, "ratio_to_megatron": None, "megatron_precision": "bf16"}


def test_the_table_has_both_ratios() -> None:
    lines = table({"cases": [measured("a")]}).splitlines()
    assert lines[-1].split() == ["a", "tp1pp1dp1", "1,234", "-", "1,000", "1.234", "does", "not", "fit", "-", "bf16"]
