"""Both runs in one page."""

from __future__ import annotations

from liver_slurm.bench.replay.page import render
from liver_slurm.report.panels import Panel

CASE = {
    "real": {"ettr": 0.98, "capacity_goodput": 0.7},
    "simulated": {"ettr": 0.97, "capacity_goodput": 0.71},
    "differs": {"ettr": -0.0102, "capacity_goodput": 0.0143},
}


def test_the_page_has_both_runs_and_all_four_figures_of_each() -> None:
    document = {
        "seconds": 900.0, "reclaims": 20, "nodes": 2, "notice_s": 10,
        "cases": {"elastic": CASE, "restarting": {**CASE, "real": {"ettr": 0.4, "capacity_goodput": 0.3}}},
    }  # fmt: skip
    panels = [Panel("elastic, for real", [(-3.0, 2), (5.0, 4), (880.0, 3)]), Panel("restarting, for real", [(2.0, 2)])]
    page = render(panels, [(0.0, 4), (300.0, 3)], document)
    for text in ("98.0% elastic, 40.0% restarting", "0.9800", "0.9700", "0.7100", "-1.0%", "+1.4%", "<svg"):
        assert text in page
    assert "elastic, for real" in page
    assert "restarting, for real" in page
