"""The cases of the benchmark, what does not fit, what fails, and the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.errors import LiverError
from liver_slurm.bench import SIZED, reconfigure
from liver_slurm.bench.figures import Reconfigured
from liver_slurm.bench.jobs import BILLION, BY_NAME, SIZES, job, parameters, rank_bytes
from liver_slurm.bench.reconfigure import Pair, all_pairs, card_pairs, measure, table, too_large
from liver_slurm.bench.restart import Baseline
from liver_slurm.config.load import check_job
from liver_slurm.parallel.layout import Layout

ONE, OTHER = Layout.parse("tp2pp2dp1"), Layout.parse("tp1pp1dp4")


def pair(size: int = 0, distributed: bool = True, **changes: Any) -> Pair:
    return Pair(SIZES[size], ONE, OTHER, distributed, **{"repetitions": 2, **changes})


def test_the_pairs_cover_the_transitions_that_must_be_there() -> None:
    steps = {
        (one.size.name, str(source), str(target), one.distributed_optimizer)
        for one in all_pairs()
        for source, target in ((one.one, one.other), (one.other, one.one))
    }
    for size in ("15M", "110M", "400M"):
        for distributed in (False, True):
            assert (size, "tp2pp1dp1", "tp1pp2dp1", distributed) in steps
            assert (size, "tp1pp1dp2", "tp1pp1dp4", distributed) in steps
            assert (size, "tp1pp1dp4", "tp1pp1dp2", distributed) in steps
            assert (size, "tp2pp2dp1", "tp1pp1dp4", distributed) in steps


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
@pytest.mark.parametrize("layout", [layout for layouts in reconfigure.PAIRS for layout in layouts])
def test_each_job_is_one_that_a_user_could_write(size: Any, layout: str, tmp_path: Path) -> None:
    config = job(size, tmp_path, Layout.parse(layout), distributed_optimizer=True, mode="overlap")
    assert check_job(config).elastic.initial == layout


def test_memory_of_a_rank_counts_weights_gradients_and_its_share_of_moments() -> None:
    assert rank_bytes(1000, Layout.parse("tp2pp1dp1"), distributed_optimizer=False) == 500 * 16
    assert rank_bytes(1000, Layout.parse("tp1pp1dp4"), distributed_optimizer=True) == 1000 * 10


def test_what_does_not_fit_is_said_with_its_figures() -> None:
    assert too_large(pair(), 1 << 20, available=64 << 30) == ""
    reason = too_large(pair(size=2, distributed=False), 400_000_000, available=20 << 30)
    assert "31.4 GiB together" in reason
    assert "20.0 GiB are free" in reason


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Restarts of 10 s, pauses of 0.5 s, and overlap that fails; what was measured in which order."""
    order: list[str] = []

    def results(layouts: list[Layout], lost: float) -> list[Reconfigured]:
        return [Reconfigured(1.0 + lost, 1.0, {"first_step_s": 1.5, "bytes_moved": 3e9}) for _ in layouts[1:]]

    def chain(_self: Any, layouts: list[Layout]) -> list[Reconfigured]:
        order.append("restart")
        return results(layouts, 10.0)

    def walk(config: Any, layouts: list[Layout], steps: int) -> list[Reconfigured]:
        order.append(config.stream.mode)
        if config.stream.mode == "overlap":
            raise LiverError("a worker was lost")
        return results(layouts, 0.5)

    monkeypatch.setattr("liver_slurm.bench.restart.Baseline.chain", chain)
    monkeypatch.setattr(reconfigure, "walk", walk)
    monkeypatch.setattr(reconfigure, "parameters", lambda _config: 16_000_000)
    monkeypatch.setattr(reconfigure.machine, "has_gpu", lambda: False)
    return order


def test_a_way_that_fails_is_named_and_costs_the_others_nothing(faked: list[str]) -> None:
    document = measure([pair()])
    assert faked == ["restart", "pause", "restart", "overlap"]
    there, back = document["cases"]
    assert (there["from"], there["to"], back["from"], back["to"]) == (str(ONE), str(OTHER), str(OTHER), str(ONE))
    assert (there["restart_s"], there["pause_s"], there["overlap_s"]) == (10.0, 0.5, None)
    assert (there["ratio_pause"], there["ratio_overlap"]) == (20.0, None)
    assert (there["pause_first_step_ratio"], "overlap_first_step_ratio" in there) == (1.5, False)
    assert there["restart_repetitions"] == there["pause_repetitions"] == 2
    assert there["failed"] == {"overlap": "LiverError: a worker was lost"}
    assert (document["ratio_pause_median"], document["ratio_overlap_median"]) == (20.0, None)


