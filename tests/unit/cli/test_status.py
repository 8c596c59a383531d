"""What ``status`` says of mirrors."""

from __future__ import annotations

from typing import Any

from liver_slurm.cli.status import _mirrors
from liver_slurm.observability.status import RunStatus, WorkerStatus


def status(*workers: dict[str, Any]) -> RunStatus:
    return RunStatus(
        state="training",
        step=3,
        steps=9,
        generation=0,
        layout="tp1pp1dp2",
        target=None,
        workers=[WorkerStatus(worker=f"live-{rank}", rank=rank, **given) for rank, given in enumerate(workers)],
        standbys=[],
        last_reconfiguration=None,
        reason="",
    )


def test_it_says_how_mirrors_are_kept_and_what_memory_they_take() -> None:
    way = "parity of 2, refreshed every 50 steps"
    one = {"mirror": "whole", "mirror_way": way, "mirror_bytes": 3 << 20}
    other = {"mirror": "partial", "mirror_way": way, "mirror_bytes": 1 << 20}
    told = _mirrors(status(one, other))
    assert told == f"1 of 2 whole; {way}; 4.0 MiB of host memory, at most 3.0 MiB in a worker"
    proven = _mirrors(status({**one, "mirror_proofs": (12, 0)}, {**other, "mirror_proofs": (11, 1)}))
    assert proven == f"{told}; 1 of 23 proofs differed"
    assert _mirrors(status({"mirror": "lost"})) == "0 of 1 whole"
    assert _mirrors(status({})) == ""
