"""Object collectives send plain data only."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from liver_slurm.parallel import c10d
from liver_slurm.parallel.plain_objects import all_gather_plain, alone


@pytest.fixture
def group() -> Iterator[Any]:
    made = c10d.make_group(dist.HashStore(), "plain", [0], 0, "gloo", timedelta(seconds=60), torch.device("cpu"))
    yield made
    c10d.destroy_group(made)


def test_plain_data_arrives_as_it_was(group: Any) -> None:
    for value in (None, 3, "text", ((None, False), ((("wd_mult", 0.0), ("lr_mult", 1.0)), True))):
        found: list[Any] = [None]
        all_gather_plain(found, value, group)
        assert found == [value]
    all_gather_plain(found, [("a", 1)], group)
    assert hash(found[0]) == hash((("a", 1),)), "as keys of a dict"


def test_alone_nobody_is_asked(group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("a peer is gone")

    monkeypatch.setattr(dist, "all_gather", asked)
    monkeypatch.setattr(dist, "get_world_size", lambda _group: 3)
    found: list[Any] = [None] * 3
    with alone():
        all_gather_plain(found, [("a", 1)], group)
    assert found == [(("a", 1),)] * 3
    with pytest.raises(RuntimeError, match="a peer is gone"):
        all_gather_plain(found, [("a", 1)], group)


@pytest.mark.parametrize(("value", "why"), [(object(), "plain data only"), (b"x" * (1 << 21), "bytes at most")])
def test_nothing_else_is_sent(group: Any, value: Any, why: str) -> None:
    with pytest.raises(RuntimeError, match=why):
        all_gather_plain([None], value, group)


def test_a_peers_pickle_is_not_executed(group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = pickle.dumps({"a": object})
    monkeypatch.setattr("msgspec.msgpack.encode", lambda _value: sent)
    with pytest.raises(RuntimeError, match="what rank 0 sent is no plain data"):
        all_gather_plain([None], 1, group)


FORBIDDEN = """
import torch.distributed as dist
from torch.distributed import distributed_c10d
from liver_slurm.parallel.plain_objects import all_gather_plain, forbid_pickles
forbid_pickles()
assert dist.all_gather_object is distributed_c10d.all_gather_object is all_gather_plain
for name in ("broadcast_object_list", "gather_object", "scatter_object_list", "send_object_list", "recv_object_list"):
    try:
        getattr(dist, name)([None], src=0)
    except RuntimeError as error:
        print(error)
"""


def test_a_workers_process_takes_no_pickles() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.count("sends pickles, which a worker does not take from the network") == 5
