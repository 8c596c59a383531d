"""Faults that a worker does to itself: the words are those of all faults."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from coordinator_lab import PATIENCE

from liver_slurm.base.errors import BadInput, LiverError
from liver_slurm.base.faults import INSIDE, Defect, Fault
from liver_slurm.engine.replica import Groups, TrainedBox
from liver_slurm.reshard.plan import RankMoves
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.reshard.tensors import Move, Piece
from liver_slurm.transfer.shared_box import SharedBox
from liver_slurm.worker import fault_injection


@pytest.mark.parametrize("fault", [*INSIDE, *Defect])
def test_every_fault_has_its_word(fault: Fault | Defect) -> None:
    seconds = ":5" if fault is Fault.DELAY else ""
    assert fault_injection._parse(f"{fault.value}@stream:standby-*{seconds}").fault.value == fault.value


@pytest.mark.parametrize(
    "text",
    [
        "kill",
        "kill@stream",
        "rain@stream:w",
        "preempt@stream:w",
        "delay@stream:w",
        "kill@stream:w:5",
        "stop@:w",
        "cut@p:w:1",
    ],
)
def test_other_words_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(BadInput, match=r"LIVER_FAULT=.* is not allowed") as caught:
        fault_injection._parse(text)
    assert len(str(caught.value).splitlines()) == 1


def inject(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(fault_injection, "_fault", fault_injection._parse(text))
    monkeypatch.setattr(fault_injection, "_passed", 0)


def test_a_fault_is_done_once_at_its_point_to_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, "fail@stream:live-*")
    fault_injection.reach("stream", "standby-0")
    fault_injection.reach("prepare", "live-0")
    with pytest.raises(LiverError, match="live-0 fails at stream"):
        fault_injection.reach("stream", "live-0")
    fault_injection.reach("stream", "live-0")


def test_a_defect_is_done_at_its_point_to_its_worker_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (fault_injection.updates("live-0", 7), fault_injection.position("live-0", 8)) == (7, 8)
    inject(monkeypatch, "step-reset@updates:live-0")
    assert [fault_injection.updates(name, 7) for name in ("live-0", "live-1", "live-0")] == [0, 7, 0]
    inject(monkeypatch, "wrong-position@position:live-0")
    assert [fault_injection.position(name, 8) for name in ("live-0", "live-1", "live-0")] == [9, 8, 9]
    inject(monkeypatch, "dropped-name@plan:live-0")
    move = Move("w", 0, 1, (0,), (1,))
    moves = RankMoves([], [move], [move])
    assert [fault_injection.planned(name, moves) for name in ("live-0", "live-1")] == [RankMoves([], [], []), moves]
    inject(monkeypatch, "unloaded@received:live-0")
    box = SharedBox((torch.ones(2),), names=("w",))
    fault_injection.received("live-1", [box])
    assert box.state[0].tolist() == [1.0, 1.0]
    fault_injection.received("live-0", [box])
    assert box.state[0].tolist() == [0.0, 0.0]


def test_a_fault_may_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, "fail@step+2:live-0")
    for _ in range(2):
        fault_injection.reach("step", "live-0")
    with pytest.raises(LiverError):
        fault_injection.reach("step", "live-0")


def test_a_cut_ends_the_workers_own_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs = server.accept()[0]
        inject(monkeypatch, "cut@stream:live-0")
        fault_injection.reach("stream", "live-0")
        assert (ours.recv(1), theirs.recv(1)) == (b"", b"")
        ours.close()
        theirs.close()


@pytest.mark.parametrize(("fault", "made"), [("ignore", 2), ("double", 4), ("corrupt", 3), ("delay", 3)])
def test_one_update_of_a_mirror_is_made_wrongly(fault: str, made: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, f"{fault}@replayed+1:live-0" + ":0.0" * (fault == "delay"))
    box = TrainedBox(Piece("w", (0,), (2,)), tuple(torch.zeros(3, 2)), lambda: torch.zeros(2), GroupSpec())

    def make(boxes: Sequence[TrainedBox], updates: int, groups: Groups) -> None:
        box.state[1].add_(1)

    assert fault_injection.replays("live-1", make) is make
    wrong = fault_injection.replays("live-0", make)
    for number in range(3):
        assert box.master.count_nonzero() == (number > 1 and fault == "corrupt")
        wrong([box], number, {})
    assert box.state[1].tolist() == [made, made]


SCRIPT = """
import sys
from liver_slurm.worker import fault_injection
fault_injection.reach("save", "live-0")
try:
    with open(sys.argv[1], "w") as file:
        file.write("a")
    print("written")
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize(("fault", "code", "said"), [
    ("kill@save:live-0", -9, ""),
    ("stop@save:live-0:0.2", 0, "written"),
    ("disk-full@save:live-0", 0, "File too large"),
])  # fmt: skip
def test_what_a_process_does_to_itself(fault: str, code: int, said: str, tmp_path: os.PathLike[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, os.fspath(tmp_path) + "/file"],
        env={**os.environ, "LIVER_FAULT": fault},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout.strip()) == (code, said)
