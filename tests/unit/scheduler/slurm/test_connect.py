"""The choice of the Slurm client's back end."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from liver_slurm.base.errors import BadInput, ClusterError
from liver_slurm.scheduler.slurm import connect as connect_module
from liver_slurm.scheduler.slurm import pyslurm_client
from liver_slurm.scheduler.slurm.client import CommandClient
from liver_slurm.scheduler.slurm.connect import CHOICE, connect, pyslurm_fits
from liver_slurm.scheduler.slurm.pyslurm_client import PyslurmClient


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``world(pyslurm=…, cluster=…)``: versions of what there is; None: it is not there."""
    monkeypatch.delenv(CHOICE, raising=False)
    monkeypatch.setattr(pyslurm_client, "_loaded_for", None)

    def config(cluster: str | None) -> dict[str, str]:
        if cluster is None:
            raise ClusterError("no cluster")
        return {"SLURM_VERSION": cluster}

    def make(pyslurm: str | None, cluster: str | None = None) -> None:
        monkeypatch.setattr(connect_module, "_pyslurm_version", lambda: pyslurm)
        monkeypatch.setattr(CommandClient, "config", lambda self: config(cluster))
        monkeypatch.setitem(sys.modules, "pyslurm", SimpleNamespace(RPCError=OSError) if pyslurm else None)

    return make


@pytest.mark.parametrize(
    ("library", "cluster", "fits"),
    [
        ("25.11.2", "25.11.7", True),
        ("25.11.2", "26.05.5", False),
        ("25.5.0", "25.05.3", True),
        (None, "25.11.7", False),
        ("25.11.2", "of unknown version", False),
    ],
)
def test_fits(library: str | None, cluster: str, fits: bool) -> None:
    assert pyslurm_fits(library, cluster)[0] is fits


def test_reasons_say_what_to_do() -> None:
    assert "pip install 'liver-slurm[pyslurm]'" in pyslurm_fits(None, "25.11.7")[1]
    assert pyslurm_fits("25.11.2", "24.11.5")[1].endswith("pip install 'pyslurm==24.11.*'")


def test_pyslurm_where_it_fits(world: Any) -> None:
    world("25.11.2", "25.11.7")
    assert isinstance(connect(), PyslurmClient)


@pytest.mark.parametrize("versions", [(None, "25.11.7"), ("25.11.2", "22.05.8"), ("25.11.2", None)])
def test_else_the_commands(world: Any, versions: tuple[str | None, str | None]) -> None:
    world(*versions)
    assert isinstance(connect(), CommandClient)


def test_a_process_that_may_not_stand_still_takes_the_commands(world: Any) -> None:
    world("25.11.2", "25.11.7")
    assert isinstance(connect(may_wait=False), CommandClient)


def test_forced(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world("25.11.2", "25.11.7")
    monkeypatch.setenv(CHOICE, "commands")
    assert isinstance(connect(), CommandClient)
    monkeypatch.setenv(CHOICE, "pyslurm")
    assert isinstance(connect(may_wait=False), PyslurmClient)


@pytest.mark.parametrize(
    ("choice", "versions", "word"),
    [
        ("rest", (None, None), "names no Slurm client"),
        ("pyslurm", (None, "25.11.7"), "not installed"),
        ("pyslurm", ("25.11.2", "22.05.8"), "not for Slurm 22.05.8"),
    ],
)
def test_a_choice_that_cannot_be(
    world: Any, monkeypatch: pytest.MonkeyPatch, choice: str, versions: tuple[Any, Any], word: str
) -> None:
    world(*versions)
    monkeypatch.setenv(CHOICE, choice)
    with pytest.raises(BadInput, match=word):
        connect()


def test_pyslurm_is_not_loaded_where_there_is_no_cluster(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world("25.11.2", None)
    monkeypatch.setenv(CHOICE, "pyslurm")
    with pytest.raises(ClusterError, match="no cluster"):
        connect()
