"""Copies of checkpoints are made beside training, and a place that cannot be written is said."""

from __future__ import annotations

from pathlib import Path

from checkpoint_files import small_checkpoint

from liver_slurm.rundir.checkpoints import list_checkpoints
from liver_slurm.worker.checkpoint_copies import CheckpointCopies


def test_the_newest_is_copied(tmp_path: Path) -> None:
    said: list[tuple[int, str]] = []
    copies = CheckpointCopies(tmp_path / "there", 1, lambda waiting, error: said.append((waiting, error)))
    copies.wait()
    for step in (1, 2, 3):
        copies.copy(small_checkpoint(tmp_path / "here", step))
    copies.wait()
    assert [path.name for path in list_checkpoints(tmp_path / "there")] == ["step-00000003"]
    assert set(said) == {(0, "")}


def test_a_place_that_cannot_be_written_is_said_until_it_can(tmp_path: Path) -> None:
    said: list[tuple[int, str]] = []
    place = tmp_path / "there"
    place.write_text("a file")
    copies = CheckpointCopies(place / "run", 1, lambda waiting, error: said.append((waiting, error)))
    copies.copy(small_checkpoint(tmp_path / "here", 1))
    copies.wait()
    ((waiting, error),) = said
    assert waiting == 1
    assert "step-00000001 is not copied to" in error
    place.unlink()
    copies.copy(small_checkpoint(tmp_path / "here", 2))
    copies.wait()
    assert said[-1] == (0, "")
