"""Boxes move beside training, however they are read: where they arrive they are what their owner has, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_owner import same_bytes
from target_lab import at_once
from transfer_lab import Joined, Tensor, Trainer, join, stream

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.one_sided import handshake
from liver_slurm.transfer.one_sided.puller import Puller
from liver_slurm.transfer.one_sided.words import Header
from liver_slurm.transfer.shared_box import SharedBox

PATIENCE = 120.0


class Place(threading.local):
    """Which machine the calling thread's worker is on."""

    name = "here"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    found = Place()
    monkeypatch.setattr(handshake, "machine", lambda: found.name)
    return found


class Watched:
    """Says when each puller has read what it can beside training."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._read = threading.Semaphore(0)
        original = Puller._read_beside_training

        def and_say_so(puller: Puller, header: Header) -> None:
            original(puller, header)
            self._read.release()

        monkeypatch.setattr(Puller, "_read_beside_training", and_say_so)

    def wait(self, workers: Sequence[Joined]) -> None:
        for worker in workers:
            for _ in worker.connected.reads:
                assert self._read.acquire(timeout=PATIENCE)


@contextmanager
def joined(
    tensors: Sequence[Tensor], workers: int, machines: Sequence[str] = (), place: Place | None = None, **section: object
) -> Iterator[list[Joined]]:
    """All workers, connected; closed at the end."""
    store = dist.HashStore()

    def one(me: int) -> Joined:
        if place is not None and machines:
            place.name = machines[me]
        return join(store, Trainer(me, tensors, seed=17 + me), workers, stream(**section))

    found = at_once(*[lambda me=me: one(me) for me in range(workers)])
    try:
        yield list(found)
    finally:
        at_once(*[worker.transfer.close for worker in found])


def each(workers: Sequence[Joined], call: Callable[[Joined], object]) -> tuple[object, ...]:
    """Call for all workers at once."""
    return tuple(at_once(*[lambda worker=worker: call(worker) for worker in workers]))


def check(workers: Sequence[Joined]) -> None:
    """Everything that arrived is what its owner has now."""
    for tensor in workers[0].trainer.tensors:
        held = workers[tensor.source].trainer.state(tensor.name)
        for kept, arrived in zip(held, workers[tensor.target].trainer.arrived[tensor.name], strict=True):
            assert same_bytes(arrived, kept), tensor


@st.composite
def cases(draw: st.DrawFn) -> list[Tensor]:
    """Tensors of two workers, most of which change hands."""
    found = []
    for number in range(draw(st.integers(1, 5))):
        shape = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
        found.append(
            Tensor(
                f"t{number}",
                shape,
                draw(st.integers(0, 1)),
                draw(st.integers(0, 1)),
                draw(st.sampled_from([0, 0, 1, 2, None])),
                draw(st.integers(0, shape[0])),
                draw(st.booleans()),
            )
        )
    return found


@settings(max_examples=30, deadline=None)
@given(
    tensors=cases(),
    transport=st.sampled_from(["auto", "shm", "tcp"]),
    before=st.integers(0, 2),
    watched=st.integers(0, 2),
    between=st.integers(0, 2),
    last=st.sampled_from(["update", "skip", "none"]),
    ahead=st.booleans(),
    staging=st.sampled_from([600, 1 << 12, 1 << 16]),
)
def test_what_arrives_is_what_its_owner_has(
    tensors: list[Tensor],
    transport: str,
    before: int,
    watched: int,
    between: int,
    last: str,
    ahead: bool,
    staging: int,
) -> None:
    # LS-3, LS-23, LS-31
    with pytest.MonkeyPatch.context() as monkeypatch:
        read = Watched(monkeypatch)
        with joined(tensors, 2, transport=transport, staging_bytes=staging) as workers:

            def train(times: int) -> None:
                for _ in range(times):
                    for worker in workers:
                        worker.trainer.update()

            train(before)
            each(workers, lambda worker: worker.transfer.start())
            each(workers, lambda worker: worker.transfer.attach())
            train(watched)
            for worker in workers:
                worker.transfer.open(last=False)
            train(between)
            for worker in workers:
                worker.transfer.open(last=True)
            if ahead:
                read.wait(workers)
            if last == "update":
                train(1)
            elif last == "skip":
                for worker in workers:
                    worker.trainer.skip()
            made = before + watched + between + (last == "update")
            # Who trains nothing is told by those that it reads from, if they do.
            known = [me for me, worker in enumerate(workers) if worker.trainer.parameters]
            told = {tensor.target for tensor in tensors if tensor.source in known}
            assert each(workers, lambda worker: worker.transfer.finish()) == tuple(
                made if me in {*known, *told} else -1 for me in range(2)
            )
            stats = [worker.transfer.prove() for worker in workers]
            check(workers)
            for worker, one in zip(workers, stats, strict=True):
                assert one.staging_peak_bytes <= staging
                arriving = [tensor for tensor in tensors if tensor.target == worker.trainer.me != tensor.source]
                nbytes = sum(view.nbytes for tensor in arriving for view in worker.trainer.arrived[tensor.name])
                assert one.bytes_received == worker.transfer.state_bytes == nbytes
                if transport != "tcp":
                    trained = sum(
                        worker.trainer.arrived[tensor.name][0].nbytes for tensor in arriving if tensor.group is not None
                    )
                    if ahead:
                        assert one.bytes_early == nbytes
                        assert one.bytes_gradients == (trained if last == "update" else 0)
                    else:
                        assert one.bytes_early <= nbytes
                        assert one.bytes_gradients <= trained


MIXED = [
    Tensor(f"t{source}{target}{group}", (9, 5), source, target, group, rows=4)
    for source in range(3)
    for target in range(3)
    for group in (0, 1, None)
]


@pytest.mark.parametrize(
    "machines",
    [("here", "here", "there"), ("here", "there", "yonder"), ("here", "here", "here")],
    ids=["some", "none", "all"],
)
def test_some_pairs_read_memory_and_the_others_connections(
    place: Place, machines: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # LS-3, LS-23, LS-32
    read = Watched(monkeypatch)
    with joined(MIXED, 3, machines, place, staging_bytes=1 << 12) as workers:
        for worker in workers:
            near = {peer: machines[peer] == machines[worker.trainer.me] for peer in worker.connected.reads}
            assert {peer: way == "memory" for peer, way in worker.connected.reads.items()} == near
        each(workers, lambda worker: worker.transfer.probe())
        each(workers, lambda worker: worker.transfer.start())
        for worker in workers:
            worker.transfer.attach()
        for last in (False, True):
            for worker in workers:
                worker.transfer.open(last)
            if last:
                read.wait(workers)
            for worker in workers:
                worker.trainer.update()
        assert each(workers, lambda worker: worker.transfer.finish()) == (2, 2, 2)
        for worker in workers:
            stats = worker.transfer.prove()
            assert stats.staging_peak_bytes <= 1 << 12
            # Over connections it may be that nothing was read in time for an update.
            assert stats.staging_peak_bytes or "there" in machines
        check(workers)


# ---- endings -------------------------------------------------------------------------------------------------------

ONE = [Tensor("t", (64, 8), 0, 1)]


@pytest.mark.parametrize("end", [0, 1], ids=["owner", "receiver"])
@pytest.mark.parametrize("at", ["started", "opened", "updating", "updated", "finished"])
@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_giving_up_throws_both_ends_out(transport: str, end: int, at: str) -> None:
    # LS-7, LS-32
    with joined(ONE, 2, transport=transport) as workers:
        owner, receiver = workers
        for worker in workers:
            worker.transfer.start()
        owner.transfer.attach()
        if at != "started":
            owner.transfer.open(last=True)
        if at in ("updated", "finished"):
            owner.trainer.update()
        if at == "updating":
            hook = owner.trainer.optimizer.register_step_pre_hook(lambda *_: workers[end].transfer.abort())
            owner.trainer.update()
            hook.remove()
        if at == "finished":
            owner.transfer.finish()
        workers[end].transfer.abort()

        def end() -> None:
            receiver.transfer.finish()
            receiver.transfer.prove()

        with pytest.raises(TransferError):
            at_once(end)
        owner.transfer.open(last=True)
        owner.transfer.detach()
        expected = Trainer(0, ONE, seed=17)
        for _ in range(owner.trainer.made):
            expected.update()
        for trainer in (owner.trainer, expected):
            trainer.update()
        assert all(map(same_bytes, owner.trainer.state("t"), expected.state("t"))), "training is as if it were alone"


def test_training_that_goes_on_is_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    # LS-31
    read = Watched(monkeypatch)
    with joined(ONE, 2) as workers:
        owner, receiver = workers
        for worker in workers:
            worker.transfer.start()
        owner.transfer.attach()
        owner.transfer.open(last=True)
        read.wait(workers)
        for _ in range(2):
            owner.trainer.update()
        with pytest.raises(TransferError, match=r"^worker 0: UPDATING is not due$"):
            at_once(receiver.transfer.finish)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_box_that_arrives_otherwise_than_it_was_is_found(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # LS-12
    read = Watched(monkeypatch)
    with joined([*ONE, Tensor("u", (3,), 0, 1, None)], 2) as workers:
        owner, receiver = workers

        def spoil(boxes: Sequence[SharedBox]) -> None:
            (view,) = (box.state[0] for box in boxes if box.names == ("u",))
            view.view(torch.int32)[1] ^= 1

        for puller in receiver.transfer._pull._pullers:  # type: ignore[union-attr]
            puller._on_received = spoil
        for worker in workers:
            worker.transfer.start()
        owner.transfer.attach()
        owner.transfer.open(last=True)
        if ahead:
            read.wait(workers)
        owner.trainer.update()

        def arrive() -> None:
            """Fails while it is proven, or already while it is finished, if digests are there before that returns."""
            at_once(owner.transfer.finish, receiver.transfer.finish)
            receiver.transfer.prove()

        with pytest.raises(TransferError, match=r"^worker 0: the digest of what .* in 1 of 4 boxes: u at \(0,\)$"):
            arrive()


def test_workers_that_count_updates_differently_do_not_go_on() -> None:
    # LS-12
    with joined([Tensor("a", (3,), 0, 1), Tensor("b", (3,), 1, 0)], 2) as workers:
        workers[0].trainer.made = 5
        for worker in workers:
            worker.transfer.start()
        with pytest.raises(
            TransferError, match=r"^this worker's optimizer has made . updates, and those that it reads"
        ):
            at_once(*(worker.transfer.finish for worker in workers))
