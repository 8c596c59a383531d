"""The state's parts: who writes each, and what holds after every step."""

from __future__ import annotations

import ast
import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest
from coordinator_states import START, Run, settings

from liver_slurm.coordinator import core
from liver_slurm.coordinator.core.barriers import StepBarrier
from liver_slurm.coordinator.core.invariants import broken_invariants
from liver_slurm.coordinator.core.parts import ResizeQueue
from liver_slurm.coordinator.core.state import PARTS, RunPhase, RunState, Settings
from liver_slurm.coordinator.core.step import recover
from liver_slurm.coordinator.core.transition import Transition, Writer
from liver_slurm.coordinator.core.worlds import WorldState
from liver_slurm.policy.types import ResizeGoal

FOLDER = Path(core.__path__[0])
MODULES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.py")) if path.stem != "__init__"}


def claims(text: str) -> list[str]:
    """Parts that a module claims for itself, as it must: once each, under a name that no other module imports."""
    return re.findall(r"^_write(?:_\w+)? = Writer\((\w+), __name__\)$", text, flags=re.MULTILINE)


def trespasses(text: str) -> list[str]:
    """Ways round a Writer: making one elsewhere, importing one, or reaching into a transition."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Writer":
            found.append("a writer")
        elif isinstance(node, ast.ImportFrom) and any(alias.name.startswith("_write") for alias in node.names):
            found.append("another module's writer")
        elif isinstance(node, ast.Attribute) and node.attr in ("_state", "_become", "_write", "replace_part"):
            found.append(node.attr)
        elif isinstance(node, ast.Attribute) and node.attr == "state" and isinstance(node.ctx, ast.Store):
            found.append("the whole state")
    return found


def test_every_part_has_an_owner() -> None:
    hints = get_type_hints(RunState)
    parts = {hint: name for name, hint in hints.items() if is_dataclass(hint) and hint is not Settings}
    assert {kind: part.field for kind, part in PARTS.items()} == parts
    assert {field.name for field in fields(RunState)} >= {part.field for part in PARTS.values()}


def test_only_its_owner_writes_a_part() -> None:
    # LS-28
    for name, text in MODULES.items():
        mine = [kind.__name__ for kind, part in PARTS.items() if part.owner == name and kind.__name__ != "History"]
        assert sorted(claims(text)) == sorted(mine), name
        if name != "transition":
            assert trespasses(text) == ["a writer"] * len(mine), name


def test_history_is_written_by_records_of_its_owner_alone() -> None:
    # LS-28
    for name, text in MODULES.items():
        makes = {"LifeBegan", "LifeEnded", "Measurement"} & set(re.findall(r"\b(\w+)\(", text))
        assert not makes or name in ("history", "records"), name


@pytest.mark.parametrize(
    "text",
    [
        "Writer(WorldState, 'liver_slurm.coordinator.core.reconfiguration')",
        "from liver_slurm.coordinator.core.reconfiguration import _write",
        "reconfiguration._write(t, world)",
        "t._state = state",
        "t.state = state",
        "t.replace_part(writer, world)",
    ],
)
def test_ways_round_are_found(text: str) -> None:
    assert trespasses(text)


def test_a_part_of_another_cannot_be_claimed() -> None:
    with pytest.raises(TypeError, match="WorldState is written by reconfiguration, not by liver_slurm"):
        Writer(WorldState, "liver_slurm.coordinator.core.planning")


def test_a_writer_replaces_its_part_alone() -> None:
    before = recover([], settings(), START)
    t = Transition(before, START + 1)
    Writer(ResizeQueue, "resize_queue")(t, ResizeQueue(next_number=7))
    assert t.state == replace(before, now=START + 1, resizes=ResizeQueue(next_number=7))


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        ("lifecycle", "an outcome is decided when the run is over"),
        ("world", "there is a live world unless the run starts"),
        ("resizes", "requests are in their order"),
        ("barriers", "a proposal is in the journal"),
        ("checkpoint", "the live world's members stop for a checkpoint"),
    ],
)
def test_a_broken_state_is_named(broken: str, rule: str) -> None:
    run = Run()
    run.train("live-0", "live-1")
    run.register("standby-a")
    run.register("standby-b")
    run.tick(0.3)
    run.prepare_all()
    state = run.state
    assert broken_invariants(state) == []
    changed = {
        "lifecycle": replace(state, lifecycle=replace(state.lifecycle, phase=RunPhase.FAILED)),
        "world": replace(state, world=replace(state.world, live=None)),
        "resizes": replace(state, resizes=ResizeQueue((ResizeGoal(1, None, 2, 9), ResizeGoal(0, None, 2, 5)))),
        "barriers": replace(state, barriers=replace(state.barriers, unclosed=frozenset())),
        "checkpoint": replace(
            state, barriers=replace(state.barriers, checkpoint=StepBarrier(0, "checkpoint", 1, frozenset({"live-0"})))
        ),
    }
    assert rule in broken_invariants(changed[broken])
