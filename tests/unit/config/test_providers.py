"""Functions of users that a job file names: what is wrong with one is one line, whatever its module does."""

from __future__ import annotations

from pathlib import Path

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.config.providers import load_function


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("exits", "import sys; sys.exit(2)", "exits:make: importing exits failed: SystemExit: 2"),
        ("breaks", "1 / 0", "breaks:make: importing breaks failed: ZeroDivisionError: division by zero"),
        ("lacks", "import lacks_this", "lacks:make: there is no module 'lacks_this' that lacks imports"),
        ("other", "make = 3", "other:make: is not a function but int"),
    ],
)
def test_a_module_that_gives_no_function_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, says: str
) -> None:
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput) as caught:
        load_function(f"{name}:make")
    assert str(caught.value).startswith(says)
