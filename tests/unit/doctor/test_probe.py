"""What a machine says of itself to the doctor."""

from __future__ import annotations

from pathlib import Path

from liver_slurm.doctor import probe


def test_a_lock_that_is_held_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("x")
    assert probe._try_lock(file) == "granted"
    with file.open("r+b") as stream:
        probe.hold_lock(stream.fileno())
        assert file.read_text() == "x", "reading it lets nothing go"
        assert probe._try_lock(file) == "refused"
    assert probe._try_lock(file) == "granted"
