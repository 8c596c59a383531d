"""The vocabulary of the event log: names and keys are a contract, and names stand in one module."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from event_samples import committed

import liver_slurm
from liver_slurm.rundir import events
from liver_slurm.rundir.event_log import read_documents, read_events
from liver_slurm.rundir.events import Event, UnknownEvent, event_name, from_document, to_document

GOLDEN = Path(__file__).parents[1] / "golden"
WRITTEN = [line for version in (0, 1) for line in (GOLDEN / f"events-{version}.jsonl").read_bytes().splitlines()]
"""Lines of each schema version (0: events had no types); all later versions read them, and write the same."""
NAMES = {event_name(kind) for kind in get_args(Event)}
PACKAGE = Path(liver_slurm.__file__).parent


@pytest.mark.parametrize("line", WRITTEN, ids=lambda line: str(json.loads(line)["event"]))
def test_written_as_ever(line: bytes) -> None:
    event = from_document(json.loads(line))
    assert not isinstance(event, UnknownEvent)
    known = json.loads(line)
    # Later versions may add keys, and change nothing of those that were there.
    document = {key: value for key, value in to_document(event).items() if key in known}
    assert msgspec.json.encode(document) == line


def test_golden_has_every_event() -> None:
    assert {json.loads(line)["event"] for line in WRITTEN} == NAMES


def test_keys_of_a_newer_version() -> None:
    document = {**to_document(committed()), "joules": 5.0}
    assert from_document(document) == committed()


@pytest.mark.parametrize(
    "document",
    [{"event": "something_new", "time": 3.0}, {"event": "world_live", "members": 3, "time": 3.0}],
    ids=["name", "fields"],
)
def test_events_of_another_version(document: events.Document) -> None:
    assert from_document(document) == UnknownEvent(time=3.0, name=document["event"])


def test_documents_keep_all_keys(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "world_live", "time": 1.0, "joules": 5}\n{"no": "event"}\n{"event": "new", "time": 2}\n')
    assert [document.get("joules") for document in read_documents(path)] == [5, None]
    assert list(read_events(path)) == [events.WorldLive(time=1.0), UnknownEvent(time=2.0, name="new")]


def test_pause_is_what_the_two_steps_have_not_anyway() -> None:
    stats = events.CommitStats(
        **{name: getattr(committed(hook_s=0.5), name) for name in events.ReconfigurationStats.__struct_fields__},
        paused_at=10.0,
        gap_s=0.25,
    )
    event = stats.committed(generation=3, time=20.0, began=11.0, gate_s=0.125)
    assert (event.pause_s, event.gate_s, event.exposed_s) == (0.75, 0.125, 1.375)
    assert (event.generation, event.time, event.digests_checked) == (3, 20.0, 105)
    assert stats.committed(generation=3, time=20.0, began=10.1, gate_s=0.0).pause_s == 0.0


def _sources() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "rundir" / "events.py"]


def _is_event_key(node: ast.AST) -> bool:
    return isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value == "event"


def test_names_stand_in_one_module() -> None:
    words = {name for name in NAMES if "_" in name}  # others, such as "notice", are words of other vocabularies too
    found = []
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text())):
            compared = isinstance(node, ast.Compare) and any(map(_is_event_key, [node.left, *node.comparators]))
            if compared or (isinstance(node, ast.Constant) and node.value in words):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert found == []
