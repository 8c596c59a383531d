"""The transfer of one worker's state: what is built from a plan moves every box, bit for bit, in both modes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_models import Model
from target_lab import Workers, at_once, same, snapshot
from tiny_engine import LAYERS, Counting, TinyEngine, TinyShard

from liver_slurm.base.errors import PlanError
from liver_slurm.engine.replica import Boxes, LayerFilter, every_layer
from liver_slurm.engine.storage import held_bytes
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.protocol.messages import Prepare
from liver_slurm.reshard.plan import RankMoves
from liver_slurm.reshard.shard_spec import pieces
from liver_slurm.reshard.tensors import Move, Piece
from liver_slurm.transfer.one_sided.puller import Puller
from liver_slurm.transfer.one_sided.words import Header
from liver_slurm.transfer.transfer import TransferStats
from liver_slurm.worker import target_world
from liver_slurm.worker.memory_agreement import MemoryAgreement
from liver_slurm.worker.state_transfer import TransferEndpoints, check_complete, check_held
from liver_slurm.worker.target_world import TargetWorld

STEPS = 3


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Workers]:
    """Workers a and b; ``request``: settings of [stream]."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    made = Workers(**getattr(request, "param", {}))
    yield made
    made.close()


def trained(workers: Workers, steps: int = STEPS) -> TargetWorld:
    """Worker a's first world, some steps on."""
    live = workers.first_world()
    shard = live.state
    assert isinstance(shard, TinyShard)
    for step in range(steps):
        shard.train_step(Counting(), step)
    return live


pause = pytest.mark.parametrize("workers", [{"mode": "pause"}], indirect=True)
overlap = pytest.mark.parametrize("workers", [{"mode": "overlap"}], indirect=True)


@pause
def test_in_mode_pause_all_boxes_move_at_once(workers: Workers) -> None:
    live = trained(workers)
    expected = snapshot(live.state)
    leaver, joiner = workers.hand_over(live)
    assert leaver.overlap is joiner.overlap is None

    def move(target: TargetWorld) -> tuple[int, TransferStats]:
        assert target.transfer is not None
        return target.transfer.finish(), target.transfer.prove()

    (counter, sent), (joined, received) = at_once(lambda: move(leaver), lambda: move(joiner))
    assert counter == joined == STEPS, "the joiner learns the update counter"
    assert same(snapshot(joiner.state), expected)
    assert sent.bytes_sent == received.bytes_received >= held_bytes(live.state)


