"""What ``[stream]`` asks of a machine is said before anything starts."""

from __future__ import annotations

import sys

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.config.schema import StreamSection
from liver_slurm.transfer.requirements import check

WHAT_TO_INSTALL = r"'ucx', but nixl cannot be imported .*pip install 'liver-slurm\[ucx\]'"


@pytest.fixture(autouse=True)
def without_nixl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl", None)


def test_ucx_says_what_to_install() -> None:
    with pytest.raises(BadInput, match=WHAT_TO_INSTALL):
        check(StreamSection(transport="ucx", interface="lo"))


def test_nothing_else_needs_nixl() -> None:
    check(StreamSection(interface="lo"))


def test_old_names_are_taken_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    for transport in ("gloo", "nccl"):
        check(StreamSection(transport=transport))  # type: ignore[arg-type]
    assert caplog.messages == [
        f"stream.transport = '{transport}' is an old name: it does what 'auto' does" for transport in ("gloo", "nccl")
    ]
