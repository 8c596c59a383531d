"""A target world: how it is built, and what becomes of it if it is given up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from coordinator_lab import until
from target_lab import PATIENCE, Workers, same, snapshot
from tiny_engine import Counting, TinyEngine, TinyShard
from torch.distributed import distributed_c10d

from liver_slurm.base.errors import TransferError
from liver_slurm.config.train import TrainSection
from liver_slurm.engine.checkpoint import Checkpointer, Written
from liver_slurm.engine.storage import held_bytes
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.reshard.parity import choose
from liver_slurm.rundir.checkpoints import checkpoint_path
from liver_slurm.transfer.connections import Connections
from liver_slurm.transfer.mirror.host_room import Rooms
from liver_slurm.transfer.mirror.proof import Proofs
from liver_slurm.worker.mirrors import open_mirrors
from liver_slurm.worker.target_world import TargetWorld

# ---- its life ------------------------------------------------------------------------------------------------------


class Fakes:
    """A target world of a shard and a transfer that only note what is asked of them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.closed = threading.Event()
        world = SimpleNamespace(abort=lambda: self.log.append("abort world"), destroy=self._destroy)
        transfer: Any = SimpleNamespace(
            abort=lambda: self.log.append("abort transfer"), close=lambda: self.log.append("close transfer")
        )
        shard: Any = SimpleNamespace(world=world, clear_caches=lambda: self.log.append("end what runs"))
        any_world: Any = world
        self.target = TargetWorld(Membership(1, Layout(1, 1, 1), ("a",)), shard, transfer, world=any_world)

    def _destroy(self) -> None:
        self.log.append("destroy world")
        self.closed.set()


def test_one_that_is_entered() -> None:
    fakes = Fakes()
    assert fakes.target.prepared()
    assert fakes.target.stream()
    assert fakes.log == []
    assert not fakes.target.given_up


def test_given_up_while_it_is_built_it_is_discarded_once_built() -> None:
    fakes = Fakes()
    assert not fakes.target.give_up(), "training does not wait for it"
    assert fakes.log == ["abort transfer"], "it may wait for a peer; all else the thread that builds it still uses"
    assert not fakes.target.prepared()
    assert fakes.log == ["abort transfer", "close transfer", "end what runs", "destroy world"]
    assert fakes.target.state is None
    assert not fakes.target.stream()


def test_given_up_when_it_is_built_it_is_discarded_at_once() -> None:
    fakes = Fakes()
    assert fakes.target.prepared()
    assert not fakes.target.give_up()
    assert fakes.closed.wait(PATIENCE)
    assert not fakes.target.stream()
    assert not fakes.target.give_up(), "said again"
    assert fakes.log == ["close transfer", "end what runs", "destroy world"]


def test_all_of_it_is_discarded_though_some_cannot_be() -> None:
    fakes = Fakes()

    def fails() -> None:
        fakes.log.append("close transfer")
        raise TransferError("a mapping stays")

    transfer: Any = SimpleNamespace(close=fails)
    image, store, mirrors = (
        SimpleNamespace(close=lambda name=name: fakes.log.append(f"close {name}"))
        for name in ("image", "store", "mirrors")
    )
    fakes.target.transfer, fakes.target.image, fakes.target.mirrors = transfer, image, mirrors  # type: ignore[assignment]
    fakes.target.takes(store)  # type: ignore[arg-type]
    with pytest.raises(TransferError, match="a mapping stays"):
        fakes.target.discard()
    assert fakes.log[:4] == ["close transfer", "close image", "close store", "close mirrors"]
    assert fakes.log[4:] == ["end what runs", "destroy world"]
    fakes.target.discard()
    assert fakes.log[6:] == ["close image"], "which may be closed again"


def test_given_up_in_the_cutover_whoever_waits_in_it_is_thrown_out() -> None:
    fakes = Fakes()
    assert fakes.target.prepared()
    assert fakes.target.stream()
    assert fakes.target.give_up(), "training waits for the verdict"
    assert fakes.target.give_up()
    assert fakes.log == ["abort transfer", "abort world", "abort transfer"], "discarded by the training thread"


