"""Whose files are used: those of this user, or of root, which nobody else can write.

A run directory holds what is executed (the job file's set-up, submitit's pickles, the batch script) and what becomes a
model. Whoever can write there acts as the user who runs it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from liver_slurm.base.errors import BadInput

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def distrust(path: Path) -> str:
    """Say why a file or folder is not used; empty: it may be.

    Raises:
        OSError: it is not there, or may not be looked at.
    """
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        return f"{path} belongs to user {status.st_uid}; copy it to use it, and check whose work it is"
    if status.st_mode & _OTHERS_MAY_WRITE:
        mode = stat.S_IMODE(status.st_mode)
        return f"{path} can be written by others (mode {mode:04o}); close it: chmod -R go-w {path}"
    return ""


def check_trusted(paths: Iterable[Path]) -> None:
    """Check that nobody else can write these files and folders; one that is not there is passed over.

    Raises:
        BadInput: somebody can, or one of them belongs to another user.
    """
    for path in paths:
        try:
            problem = distrust(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            problem = f"{path} cannot be looked at: {error.strerror}"
        if problem:
            raise BadInput(problem)


def close_to_writers(folder: Path) -> None:
    """Have nobody else write in a folder of ours, whatever the umask and the folder around it grant.

    Raises:
        OSError: others may still write there.
    """
    try:
        os.removexattr(folder, "system.posix_acl_default")
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP):  # it has none, or the file system knows none
            raise
    folder.chmod(stat.S_IMODE(folder.stat().st_mode) & ~_OTHERS_MAY_WRITE)


def deny_writing_to_others() -> None:
    """Have this process, and those that it starts, make no file that others can write."""
    os.umask(os.umask(0o077) | _OTHERS_MAY_WRITE)
