"""Pickles are read as plain data."""

from __future__ import annotations

import os
import pickle
from argparse import Namespace
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.plain_pickle import Plain, read_pickle


class Kind(Enum):
    ONE = 1


def only(*names: str) -> Callable[[str, str], Any]:
    return lambda module, name: Plain if f"{module}.{name}" in names else None


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_objects_are_what_they_were_made_of(protocol: int) -> None:
    content = pickle.dumps({"args": Namespace(layers=2, name="a", kind=Kind.ONE)}, protocol)
    known = only("argparse.Namespace", f"{Kind.__module__}.Kind", "builtins.object", "copyreg._reconstructor")
    args = read_pickle(content, lambda *name: Plain if name == ("builtins", "getattr") else known(*name))["args"]
    assert isinstance(args, Plain)
    assert (args.layers, args.name) == (2, "a")
    assert isinstance(args.kind, Plain)
    with pytest.raises(AttributeError):
        args.more  # noqa: B018


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_name_that_is_not_known_ends_the_reading(protocol: int, tmp_path: Path) -> None:
    class Removes:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.rmdir, (str(tmp_path / "kept"),)

    (tmp_path / "kept").mkdir()
    content = pickle.dumps([Removes()], protocol)
    with pytest.raises(pickle.UnpicklingError, match=r"it names posix\.rmdir, which has no place there"):
        read_pickle(content, only("argparse.Namespace"))
    assert isinstance(read_pickle(content, only("posix.rmdir"))[0], Plain)
    assert (tmp_path / "kept").is_dir(), "what is known is not run either"
    pickle.loads(content)
    assert not (tmp_path / "kept").exists(), "it would have run"
