"""A clock that jumps."""

from __future__ import annotations

from liver_slurm.simulation.clock import EventQueue


def test_what_is_noted_happens_in_order() -> None:
    events, done = EventQueue(10.0), []

    def note(name: str) -> None:
        done.append((events.now(), name))

    events.at(30.0, lambda: note("later"))
    events.after(5.0, lambda: note("first"))
    events.at(15.0, lambda: note("second, noted after the first"))
    events.at(1.0, lambda: events.after(0.0, lambda: note("what was due already")))
    events.run_until(30.0)
    assert done == [
        (10.0, "what was due already"),
        (15.0, "first"),
        (15.0, "second, noted after the first"),
    ]
    assert events.now() == 30.0
    events.run_until(31.0)
    assert done[-1] == (30.0, "later"), "what is due at the end belongs to the time after it"
