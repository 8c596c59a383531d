"""What ``liver-slurm doctor`` asks of all nodes."""

from __future__ import annotations

from liver_slurm.doctor.gather import _requirements


def test_an_extra_is_asked_for_where_the_job_needs_it() -> None:
    usual, ucx = _requirements("auto"), _requirements("ucx")
    assert usual["torch"].startswith(">=")
    assert ucx.keys() - usual.keys() == {"nixl"}
