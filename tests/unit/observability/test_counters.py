"""What a run's events add up to."""

from __future__ import annotations

from collections import Counter

from event_samples import committed

from liver_slurm.observability.counters import RunCounters
from liver_slurm.rundir import events
from liver_slurm.rundir.events import to_document


def test_events_are_counted() -> None:
    counters = RunCounters()
    for event in (
        events.CoordinatorStarted(),
        committed(exposed_s=0.5),
        committed(cause="notice"),  # of a version that had no exposed time: its pause is all that is known
        events.ReconfigurationAborted(cause="capacity"),
        events.Notice(worker="standby-1-0", kind="drain"),
        events.Notice(worker="standby-2-0", kind="drain"),
        events.WorkerLost(worker="standby-1-0"),
        events.BegunAnew(step=3, steps_lost=4),
        events.CheckpointWritten(step=3, seconds=1.0, stall_s=0.25, path="x"),
        events.CheckpointFailed(step=4, seconds=1.0, stall_s=0.5, error="disk full"),
        events.RunEnded(outcome="finished"),
    ):
        counters.add(to_document(event))
    changes = {("capacity", "committed"): 1, ("notice", "committed"): 1, ("capacity", "aborted"): 1}
    assert counters.reconfigurations == Counter(changes)
    assert (counters.exposed_s, counters.pause_s, counters.bytes_moved) == (0.75, 0.5, 2 << 20)
    assert counters.notices == Counter(drain=2)
    assert (counters.workers_lost, counters.restarts, counters.steps_lost, counters.coordinator_starts) == (1, 1, 4, 1)
    assert (counters.checkpoints, counters.checkpoint_stall_s) == ({"written": 1, "failed": 1}, 0.75)
