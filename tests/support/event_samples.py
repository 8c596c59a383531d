"""Events for tests that are not about all of their fields."""

from __future__ import annotations

from typing import Any

from liver_slurm.rundir.events import CommitStats, ReconfigurationCommitted, ReconfigurationStats


def committed(**changes: Any) -> ReconfigurationCommitted:
    """A reconfiguration from ``tp1pp1dp2`` to ``tp1pp1dp3`` that is over."""
    fields: dict[str, Any] = {
        "generation": 1, "source": "tp1pp1dp2", "to": "tp1pp1dp3", "cause": "capacity",
        "members": ("live-0", "live-1", "standby-1-0"), "joiners": ("standby-1-0",), "leavers": (),
        "reason": "a standby is warm", "mode": "pause", "cutover_step": 10, "prepare_s": 1.5, "plan_s": 0.1,
        "stream_s": 0.2, "bytes_moved": 1 << 20, "bytes_remote": 1 << 19, "bytes_local": 1 << 19,
        "staging_peak_bytes": 4096, "memory_peak_bytes": 1 << 28, "digests_checked": 105, "pause_s": 0.25,
    }  # fmt: skip
    return ReconfigurationCommitted(**{**fields, **changes})


def committed_stats() -> CommitStats:
    """What the commit record of :func:`committed` says."""
    event = committed()
    known = {name: getattr(event, name) for name in ReconfigurationStats.__struct_fields__}
    return CommitStats(**known, paused_at=10.0, gap_s=0.25)