def test_a_single_repetition_measures_all_ways_once(faked: list[str]) -> None:
    (case,) = measure([pair(repetitions=1, back=False)])["cases"]
    assert faked == ["pause", "restart", "overlap"]
    assert case["parameters"] == 16_000_000


def test_what_is_skipped_is_in_the_document_and_not_measured(faked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconfigure, "too_large", lambda *_: "too large")
    document = measure([pair()])
    assert faked == []
    assert [case["skipped"] for case in document["cases"]] == ["too large"] * 2
    assert "too large" in table(document)


def test_the_table_says_what_lost_how_much(faked: list[str]) -> None:
    text = table(measure([pair()]))
    assert "15M tp2pp2dp1→tp1pp1dp4 distributed  10.0 s     500 ms" in text
    assert "20×" in text
    assert "3.00 GB" in text
    assert "overlap failed: LiverError: a worker was lost" in text


def test_where_each_rank_has_a_card_the_model_fills_it() -> None:
    changes = {(str(one.one), str(one.other)) for one in card_pairs(2)}
    assert changes == {("tp2pp1dp1", "tp1pp2dp1"), ("tp1pp1dp1", "tp1pp1dp2")}
    assert {(one.size.name, one.distributed_optimizer, one.repetitions, one.back) for one in card_pairs(2)} == {
        ("1.3B", True, 1, True)
    }
    assert len(card_pairs(4)) == 3
    assert {one.size for one in card_pairs(2, [SIZES[0]])} == {SIZES[0]}


@pytest.mark.parametrize("layout", [layout for layouts in reconfigure.CARD_PAIRS for layout in layouts])
def test_the_job_for_cards_is_one_that_a_user_could_write(layout: str, tmp_path: Path) -> None:
    other = Layout.parse("tp1pp1dp2")
    config = job(BILLION, tmp_path, Layout.parse(layout), distributed_optimizer=True, gpus=1, layouts=(other,))
    checked = check_job(config)
    assert set(checked.elastic.layouts) == {layout, str(other)}
    assert (checked.train.precision, checked.train.seq_length) == ("bf16", 2048)
    assert 1.3e9 < parameters(checked) < 1.4e9


@pytest.mark.parametrize(
    ("cards", "quick", "sizes", "expected"),
    [
        (0, False, [], {"15M", "110M", "400M"}),
        (1, False, [], {"15M", "110M", "400M"}),
        (2, False, [], {"1.3B"}),
        (2, False, ["15M", "1.3B"], {"15M", "1.3B"}),
        (0, False, ["400M"], {"400M"}),
        (2, True, [], {"15M"}),
        (2, True, ["110M"], {"110M"}),
    ],
)
def test_sizes_suit_the_machine_unless_some_are_chosen(
    monkeypatch: pytest.MonkeyPatch, cards: int, quick: bool, sizes: list[str], expected: set[str]
) -> None:
    monkeypatch.setattr(reconfigure.machine, "count_gpus", lambda: cards)
    monkeypatch.setattr(reconfigure, "measure", lambda pairs: {"sizes": {pair.size.name for pair in pairs}})
    assert reconfigure.run(quick, sizes) == {"sizes": expected}


def test_the_command_line_knows_all_sizes() -> None:
    assert set(SIZED["reconfigure"]) == set(BY_NAME)


def test_on_cards_formats_of_checkpoints_are_tried_once_a_model(
    faked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saves: list[str] = []

    def chain(self: Baseline, layouts: list[Layout]) -> list[Reconfigured]:
        saves.append(self.save)
        self.save, self.probes = "boxes", {"boxes": (1.0, 1.0)}
        return [Reconfigured(2.0, 1.0, {"first_step_s": 1.0}) for _ in layouts[1:]]

    monkeypatch.setattr("liver_slurm.bench.restart.Baseline.chain", chain)
    monkeypatch.setattr(reconfigure.machine, "has_gpu", lambda: True)
    monkeypatch.setattr(reconfigure.machine, "describe", lambda gpu: {"cores": 8, "device": "a card"})
    cases = measure(card_pairs(2))["cases"]
    assert saves == ["fastest", "boxes"]
    assert [case["checkpoint"] for case in cases] == ["boxes"] * 4
