"""Shared by the tests on real clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from notice_lab import NoticeRun

    from liver_slurm.scheduler.slurm.client import CommandClient


@pytest.fixture
def notices(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    client: CommandClient,
    eventually: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, Any], None],
) -> Iterator[NoticeRun]:
    """An elastic run that trains slowly until the test lets it go; the mark ``job`` says what differs in its job file.

    Its table is printed at the end of all tests; its events, if the test failed.
    """
    from notice_lab import start

    marker = request.node.get_closest_marker("job")
    run = start(tmp_path, client, eventually, monkeypatch, **(marker.kwargs if marker is not None else {}))
    try:
        yield run
    finally:
        record_property("notices", run.table())
        run.close()


@pytest.fixture
def notices_without_signals(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> NoticeRun:
    """The same with workers that do not see signals: only Slurm's record tells."""
    monkeypatch.setenv("LIVER_FAULT", "ignore@notice:standby-*")
    run: NoticeRun = request.getfixturevalue("notices")
    return run
