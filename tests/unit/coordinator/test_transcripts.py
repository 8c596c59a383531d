"""Golden transcripts of the coordinator's core: tests/unit/golden/transcripts/NAME.txt, one for each story.

A transcript holds all inputs, all actions that came out, and the status document at the end, so it says what the
protocol does whatever the code looks like inside. ``LIVER_UPDATE_GOLDEN=1`` rewrites the files; read the difference as
you would read a change of the protocol. After a class or field got another name, give the old one in
tests/support/transcript.py instead. The stories are in tests/support/coordinator_*_stories.py.
"""

from __future__ import annotations

import difflib
import os
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
from coordinator_stories import STORIES
from transcript import Story

from liver_slurm.coordinator.core.io import Action, FromPeer, Input, Journal, Send
from liver_slurm.coordinator.core.records import Record
from liver_slurm.protocol import messages

for part in ("world", "request", "end", "standby", "live_job", "loss"):
    import_module(f"coordinator_{part}_stories")  # adds its stories

FOLDER = Path(__file__).parent.parent / "golden" / "transcripts"


def told() -> list[Story]:
    return [tell() for tell in STORIES.values()]


@pytest.mark.parametrize("name", STORIES)
def test_the_transcript_is_as_before(name: str) -> None:
    # LS-6, LS-29
    path = FOLDER / f"{name}.txt"
    text = f"# {STORIES[name].__doc__}\n\n{STORIES[name]().text()}"
    if os.environ.get("LIVER_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.is_file(), f"{path} is missing: run with LIVER_UPDATE_GOLDEN=1 and read what it wrote"
    before = path.read_text()
    if text != before:
        difference = difflib.unified_diff(before.splitlines(), text.splitlines(), str(path), "now", n=6, lineterm="")
        pytest.fail("\n".join(["the protocol has changed:", *difference]), pytrace=False)


def test_every_transcript_has_a_story() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(STORIES)


def test_the_stories_have_every_input_action_record_and_message() -> None:
    seen: set[type[Any]] = set()
    for story in told():
        seen |= {type(given) for given in story.inputs}
        seen |= {type(given.message) for given in story.inputs if isinstance(given, FromPeer)}
        seen |= {type(action) for action in story.actions}
        seen |= {type(action.message) for action in story.actions if isinstance(action, Send)}
        seen |= {type(action.record) for action in story.actions if isinstance(action, Journal)}
    unions = (Input, Action, Record, messages.ToCoordinator, messages.ToWorker)
    wanted = {messages.Reply, *(member for union in unions for member in get_args(union))}
    assert wanted - seen == set()


def test_a_story_is_told_the_same_each_time() -> None:
    assert [story.text() for story in told()] == [story.text() for story in told()]