@pytest.mark.parametrize(
    "workers", [{"mode": "overlap"}, {"mode": "overlap", "transport": "tcp"}], indirect=True, ids=["memory", "network"]
)
@pytest.mark.parametrize("ahead", [True, False], ids=["ahead", "at the cutover"])
def test_in_mode_overlap_boxes_move_while_training_runs(
    workers: Workers, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, one_sided = threading.Event(), workers.config.stream.transport == "auto"
    read_beside_training = Puller._read_beside_training

    def and_say_so(puller: Puller, header: Header) -> None:
        read_beside_training(puller, header)
        read.set()

    monkeypatch.setattr(Puller, "_read_beside_training", and_say_so)
    live = trained(workers)
    shard = live.state
    assert isinstance(shard, TinyShard)
    leaver, joiner = workers.hand_over(live)
    assert leaver.transfer is leaver.overlap is not None
    assert joiner.transfer is joiner.overlap is not None
    assert joiner.rate > 0.0, "probed"
    assert (leaver.transfer.state_bytes, joiner.transfer.state_bytes) == (0, held_bytes(shard))
    for transfer in (leaver.transfer, joiner.transfer):
        transfer.start()
    leaver.transfer.attach()
    for last in (False, True):
        if ahead:
            leaver.transfer.open(last)
            assert not (last and one_sided) or read.wait(60.0)
        shard.train_step(Counting(), STEPS + last)
    steps = at_once(leaver.transfer.finish, joiner.transfer.finish)
    assert steps == (STEPS + 2, STEPS + 2)
    sent, received = at_once(leaver.transfer.prove, joiner.transfer.prove)
    assert received.bytes_received == held_bytes(shard)
    if one_sided:
        assert received.bytes_early == (received.bytes_received if ahead else 0)
        assert received.bytes_gradients == (received.bytes_received // 3 if ahead else 0)
        assert (sent.digests_checked, received.digests_checked) == (0, 3 * len(shard.parameters))
    assert isinstance(joiner.state, TinyShard)
    joiner.state.derive_weights(STEPS + 2).wait()
    assert same(snapshot(joiner.state), snapshot(shard))
    assert joiner.state.steps() == shard.steps()
    results = [each.train_step(Counting(), STEPS + 2).loss for each in (shard, joiner.state)]
    assert results[0] == results[1], "both go on alike"


@pytest.mark.parametrize(
    "workers",
    [{"mode": mode, "transport": transport} for mode in ("pause", "overlap") for transport in ("auto", "tcp")],
    indirect=True,
    ids=str,
)
def test_late_layers_move_one_after_the_other_and_free_the_old_world(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = trained(workers)
    expected = snapshot(live.state)
    monkeypatch.setattr(target_world, "agree_on_memory", lambda *_: MemoryAgreement(early=2))
    leaver, joiner = workers.hand_over(live)
    assert [len(target.late or ()) for target in (leaver, joiner)] == [LAYERS - 1] * 2, "layer 0 is early"
    assert joiner.held_bytes < held_bytes(live.state), "late layers have no moments yet"
    assert not leaver.no_way_back

    def move(target: TargetWorld) -> int:
        transfer, late = target.transfer, target.late
        assert transfer is not None
        assert late is not None
        try:
            transfer.finish()
            transfer.prove()
            transfer.release()
            return late.run().adam_step
        except BaseException:
            transfer.abort()  # as a worker does that fails
            raise

    assert at_once(lambda: move(leaver), lambda: move(joiner)) == (STEPS, STEPS)
    assert same(snapshot(joiner.state), expected)
    assert leaver.no_way_back
    assert held_bytes(joiner.state) > held_bytes(live.state), "the old world's moments are freed"


class Secretive(TinyShard):
    """Keeps a box to itself."""

    def boxes(self, chosen: LayerFilter = every_layer) -> Boxes:
        return super().boxes(chosen)[1:]


@pause
def test_a_shard_that_holds_other_pieces_than_it_says_is_refused(workers: Workers) -> None:
    live = trained(workers)

    class Engine(TinyEngine):
        def build(self, config: Any, world: Any, device: Any, *, fresh: bool) -> TinyShard:
            return Secretive(config, world, fresh)

    workers.engine = Engine()
    message = workers.message("a", live)
    with pytest.raises(RuntimeError, match="rank 0 of tp1pp1dp1 holds other pieces than the plan assumes"):
        workers.prepare(message, "a", live)


# ---- endpoints -----------------------------------------------------------------------------------------------------


def prepare_message(hosts: dict[str, str]) -> Prepare:
    return Prepare(
        epoch=0,
        generation=4,
        layout="tp1pp1dp2",
        members=["c", "a"],
        source_generation=3,
        source_layout="tp2pp1dp1",
        source_members=["a", "b"],
        store_host="h",
        store_port=1,
        hosts=hosts,
    )


TARGET = Membership(4, Layout(1, 1, 2), ("c", "a"))


@pytest.mark.parametrize(("worker", "ranks"), [("a", (0, 1)), ("b", (1, None)), ("c", (None, 0))])
def test_a_worker_knows_its_place_in_both_worlds(worker: str, ranks: tuple[Any, Any]) -> None:
    ends = TransferEndpoints(prepare_message({}), worker, None, TARGET, None)
    assert (ends.source_rank, ends.target_rank) == ranks
    assert ends.source == Membership(3, Layout(2, 1, 1), ("a", "b"))
    assert ends.peers.names[ends.me] == worker
    assert ends.places is None


def test_hosts_count_only_if_all_are_known() -> None:
    known = TransferEndpoints(prepare_message({"a": "x", "b": "y", "c": "x"}), "a", None, TARGET, None)
    assert known.places == ([("x",), ("y",)], [("x",), ("x",)])
    assert TransferEndpoints(prepare_message({"a": "x", "b": "y"}), "a", None, TARGET, None).places is None


# ---- checks --------------------------------------------------------------------------------------------------------


def test_all_that_a_rank_needs_comes_from_somewhere() -> None:
    # LS-12
    needed = [Piece("w", (0, 0), (2, 3)), Piece("v", (4,), (2,))]
    upper, lower, v = (
        Move("w", 0, 1, (0, 0), (1, 3)), Move("w", 1, 1, (1, 0), (1, 3)), Move("v", 0, 1, (4,), (2,))
    )  # fmt: skip
    check_complete(needed, RankMoves([], [upper, v], [lower]))
    for receives, copies, missing in (
        ([upper, v], [], "w"),
        ([upper, upper, v], [], "w"),
        ([upper, upper._replace(source_rank=1), v], [], "w"),
        ([upper], [lower], "v"),
        ([upper, Move("v", 0, 1, (0,), (2,))], [lower], "v"),
    ):
        with pytest.raises(PlanError, match=f"^{missing}: of the box at .* not all comes from somewhere$"):
            check_complete(needed, RankMoves([], receives, copies))


def test_boxes_are_of_the_type_that_the_plan_says() -> None:
    # LS-12
    world = Model(2, False, "bfloat16", False).world(Layout(1, 1, 1), False)
    boxes = [
        (piece, torch.zeros(piece.shape, dtype=getattr(torch, world.tensors[piece.tensor].dtype)))
        for piece in pieces(world, 0)
    ]
    check_held(boxes, world, 0)
    (piece, view), *others = boxes
    with pytest.raises(RuntimeError, match=r"^rank 0 of tp1pp1dp1 holds embedding in float32, not in bfloat16$"):
        check_held([(piece, view.float()), *others], world, 0)
    with pytest.raises(RuntimeError, match=r"holds other pieces than the plan assumes \(embedding at \(0, 0\)"):
        check_held(others, world, 0)
