"""Checkpoints of a small world whose ranks are threads: what one rank cannot do harms that checkpoint and no other."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_files import tensors
from tiny_engine import LAYERS, WIDTH, tiny_spec

from liver_slurm.base.errors import BadInput
from liver_slurm.config.train import TrainSection
from liver_slurm.engine import checkpoint_files, checkpoint_reading
from liver_slurm.engine.checkpoint import Checkpointer, Written, load_checkpoint, load_start, own_share
from liver_slurm.engine.checkpoint_files import CheckpointError, gather, refuse_share
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.reshard.tensors import Piece
from liver_slurm.rundir.checkpoint_index import DamagedError
from liver_slurm.rundir.checkpoints import checkpoint_path, checkpoint_step, list_checkpoints, read_meta, verify

PATIENCE = 120.0


class Shard:
    """Data parallel replicas of a small model whose state is all one number; moments are halved among them."""

    def __init__(self, rank: int, value: float, dp: int = 2) -> None:
        layout = Layout(1, 1, dp)
        members = tuple("abcdefgh"[:dp])
        self.world = SimpleNamespace(rank=rank, layout=layout, membership=Membership(1, layout, members))
        self.spec = tiny_spec()
        self.step = 0
        rows = WIDTH // dp
        weight = torch.full((LAYERS, WIDTH, WIDTH), value)
        self._boxes = [(Piece("layer", (0, 0, 0), (LAYERS, WIDTH, WIDTH)), weight)]
        for name in ("@exp_avg", "@exp_avg_sq"):
            part = torch.full((LAYERS, rows, WIDTH), value)
            self._boxes.append((Piece("layer" + name, (0, rank * rows, 0), (LAYERS, rows, WIDTH)), part))

    def boxes(self) -> list[tuple[Piece, torch.Tensor]]:
        return self._boxes

    def fill(self, value: float) -> None:
        for _, view in self._boxes:
            view.fill_(value)
        self.step = int(value)

    def steps(self) -> set[int]:
        return {self.step}

    def set_step(self, step: int) -> None:
        self.step = step


class Ranks:
    """The checkpointers of a world's ranks."""

    def __init__(self, folder: Path, keep: int = 0, dp: int = 2, **options: Any) -> None:
        self.folder, self.fails = folder, [False] * dp
        self.shards = [Shard(rank, 0.0, dp) for rank in range(dp)]
        self.checkpointers = [
            Checkpointer(
                shard,  # type: ignore[arg-type]
                folder,
                keep,
                asynchronous=True,
                train=TrainSection(global_batch_size=4),
                on_write=lambda rank=rank: self._fail(rank),
                **options,
            )
            for rank, shard in enumerate(self.shards)
        ]

    def _fail(self, rank: int) -> None:
        if self.fails[rank]:
            self.fails[rank] = False
            raise OSError(122, "Disk quota exceeded")

    def save(self, step: int) -> list[Written]:
        """What each rank says of the checkpoint of this step, whose values are all the step."""
        said: list[Written | None] = [None] * len(self.shards)
        for rank, (shard, checkpointer) in enumerate(zip(self.shards, self.checkpointers, strict=True)):
            shard.fill(float(step))
            checkpointer.save(step, lambda written, rank=rank: said.__setitem__(rank, written))
        for checkpointer in self.checkpointers:
            checkpointer.wait()
        assert None not in said, "each rank says how it ended"
        return said  # type: ignore[return-value]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def saved(folder: Path) -> list[int]:
    return [checkpoint_step(path) for path in list_checkpoints(folder)]


def assert_holds(folder: Path, step: int) -> None:
    """The checkpoint is whole, has the step's values, and torch's own tools read the same."""
    path = checkpoint_path(folder, step)
    verify(path)
    shard = Shard(0, -1.0, dp=1)
    assert load_checkpoint(shard, path) == step  # type: ignore[arg-type]
    assert shard.steps() == {step}
    assert all(bool((view == step).all()) for _, view in shard.boxes())
    assert all(bool((value == step).all()) for value in tensors(path).values())
    assert not [name for name in os.listdir(path) if "receipt" in name]


