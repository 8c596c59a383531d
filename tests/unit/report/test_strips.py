"""Workers over time, as boxes or as an image."""

from __future__ import annotations

import numpy as np
from ledger_stories import Story
from report_stories import grown_and_shrunk, report

from liver_slurm.report.palette import KIND_OF, KINDS
from liver_slurm.report.strips import COLUMNS, Strips, image, make_strips


def names(strips: Strips, worker: str) -> list[str]:
    """What a worker did, in order, each once in a row."""
    row = strips.labels.index(worker)
    found = [KINDS[box.kind].name for box in sorted(strips.boxes, key=lambda box: box.start) if box.row == row]
    return [name for place, name in enumerate(found) if place == 0 or name != found[place - 1]]


def test_a_workers_way() -> None:
    found = report(grown_and_shrunk(1))
    strips = make_strips(found.ledger.account, found.length)
    assert strips.labels[:2] == ("live-0", "live-1")
    way = names(strips, "standby-1-0")
    assert [name for name in way if name != "reconfiguration"] == ["starting", "joining", "training", "leaving"]
    assert {"queue", "starting", "training"} <= set(names(strips, "live-0"))


def test_every_cause_has_a_colour() -> None:
    from liver_slurm.observability.ledger.causes import Cause

    assert set(KIND_OF) == set(Cause)
    assert len({kind.colour for kind in KINDS}) == len(KINDS)


def test_many_workers_are_an_image_of_bounded_size() -> None:
    story = Story(guaranteed=tuple(f"live-{number}" for number in range(300)))
    story.start(1.0, 1.0, 1.0)
    story.train(10)
    found = report(story)
    strips = make_strips(found.ledger.account, found.length)
    assert not strips.labelled
    colours = image(strips, found.length)
    assert colours.shape == (300, COLUMNS, 4)
    assert np.all(colours[:, COLUMNS // 2, 3] == 1.0)
