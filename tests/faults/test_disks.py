"""Disks that are full: training goes on, status says so, and what was not written is written later, or named."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
from coordinator_lab import until
from worker_lab import STARTUP, WHOLE_RUN, WorkerLab, job

from liver_slurm.config.schema import CheckpointSection
from liver_slurm.protocol.messages import CheckpointRequest, ResizeRequest
from liver_slurm.rundir.checkpoints import checkpoint_step, list_checkpoints, verify

Mount = Callable[[Path, str], None]
NO_SPACE = "No space left on device"


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts a small disk in memory; skips the test where that is not allowed."""
    with ExitStack() as mounted:

        def mount_one(folder: Path, size: str) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "none", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no file system can be mounted: {done.stderr.strip()}")
            mounted.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)

        yield mount_one


def enlarge(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte in a file system; returns the file that has them."""
    file = folder / "fill"
    with file.open("wb") as stream:
        for block in (1 << 16, 1):
            with contextlib.suppress(OSError):  # no space is left for a block
                while os.write(stream.fileno(), bytes(block)) == block:
                    pass
    return file


def test_checkpoints_that_find_no_room_come_later(tmp_path: Path, mount: Mount) -> None:
    # LS-25
    copies = tmp_path / "copies"
    config = replace(job(tmp_path), checkpoint=CheckpointSection(every=6, keep=0, at_end=True, copy_to=str(copies)))
    with closing(WorkerLab(config)) as run:
        mount(run.run_dir.checkpoints, "48k")
        run.slow.touch()
        run.begin()
        failed = run.wait_event("checkpoint_failed", timeout=STARTUP)
        assert NO_SPACE in failed["error"]
        assert NO_SPACE in until(lambda: run.status().get("checkpoint_error"), "status says so")
        before = run.status()["step"]
        run.wait_step(before + 2)
        assert not run.events("checkpoint_written")

        enlarge(run.run_dir.checkpoints, "100m")
        written = run.wait_event("checkpoint_written", timeout=STARTUP)
        until(lambda: "checkpoint_error" not in run.status(), "status says it no more")
        verify(Path(written["path"]))
        run.finish()
        saved = list_checkpoints(run.run_dir.checkpoints)
        assert checkpoint_step(saved[-1]) == config.train.steps
        for path in saved:
            verify(path)
        assert not [path.name for path in run.run_dir.checkpoints.iterdir() if path not in saved]
        copied = list_checkpoints(copies / run.run_dir.path.name)
        assert checkpoint_step(copied[-1]) == config.train.steps, "the second place has the last one too"
        verify(copied[-1])


def test_a_last_checkpoint_that_cannot_be_written_is_no_success(tmp_path: Path, mount: Mount) -> None:
    # LS-25
    config = replace(job(tmp_path, steps=6), checkpoint=CheckpointSection(every=0, at_end=True))
    with closing(WorkerLab(config)) as run:
        mount(run.run_dir.checkpoints, "48k")
        run.begin()
        run.finish(code=1)
        (ended,) = run.events("run_ended")
        assert "all 6 steps are trained, but the last checkpoint could not be written" in ended["reason"]
        assert NO_SPACE in ended["reason"]
        assert not list_checkpoints(run.run_dir.checkpoints)


def test_a_run_whose_folder_is_full_trains_on_and_writes_it_all_later(tmp_path: Path, mount: Mount) -> None:
    disk = tmp_path / "disk"
    mount(disk, "20m")
    config = replace(job(disk), checkpoint=CheckpointSection(every=0, at_end=False))
    with closing(WorkerLab(config)) as run:
        run.slow.touch()
        run.begin()
        run.wait_step(3)
        full = fill(disk)
        said = until(lambda: run.status().get("files"), "status says so", STARTUP)
        assert any(NO_SPACE in why for why in said.values())
        reached = run.status()["step"]
        run.wait_step(reached + 3)
        assert run.ask(CheckpointRequest()).ok

        # What needs the journal waits, and training does not.
        assert run.ask(ResizeRequest(layout="tp1pp1dp1")).ok
        reached = run.status()["step"]
        until(lambda: run.status().get("workers", [{}])[0].get("step", 0) >= 0, "it answers")
        full.unlink()
        run.committed_to("tp1pp1dp1")
        until(lambda: "files" not in run.status(), "all is written", STARTUP)
        losses = run.finish()
    assert list(losses) == list(range(1, config.train.steps + 1)), "each step once, the ones of then too"
    behind = run.events("files_behind")
    assert [event["error"] for event in behind if event["worker"].startswith("live")][-1] == ""
    assert run.processes["coordinator"].wait(WHOLE_RUN) == 0
