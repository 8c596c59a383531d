"""What ``liver-slurm chaos`` refuses, each in one line and with exit code 2, before it strikes anybody."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from liver_slurm.rundir.paths import RunDir

Liver = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--rate", "1/day", "--seed", "1"), "--rate: '1/day' is no rate"),
        (("--rate", "1/min"), "--seed"),
        (("--rate", "1/min", "--seed", "x"), "--seed"),
        (("--rate", "1/min", "--seed", "1", "--faults", "rain"), "--faults: rain is no fault; allowed: kill, stop"),
        (("--rate", "1/min", "--seed", "1", "--targets", "all"), "--targets: all is no target; allowed: live"),
        (("--rate", "1/min", "--seed", "1", "--duration", "soon"), "--duration: 'soon' is no duration"),
        (("--rate", "1/min", "--seed", "1"), "is no staging run (job.staging in its job file); if it is really meant"),
    ],
)
def test_bad_input(liver: Liver, run_dir: RunDir, arguments: tuple[str, ...], what: str) -> None:
    code, out, err = liver("chaos", str(run_dir.path), *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert what in err
    assert not run_dir.chaos.exists()


def test_the_run_of_another_user(liver: Liver, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    code, _, err = liver("chaos", str(run_dir.path), "--rate", "1/min", "--seed", "1", "--yes")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "is another user's" in err


def test_a_run_that_is_over(liver: Liver, ended: RunDir) -> None:
    code, _, err = liver("chaos", str(ended.path), "--rate", "1/min", "--seed", "1", "--yes")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "is over" in err
