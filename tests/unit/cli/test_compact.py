"""``liver-slurm compact``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from liver_slurm.base import archive
from liver_slurm.rundir import address
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import RunEnded
from liver_slurm.rundir.paths import RunDir

Liver = Callable[..., tuple[int, str, str]]


def _ended(run_dir: RunDir) -> None:
    EventLog(run_dir.events).append(RunEnded(step=12, outcome="finished", reason="all steps are trained", exit_code=0))


def test_commands_say_the_same_of_a_run_whose_files_are_compressed(
    liver: Liver, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ended(run_dir)
    asked = (("goodput", "--json"), ("events", "--json"), ("status", "--json"))
    before = [liver(command, str(run_dir.path), *options) for command, *options in asked]
    monkeypatch.setattr(archive, "KEPT", 2)
    code, out, err = liver("compact", str(run_dir.path), "--json")
    assert (code, err) == (0, "")
    (found,) = json.loads(out)
    assert found["run_dir"] == str(run_dir.path)
    assert archive.is_compressed(run_dir.events)
    assert archive.is_compressed(run_dir.metrics)
    assert [liver(command, str(run_dir.path), *options) for command, *options in asked] == before
    assert liver("compact", str(run_dir.path))[0] == 0


def test_a_run_that_goes_on_is_refused_and_nothing_changes(liver: Liver, run_dir: RunDir) -> None:
    address.write(run_dir.address_file, address.Address("127.0.0.1", 1, 1, os.getpid()))
    code, out, err = liver("compact", str(run_dir.path))
    assert (code, out) == (2, "")
    assert err == f"liver-slurm: error: {run_dir.path} is not over, and goes on writing; compact it when it is\n"
    assert not archive.archive_of(run_dir.events).exists()
