"""Which turns in a run's life are told, and what is said of them."""

from __future__ import annotations

from typing import get_args, get_type_hints

import msgspec
from event_samples import committed

from liver_slurm.config.outside import NotifySection
from liver_slurm.observability.life import Life, Message
from liver_slurm.rundir import events
from liver_slurm.rundir.events import Event, to_document

FIRST = events.WorldLive(generation=0, layout="tp1pp1dp2", members=("live-0", "live-1"))


def told(*given: Event) -> list[Message]:
    life = Life()
    return [message for event in given if (message := life.hear(event)) is not None]


def test_a_runs_life_from_its_start_to_its_end() -> None:
    found = told(
        events.CoordinatorStarted(),
        FIRST,
        committed(),
        events.WorldLive(generation=1, layout="tp1pp1dp3"),
        committed(source="tp1pp1dp3", to="tp1pp1dp2", reason="preemption"),
        committed(source="tp1pp1dp2", to="tp2pp1dp1"),
        events.RunEnded(outcome="finished", reason="all steps are trained", step=200, time=7.0),
    )
    assert [(one.event, one.what) for one in found] == [
        ("started", "trains as tp1pp1dp2"),
        ("grew", "grew: tp1pp1dp2 → tp1pp1dp3 at step 10"),
        ("shrank", "shrank: tp1pp1dp3 → tp1pp1dp2 at step 10"),
        ("reshaped", "was reshaped: tp1pp1dp2 → tp2pp1dp1 at step 10"),
        ("finished", "finished at step 200"),
    ]
    assert found[-1] == Message("finished", "finished at step 200", 7.0, 200, -1, "", "all steps are trained")


def test_a_run_that_was_interrupted_starts_again() -> None:
    names = [one.event for one in told(FIRST, events.Interrupted(step=5), events.BegunAnew(step=5), FIRST)]
    assert names == ["started", "interrupted", "started"]


def test_the_ends_of_a_run() -> None:
    ends = ("finished", "failed", "cancelled", "stopped")
    found = {end: told(events.RunEnded(outcome=end, step=3))[0] for end in ends}
    assert {end: (one.event, one.what) for end, one in found.items()} == {
        "finished": ("finished", "finished at step 3"),
        "failed": ("failed", "failed at step 3"),
        "cancelled": ("stopped", "was cancelled at step 3"),
        "stopped": ("stopped", "was stopped at step 3"),
    }


def test_a_coordinator_that_takes_over_does_not_tell_what_was_told() -> None:
    life = Life([to_document(events.CoordinatorStarted()), to_document(FIRST)])
    assert life.hear(msgspec.structs.replace(FIRST, generation=1)) is None
    assert life.hear(events.Recovered(layout="tp1pp1dp2", members=(), step=3)) is None
    assert life.hear(committed()) is not None


def test_the_first_world_is_no_change_and_other_events_are_nobodys_business() -> None:
    assert (
        told(
            committed(source=""),
            events.LaunchRefused(reason="QOS"),
            events.NotificationFailed(channel="webhook", about="grew", error="x", failures=1),
        )
        == []
    )


def test_all_that_is_told_can_be_asked_for() -> None:
    allowed = set(get_args(get_args(get_type_hints(NotifySection)["events"])[0]))
    assert allowed == {"started", "grew", "shrank", "reshaped", "interrupted", "finished", "stopped", "failed"}
    assert set(NotifySection().events) == allowed


def test_a_document_for_programs_and_for_people() -> None:
    document = told(FIRST, committed())[1].document("gpt-1", "gpt", "7", "/runs/gpt-1")
    assert document == {
        "text": "gpt-1 (job 7) grew: tp1pp1dp2 → tp1pp1dp3 at step 10: a standby is warm",
        "event": "grew", "run": "gpt-1", "name": "gpt", "job_id": "7", "run_dir": "/runs/gpt-1", "time": 0.0,
        "step": 10, "generation": 1, "layout": "tp1pp1dp3", "reason": "a standby is warm",
    }  # fmt: skip
    assert told(FIRST)[0].document("gpt-1", "gpt", "", "/runs/gpt-1")["text"] == "gpt-1 trains as tp1pp1dp2"
