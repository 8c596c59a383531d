"""Who can write what a run executes and loads: nobody else, or it is not used."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest

from liver_slurm.rundir import trust
from liver_slurm.rundir.trust import close_to_writers


@pytest.mark.parametrize("number", [None, errno.ENODATA, errno.ENOTSUP, errno.EIO])
def test_a_default_acl_that_cannot_be_taken_away_is_no_closed_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    def remove(path: Path, name: str) -> None:
        assert (path, name) == (tmp_path, "system.posix_acl_default")
        if number is not None:
            raise OSError(number, "so")

    monkeypatch.setattr(trust.os, "removexattr", remove)
    tmp_path.chmod(0o775)
    if number == errno.EIO:
        with pytest.raises(OSError, match="so"):
            close_to_writers(tmp_path)
    else:
        close_to_writers(tmp_path)
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