def test_each_rank_writes_its_share_and_any_layout_reads_it(folder: Path) -> None:
    # LS-25
    written = Ranks(folder).save(10)
    assert [one.error for one in written] == ["", ""]
    assert_holds(folder, 10)
    assert read_meta(checkpoint_path(folder, 10))["consumed_samples"] == 10 * 4
    loaded = Shard(1, -1.0, dp=4)
    load_checkpoint(loaded, checkpoint_path(folder, 10))  # type: ignore[arg-type]
    assert all(bool((view == 10).all()) for _, view in loaded.boxes())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_cannot_begin_harms_no_later_checkpoint(folder: Path, rank: int) -> None:
    # LS-25
    ranks = Ranks(folder)
    ranks.fails[rank] = True
    errors = [one.error for one in ranks.save(10)]
    assert "Disk quota exceeded" in errors[rank]
    assert "Disk quota exceeded" in errors[0], "rank 0 never calls it complete"
    assert saved(folder) == []
    for step in (20, 30):
        assert [one.error for one in ranks.save(step)] == ["", ""]
        assert_holds(folder, step)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000020", "step-00000030"]


def test_rank_0_gives_up_when_nothing_comes_any_more_and_says_whose(folder: Path) -> None:
    ranks = Ranks(folder, patience=0.5)
    silent = ranks.checkpointers[1]
    release = threading.Event()
    silent._on_write = release.wait  # type: ignore[assignment]
    said: list[Written] = []
    for checkpointer in ranks.checkpointers:
        checkpointer.save(10, said.append)
    ranks.checkpointers[0].wait()
    assert "nothing has come from rank 1 (b)" in said[0].error
    release.set()
    assert [one.error for one in ranks.save(20)] == ["", ""]
    assert saved(folder) == [20]
    assert_holds(folder, 20)


def test_a_rank_that_leaves_is_not_waited_for(folder: Path) -> None:
    ranks = Ranks(folder, patience=PATIENCE)
    leaving = ranks.checkpointers[1]
    leaving._on_write = threading.Event().wait  # type: ignore[assignment]
    said: list[Written] = []
    for checkpointer in ranks.checkpointers:
        checkpointer.save(10, said.append)
    leaving.abandon()
    ranks.checkpointers[0].wait()
    assert [one.error for one in said] == ["rank 1 (b): it has left"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whatever_ends_a_writer_it_says_so(folder: Path) -> None:
    class Odd(BaseException):
        pass

    ranks = Ranks(folder)

    def end() -> None:
        raise Odd

    for checkpointer in ranks.checkpointers:
        checkpointer._on_write = end
    assert all(one.error for one in ranks.save(10)), "as torch's CheckpointException did, which is no Exception"


def test_one_that_is_complete_is_so_though_an_old_one_cannot_be_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = Ranks(folder, keep=1)
    ranks.save(10)
    monkeypatch.setattr(
        "shutil.rmtree", lambda path, onerror: onerror(None, str(path), (None, OSError(16, "busy"), None))
    )
    first, _ = ranks.save(20)
    assert first.error == ""
    assert first.left.endswith(": busy")
    assert saved(folder) == [20]


def test_a_flipped_byte_is_not_trained_on(folder: Path) -> None:
    # LS-25
    Ranks(folder).save(10)
    file = checkpoint_path(folder, 10) / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)
    with pytest.raises(BadInput, match=r"__0_0\.distcp is damaged: bytes \d+ to \d+ are not those that were written"):
        load_checkpoint(Shard(0, 0.0), checkpoint_path(folder, 10))  # type: ignore[arg-type]


def test_a_model_of_another_shape_is_refused(folder: Path) -> None:
    Ranks(folder).save(10)
    shard = Shard(0, 0.0)
    shard._boxes = [(Piece("other", (0,), (1,)), torch.zeros(1))]
    with pytest.raises(BadInput, match="does not fit this model: it has no other"):
        load_checkpoint(shard, checkpoint_path(folder, 10))  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", [False, True])
def test_a_run_starts_from_weights_with_or_without_moments(folder: Path, optimizer: bool) -> None:
    Ranks(folder).save(10)
    shard = Shard(1, 0.0)
    load_start(shard, checkpoint_path(folder, 10), optimizer)  # type: ignore[arg-type]
    assert shard.steps() == {10 if optimizer else 0}
    for piece, view in shard.boxes():
        assert bool((view == (10 if optimizer or "@" not in piece.tensor else 0)).all()), piece


def test_weights_and_masters_of_another_precision_come_from_what_there_is(folder: Path) -> None:
    Ranks(folder).save(10)
    shard, layer = Shard(0, 0.0), (LAYERS, WIDTH, WIDTH)
    weight, master = torch.zeros(layer, dtype=torch.bfloat16), torch.zeros(layer)
    shard._boxes = [(Piece("layer", (0, 0, 0), layer), weight), (Piece("layer@master", (0, 0, 0), layer), master)]
    load_start(shard, checkpoint_path(folder, 10), optimizer=False)  # type: ignore[arg-type]
    assert bool((weight == 10).all())
    assert bool((master == 10).all())