def test_there_is_no_way_back_once_late_layers_have_freed_state() -> None:
    target = Fakes().target
    assert not target.no_way_back
    late: Any = SimpleNamespace(freed=False)
    target.late = late
    assert not target.no_way_back
    late.freed = True
    assert target.no_way_back


def test_the_peak_is_the_most_it_ever_held() -> None:
    target = Fakes().target
    for nbytes in (3, 7, 5):
        target.holds(nbytes)
    assert target.state_peak_bytes == 7


# ---- how it is built -----------------------------------------------------------------------------------------------


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    made = Workers(mode="pause")
    yield made
    made.close()


def test_a_world_without_a_source_starts_from_the_seed(workers: Workers) -> None:
    one, other = workers.first_world("a"), workers.first_world("b")
    assert one.transfer is None
    assert one.late is None
    assert one.state is not None
    assert one.state.steps() == {0}
    assert same(snapshot(one.state), snapshot(other.state))


def test_a_world_without_a_source_starts_from_a_checkpoint(workers: Workers, tmp_path: Path) -> None:
    first = workers.first_world("a").state
    assert isinstance(first, TinyShard)
    for step in range(3):
        first.train_step(Counting(), step)
    written: list[Written] = []
    train = TrainSection(global_batch_size=4, distributed_optimizer=False)
    Checkpointer(first, tmp_path, keep=0, asynchronous=False, train=train).save(3, written.append)
    assert [each.error for each in written] == [""]
    loaded = workers.first_world("b", str(checkpoint_path(tmp_path, 3))).state
    assert loaded is not None
    assert loaded.steps() == {3}
    assert same(snapshot(loaded), snapshot(first))


def test_a_joiner_has_storage_and_whoever_leaves_has_no_shard(workers: Workers) -> None:
    live = workers.first_world()
    leaver, joiner = workers.hand_over(live)
    assert leaver.state is None
    assert leaver.held_bytes == held_bytes(live.state)
    assert joiner.state is not None
    assert joiner.held_bytes == held_bytes(joiner.state) == held_bytes(live.state), "moments too, in mode pause"
    assert joiner.state_peak_bytes == joiner.held_bytes
    for target in (leaver, joiner):
        assert target.transfer is not None
        assert target.late is None
        assert target.plan_seconds > 0.0
        assert target.rate == 0.0


def test_a_world_that_cannot_be_built_says_why(workers: Workers) -> None:
    class Broken:
        def build(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("out of memory")

    engine: Any = Broken()
    workers.engine = engine
    with pytest.raises(RuntimeError, match="out of memory"):
        workers.first_world()


# ---- a preparation that fails ----------------------------------------------------------------------------------------


class NoRoom(TinyEngine):
    """An engine that has no room for another shard."""

    def build(self, *arguments: Any, **options: Any) -> Any:
        raise MemoryError("no room for another shard")


def held() -> tuple[int, int, int]:
    """Process groups, threads and open files of this process."""
    groups = len(distributed_c10d._world.pg_map)
    return groups, len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_is_left_of_a_preparation_that_fails() -> None:
    # LS-7, LS-27: it is tried again once a minute, for ever
    workers = Workers(NoRoom())

    def fail() -> None:
        with pytest.raises(MemoryError, match="no room"):
            workers.prepare(workers.message("a"), "a")
        workers.made[-1].discard()

    fail()  # pays for what a process has once
    before = held()
    for _ in range(5):
        fail()
    until(lambda: held() <= before, f"all is given back: {before}, now {held()}")


def test_an_abort_ends_the_wait_for_a_keeper() -> None:
    # LS-27
    store = dist.HashStore()
    ours, theirs = (Connections(store, me, 2, True, "lo") for me in (0, 1))
    target = TargetWorld(Membership(1, Layout(1, 1, 2), ("a", "b")))
    target.dials(ours)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(
            open_mirrors,
            ours,
            target.membership,
            0,
            ["", ""],
            choose((), ["", ""], group=1),
            Rooms(None),
            Proofs(),
        )  # the peer never dials
        assert not target.give_up(), "training does not wait for it"
        with pytest.raises(TransferError, match=r"given up|cannot be reached"):
            waits.result(60)
    target.dials(theirs)
    with pytest.raises(TransferError, match=r"given up|cannot be reached"):
        theirs.outgoing(0)
    theirs.close()
