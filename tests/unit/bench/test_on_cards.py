"""``make bench-gpu``: which parts there are, and that each stands in the file as soon as it is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.bench import machine, on_cards, train
from liver_slurm.bench.on_cards import main, measure, parts, text


def test_two_cards_have_parts_for_training_transfers_and_each_pair_of_layouts() -> None:
    assert list(parts(False, 2)) == ["train", "transfer", "tp2pp1dp1-tp1pp2dp1", "tp1pp1dp1-tp1pp1dp2"]
    assert list(parts(False, 1)) == ["train", "transfer"]
    assert list(parts(True, 0)) == ["train", "transfer", "reconfigure"]


def test_training_is_of_both_models_and_without_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "measure", lambda cases: {"cases": [case.name for case in cases]})
    monkeypatch.setattr(machine, "has_fp8", lambda: True)
    run, _ = parts(False, 2)["train"]
    more = "1.3B tp2pp1dp1, micro batch 16"
    alone = ["1.3B", "7B", "1.3B FP8", "7B FP8"]
    assert run() == {"cases": [*alone, "1.3B tp2pp1dp1", "1.3B tp1pp1dp2", more]}


def part(name: str) -> on_cards.Part:
    return lambda: {"cases": [name]}, lambda document: f"table of {document['cases'][0]}"


def fails() -> NoReturn:
    raise ValueError("out of cards")


def test_each_part_is_written_beside_those_of_earlier_calls(tmp_path: Path) -> None:
    file = tmp_path / "new" / "bench-gpu.json"

    def look() -> dict[str, Any]:
        assert json.loads(file.read_text())["parts"]["one"]["cases"] == ["one"], (
            "it is there before the next is measured"
        )
        return {"cases": ["two"]}

    measure({"one": part("one"), "bad": (fails, str), "two": (look, part("two")[1])}, file)
    document = measure({"three": part("three")}, file)
    assert document == json.loads(file.read_text())
    assert list(document["parts"]) == ["one", "bad", "two", "three"]
    assert document["parts"]["bad"]["failed"] == "ValueError: out of cards"
    shown = text(document)
    assert "table of two" in shown
    assert "failed: ValueError: out of cards" in shown


def test_parts_are_chosen_by_name_and_a_failure_is_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(on_cards, "parts", lambda quick, cards: {"good": part("good"), "bad": (fails, str)})
    monkeypatch.setattr(machine, "count_gpus", lambda: 2)
    assert main(["good", "--folder", str(tmp_path)]) == 0
    assert "table of good" in capsys.readouterr().out
    assert (tmp_path / "bench-gpu.txt").read_text().startswith("good, 0 s")
    assert main(["--folder", str(tmp_path)]) == 1
    monkeypatch.setattr(on_cards, "parts", lambda quick, cards: {"half": (lambda: {"cases": [{"failed": {}}]}, str)})
    assert main(["--folder", str(tmp_path / "half")]) == 1, "a case that failed"
    monkeypatch.setattr(on_cards, "parts", lambda quick, cards: {"good": part("good"), "bad": (fails, str)})
    with pytest.raises(BadInput, match="training is no part here; allowed: good, bad"):
        main(["training", "--folder", str(tmp_path)])