def averaged(shard: Shard) -> dict[str, torch.Tensor]:
    """The shard's tensors by name, once it keeps moving averages of its weights."""
    layer = (LAYERS, WIDTH, WIDTH)
    shard._boxes.append((Piece("layer@ema", (0, 0, 0), layer), torch.full(layer, -1.0)))
    return {piece.tensor: view for piece, view in shard.boxes()}


def test_averages_begin_with_the_weights_of_a_checkpoint_without_them(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Ranks(folder).save(10)
    shard = Shard(0, 0.0)
    found = averaged(shard)
    load_checkpoint(shard, checkpoint_path(folder, 10))  # type: ignore[arg-type]
    assert bool((found["layer@ema"] == 10).all())
    assert "has no moving average of the weights, so that begins with its weights" in caplog.text
    with pytest.raises(BadInput, match=r"has no moving average of its weights: .* train\.ema_decay = 0"):
        load_checkpoint(shard, checkpoint_path(folder, 10), averages=True)  # type: ignore[arg-type]


@pytest.fixture
def with_averages(folder: Path) -> Path:
    """A checkpoint of weights of 10 and averages of 9."""
    ranks = Ranks(folder, dp=1)
    averages = averaged(ranks.shards[0])["layer@ema"]
    (checkpointer,) = ranks.checkpointers
    ranks.shards[0].fill(10.0)
    averages.fill_(9.0)
    checkpointer.save(10, lambda _: None)
    checkpointer.wait()
    return checkpoint_path(folder, 10)


def test_averages_are_loaded_for_themselves_or_in_place_of_the_weights(
    with_averages: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = Shard(0, 0.0)
    found = averaged(shard)
    load_checkpoint(shard, with_averages)  # type: ignore[arg-type]
    assert [float(found[name].mean()) for name in ("layer", "layer@ema")] == [10, 9]
    load_checkpoint(shard, with_averages, averages=True)  # type: ignore[arg-type]
    assert [float(found[name].mean()) for name in ("layer", "layer@ema", "layer@exp_avg")] == [9, 9, 10]
    assert caplog.text == ""
    plain = Shard(1, 0.0)
    load_checkpoint(plain, with_averages)  # type: ignore[arg-type]
    assert all(bool((view == 10).all()) for _, view in plain.boxes()), "who keeps none reads none"


@pytest.mark.parametrize("optimizer", [False, True])
def test_a_run_starts_with_averages_of_what_it_loads(with_averages: Path, optimizer: bool) -> None:
    shard = Shard(0, 0.0)
    found = averaged(shard)
    load_start(shard, with_averages, optimizer)  # type: ignore[arg-type]
    assert float(found["layer@ema"].mean()) == (9 if optimizer else 10)


# ---- checkpoints of older versions ---------------------------------------------------------------------------------


def older(folder: Path, step: int) -> Path:
    """As versions wrote it that had torch plan and write all of it."""
    path = checkpoint_path(folder, step)
    state = {
        name: torch.full((LAYERS, WIDTH, WIDTH), float(step)) for name in ("layer", "layer@exp_avg", "layer@exp_avg_sq")
    }
    dcp.save(state, storage_writer=dcp.FileSystemWriter(path, thread_count=1), no_dist=True)
    (path / "liver.json").write_text(f'{{"format": 1, "step": {step}, "layout": "tp1pp1dp1", "adam_step": {step}}}')
    return path


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_checkpoints_of_older_versions_are_read(folder: Path) -> None:
    path = older(folder, 7)
    verify(path)
    shard = Shard(1, 0.0)
    assert load_checkpoint(shard, path) == 7  # type: ignore[arg-type]
    assert all(bool((view == 7).all()) for _, view in shard.boxes())


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 7 // 10])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", [empty, cut, Path.unlink])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
def test_damage_of_older_ones_is_named(folder: Path, name: str, kind: Callable[[Path], None]) -> None:
    path = older(folder, 7)
    kind(path / name)
    with pytest.raises(DamagedError, match=name):
        verify(path)


NO_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("error", [MemoryError(), NO_MEMORY, EOFError()])
@pytest.mark.parametrize("with_digests", [True, False])
def test_only_damage_is_called_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, with_digests: bool
) -> None:
    """Where there is no memory, another checkpoint helps as little as restoring this one."""
    path = Ranks(folder).save(7)[0].path if with_digests else older(folder, 7)

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint_reading.torch, "load", fails)
    damage = isinstance(error, EOFError) and not with_digests
    with pytest.raises(BadInput if damage else type(error), match=": EOFError$" if damage else None):
        load_checkpoint(Shard(1, 0.0), path)  # type: ignore[arg-type]


