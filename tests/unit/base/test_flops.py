"""Tokens a second, TFLOP/s and MFU: what they are, and what is not known."""

from __future__ import annotations

import pytest

from liver_slurm.base.flops import FlopsMeter, Rates, peak_tflops, token_flops


def test_operations_of_a_token_count_half_of_attention() -> None:
    assert token_flops(1000, layers=2, attention_width=8, sequence=16) == 6 * 1000 + 6 * 2 * 8 * 16


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("a card of next year", None),
    ],
)
def test_the_peak_is_that_of_the_longest_name_that_fits(card: str, peak: float | None) -> None:
    assert peak_tflops(card) == peak


def test_rates_are_of_the_world_and_of_one_card() -> None:
    rates = FlopsMeter(token_flops=2e9, peak_tflops=100.0).rates(tokens=50_000, seconds=0.5, ranks=4)
    assert rates == Rates(tokens_per_s=100_000.0, tflops=50.0, mfu=0.5)


def test_what_is_not_known_is_none() -> None:
    assert FlopsMeter().rates(64, 0.5, 2) == Rates(128.0, None, None), "a CPU"
    assert FlopsMeter(peak_tflops=100.0).rates(64, 0.5, 2) == Rates(128.0, None, None), "a user's own model"
    assert FlopsMeter(token_flops=1e9).rates(1000, 1.0, 1) == Rates(1000.0, 1.0, None), "a card not in the table"


def test_a_clock_that_stands_still_or_goes_back_gives_no_rates() -> None:
    assert FlopsMeter(1e9, 100.0).rates(64, 0.0, 1) == Rates()
    assert FlopsMeter(1e9, 100.0).rates(64, -1.0, 1) == Rates()
