"""What is said of an error in one line, and which have their traceback in a log."""

from __future__ import annotations

import pytest

from liver_slurm.base.errors import NoRoom, TransferError, first_line, traceback_of


@pytest.mark.parametrize(
    ("error", "line", "traced"),
    [
        (MemoryError(), "MemoryError", True),
        (KeyError("x"), "KeyError: 'x'", True),
        (RuntimeError("one\ntwo"), "RuntimeError: one", True),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device", False),
        (TransferError("a peer went away"), "a peer went away", False),
        (NoRoom(), "NoRoom", False),
    ],
)
def test_only_our_own_errors_say_enough(error: BaseException, line: str, traced: bool) -> None:
    assert first_line(error) == line
    assert traceback_of(error) is (error if traced else None)