class Executed:
    """What a stranger would put into a pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nothing_in_a_checkpoint_is_executed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = older(folder, 7)
    monkeypatch.chdir(folder)
    (path / ".metadata").write_bytes(pickle.dumps(Executed()))
    with pytest.raises(DamagedError, match=r"it names posix\.system"):
        verify(path)
    assert not (folder / "executed").exists()


# ---- shares and receipts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["tp1pp1dp1", "tp1pp1dp3", "tp2pp1dp2", "tp1pp2dp2"])
@pytest.mark.parametrize("split", [True, False])
def test_each_piece_is_written_by_one_of_its_replicas(layout: str, split: bool) -> None:
    world = Layout.parse(layout)
    written: dict[tuple[int, Piece], int] = {}
    for rank in range(world.size):
        place = world.coordinates(rank)
        pieces = [(Piece("tied", (place.tp,), (1,)), 400)]
        pieces += [(Piece(f"w{place.pp}", (place.tp, n), (1, 1)), 100 * n) for n in range(1, 8)]
        moments = [place.dp] if split else range(world.dp)
        pieces += [(Piece(f"w{place.pp}@exp_avg", (place.tp, n), (1, 1)), 100) for n in moments]
        for number in own_share(pieces, world, rank, {"tied"}, split, set()):
            written[place.tp, pieces[number][0]] = written.get((place.tp, pieces[number][0]), 0) + 1
    assert set(written.values()) == {1}
    each = 1 + world.pp * (7 + world.dp)  # the tied weight once, by the first stage
    assert len(written) == world.tp * each


def test_shares_are_of_like_size() -> None:
    world = Layout(1, 1, 4)
    pieces = [(Piece("w", (n,), (1,)), 10) for n in range(100)]
    assert [len(own_share(pieces, world, rank, set(), split=True, experts=set())) for rank in range(4)] == [
        25,
        25,
        25,
        25,
    ]


def test_a_damaged_receipt_is_no_share(tmp_path: Path) -> None:
    (tmp_path / ".receipt-000000").write_bytes(b"\xc1")
    with pytest.raises(CheckpointError, match="is damaged"):
        gather(tmp_path, {0: "a"}, PATIENCE)


def test_a_share_that_fails_frees_its_space(tmp_path: Path) -> None:
    (tmp_path / "__1_0.distcp").write_bytes(b"half")
    refuse_share(tmp_path, 1, "no space")
    assert not (tmp_path / "__1_0.distcp").exists()
    with pytest.raises(CheckpointError, match=r"rank 1 \(b\): no space"):
        gather(tmp_path, {0: "a", 1: "b"}, PATIENCE)


def test_a_slow_disk_is_waited_for_as_long_as_something_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoint_files.time, "sleep", lambda _seconds: grow())

    def grow() -> None:
        now[0] += 50
        with (tmp_path / "__1_0.distcp").open("ab") as stream:
            stream.write(b"x" if now[0] < 1000 else b"")

    with pytest.raises(CheckpointError, match="nothing has come from rank 0"):
        gather(tmp_path, {0: "a", 1: "b"}, PATIENCE, clock=lambda: now[0])
    assert 1000 < now[0] <= 1000 + PATIENCE + 100


def test_a_receipt_that_gets_its_name_while_rank_0_looks_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen once in a whole suite: the folder was listed, the file renamed, and then asked for its length."""
    listed = os.scandir

    @contextmanager
    def renamed_meanwhile(folder: Path) -> Iterator[list[os.DirEntry[str]]]:
        with listed(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        (tmp_path / "..receipt-000001.fresh").rename(tmp_path / ".receipt-000001")
        yield found

    (tmp_path / "..receipt-000001.fresh").write_bytes(b"12345")
    (tmp_path / "__0_0.distcp").write_bytes(b"123")
    monkeypatch.setattr(checkpoint_files.os, "scandir", renamed_meanwhile)
    assert checkpoint_files._bytes_in(tmp_path) == 3
