"""``bench plan``: what its document says."""

from __future__ import annotations

from liver_slurm.bench import plan


def test_the_smallest_case() -> None:
    document = plan.run(quick=True)
    assert document["bench"] == "plan"
    (case,) = document["cases"]
    assert (case["name"], case["ranks_from"], case["ranks_to"]) == ("8b-dp", 64, 48)
    assert case["bytes_over_minimum"] == 1
    assert case["max_send_over_mean"] <= 1.1
    assert case["hottest_over_least"] <= 1.001
    assert 0 < case["rank_s"] == sorted(case["rank_each_s"])[1]
    assert 0 < case["import_mb"] < case["peak_mb"]
    text = plan.table(document)
    assert "tp4pp2dp8 → tp4pp2dp6" in text
    assert len(text.splitlines()) == 3
