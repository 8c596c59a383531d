"""What commands print with ``--json`` is a contract with other programs: golden files."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from liver_slurm.rundir.paths import RunDir

Liver = Callable[..., tuple[int, str, str]]
VARY = ("time", "created", "run_id")
"""Keys whose values differ from one run of the test to the next."""
FIRST = 2
"""Entries of each list of a plan that are compared."""


def plain(value: Any, run_dir: RunDir) -> Any:
    """The same document whenever and wherever the test runs."""
    if isinstance(value, dict):
        return {key: None if key in VARY else plain(held, run_dir) for key, held in value.items()}
    if isinstance(value, list):
        return [plain(one, run_dir) for one in value]
    if isinstance(value, str):
        return value.replace(str(run_dir.path), "RUN_DIR").replace(run_dir.path.name, "RUN")
    return value


def shortened(value: Any) -> Any:
    """A long document, and how long it is."""
    if isinstance(value, dict):
        kept = {key: shortened(value[key]) for key in list(value)[:12]}
        return kept if len(kept) == len(value) else {**kept, "…": len(value)}
    if isinstance(value, list) and len(value) > FIRST:
        return [*(shortened(one) for one in value[:FIRST]), f"… {len(value)}"]
    return value


def text(value: Any) -> str:
    """Keys are sorted: their order is no part of the contract."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("state", ["training", "ended"])
@pytest.mark.parametrize("command", ["status", "list", "events"])
def test_a_run(
    liver: Liver, request: pytest.FixtureRequest, golden: Callable[[str, str], None], command: str, state: str
) -> None:
    run_dir: RunDir = request.getfixturevalue("run_dir" if state == "training" else "ended")
    arguments = [command] if command == "list" else [command, str(run_dir.path)]
    code, out, _ = liver(*arguments, "--json")
    assert code == 0
    golden(f"json-{command}-{state}.json", text(plain(json.loads(out), run_dir)))


def test_a_plan(liver: Liver, golden: Callable[[str, str], None], run_dir: RunDir) -> None:
    code, out, _ = liver("plan", str(run_dir.job_file), "--from", "tp1pp1dp2", "--to", "tp2pp1dp1", "--json")
    assert code == 0
    golden("json-plan.json", text(shortened(json.loads(out))))
