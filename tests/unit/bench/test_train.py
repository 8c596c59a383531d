"""What else would train a model, measured beside us."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from liver_slurm.base.errors import LiverError
from liver_slurm.bench import machine, train
from liver_slurm.bench.plain_gpt import Shape
from liver_slurm.bench.train import ONE, WARM, Others, cases, table

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
    found = {case.name: train._job(case, tmp_path).train.fp8 for case in cases(False, 1)}
    assert found == {"1.3B": False, "7B": False, "1.3B FP8": True, "7B FP8": True}


def test_the_table_has_both_ratios() -> None:
    case = {"name": "a", "layout": str(ONE), "tokens_per_s": 1234.0, "mfu": None}
    plain = {"reference_tokens_per_s": 1000.0, "ratio": 1.234}
    lines = table({"cases": [case | plain | {"megatron_tokens_per_s": None, "ratio_to_megatron": None}]}).splitlines()
    assert lines[-1].split() == ["a", "tp1pp1dp1", "1,234", "-", "1,000", "1.234", "does", "not", "fit", "-"]
