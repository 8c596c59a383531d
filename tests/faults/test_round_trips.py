"""There and back at one step, through a real coordinator and real workers: what goes on is what would have without."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from checkpoint_files import assert_same, newest, tensors
from mixtures import BIASES, MIXTURE
from worker_lab import WorkerLab, job

from liver_slurm.config.schema import CheckpointSection, DataSection, JobConfig, StreamSection
from liver_slurm.config.validation import ValidationSection
from liver_slurm.rundir.metrics import read_metrics
from liver_slurm.rundir.validation import read_validations

STEPS, AT = 16, 8
SAVED = CheckpointSection(at_end=True)


def trained(
    config: JobConfig, *resizes: str, standbys: int = 0
) -> tuple[dict[int, float], Path, list[tuple[int, str]]]:
    """Losses, last checkpoint, and (step, layout) of each resize of a run."""
    lab = WorkerLab(replace(config, checkpoint=SAVED))
    try:
        lab.begin(*(part for text in resizes for part in ("--resize", text)))
        for index in range(standbys):
            lab.real_worker(f"standby-{index}")
        losses = lab.finish()
        committed = [(event["cutover_step"], event["to"]) for event in lab.events("reconfiguration_committed")]
        return losses, newest(lab.run_dir.checkpoints), committed
    finally:
        lab.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, float], Path]:
    losses, checkpoint, _ = trained(job(tmp_path_factory.mktemp("undisturbed"), steps=STEPS))
    return losses, checkpoint


NEAR, FAR = ("tp2pp1dp1", "tp1pp1dp2"), ("tp1pp1dp4", "tp1pp2dp2", "tp1pp1dp2")
LONG = ("tp1cp2pp1dp1", "tp1cp2pp1dp2", "tp2cp2pp1dp1", "tp1cp2pp2dp1", "tp1pp1dp2")
"""With context parallelism."""


@pytest.mark.parametrize(
    ("layouts", "mode", "transport"),
    [
        (NEAR, "pause", "auto"),
        (FAR, "overlap", "auto"),
        (LONG, "overlap", "auto"),
        (NEAR, "flat", "auto"),
        *(
            pytest.param(*each, "auto", marks=pytest.mark.long)
            for each in ((NEAR, "overlap"), (FAR, "pause"), (LONG, "pause"), (FAR, "flat"), (LONG, "flat"))
        ),
        *(pytest.param(*each, "ucx", marks=pytest.mark.ucx) for each in ((NEAR, "pause"), (FAR, "overlap"))),
    ],
    ids=str,
)
def test_a_round_trip_at_one_step_is_bitwise(
    layouts: tuple[str, ...],
    mode: Literal["overlap", "pause", "flat"],
    transport: Literal["auto", "ucx"],
    tmp_path: Path,
    undisturbed: tuple[dict[int, float], Path],
) -> None:
    # LS-3, LS-4
    standbys = 0 if layouts is NEAR else 2
    losses, checkpoint, committed = trained(
        job(tmp_path, steps=STEPS, stream=StreamSection(mode=mode, transport=transport)),
        *(f"{AT}:{layout}" for layout in layouts),
        standbys=standbys,
    )
    assert committed == [(AT, layout) for layout in layouts]
    assert losses == undisturbed[0]
    assert_same(checkpoint, undisturbed[1])


SGD = {"optimizer": "sgd", "sgd_momentum": 0.8, "lr": 0.05}
AVERAGED = {"ema_decay": 0.9}
ROUNDED = {"moments_precision": "bf16", "ema_decay": 0.99}
STATE = {
    tuple(SGD): {"momentum_buffer"},
    tuple(AVERAGED): {"exp_avg", "exp_avg_sq", "ema"},
    tuple(ROUNDED): {"exp_avg", "exp_avg_sq", "ema"},
}
"""What is kept of each element."""


@pytest.mark.parametrize(
    ("train", "mode", "distributed"),
    [
        (ROUNDED, "overlap", True),
        pytest.param(AVERAGED, "overlap", True, marks=pytest.mark.slow),
        pytest.param(ROUNDED, "flat", True, marks=pytest.mark.slow),
        *(
            pytest.param(train, mode, distributed, marks=pytest.mark.long)
            for train in (SGD, AVERAGED, ROUNDED)
            for mode, distributed in (("overlap", False), ("pause", True), ("pause", False))
        ),
        pytest.param(SGD, "overlap", True, marks=pytest.mark.long),
        pytest.param(AVERAGED, "flat", True, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_round_trip_of_other_state_is_bitwise(
    train: dict[str, Any], mode: Literal["overlap", "pause", "flat"], distributed: bool, tmp_path: Path
) -> None:
    # LS-3, LS-4
    def run(name: str, *resizes: str) -> tuple[dict[int, float], Path]:
        (tmp_path / name).mkdir()
        config = job(tmp_path / name, steps=STEPS, stream=StreamSection(mode=mode))
        config = replace(config, train=replace(config.train, distributed_optimizer=distributed, **train))
        losses, checkpoint, committed = trained(config, *resizes, standbys=2 if resizes else 0)
        assert [layout for _, layout in committed] == [resize.partition(":")[2] for resize in resizes]
        return losses, checkpoint

    changed = run("changed", *(f"{AT}:{layout}" for layout in FAR))
    alone = run("alone")
    assert changed[0] == alone[0]
    assert_same(changed[1], alone[1])
    stored = tensors(alone[1])
    assert STATE[tuple(train)] <= {name.rpartition("@")[2] for name in stored}
    wide = {name.rpartition("@")[2]: one.dtype == torch.float32 for name, one in stored.items()}
    assert sorted(kind for kind in wide if not wide[kind]) == (["exp_avg", "exp_avg_sq"] if train is ROUNDED else [])
    assert alone[0][STEPS] < alone[0][1]


def muon(config: JobConfig, mode: Literal["overlap", "pause", "flat"] = "overlap") -> JobConfig:
    """The job with Muon, and a learning rate with which it learns in a few steps."""
    train = replace(config.train, optimizer="muon", distributed_optimizer=False, lr=0.01)
    return replace(config, train=train, stream=StreamSection(mode=mode))


CUT = ("tp2pp1dp1", "tp2pp1dp2", "tp1pp2dp2", "tp1pp1dp2")
"""With matrices cut, whole, and in other stages."""


@pytest.fixture(scope="module")
def undisturbed_muon(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, float], Path]:
    losses, checkpoint, _ = trained(muon(job(tmp_path_factory.mktemp("undisturbed"), steps=STEPS)))
    assert any(name.endswith("@muon_momentum") for name in tensors(checkpoint))
    assert losses[STEPS] < losses[1]
    return losses, checkpoint


@pytest.mark.parametrize(
    "mode", ["overlap", *(pytest.param(mode, marks=pytest.mark.long) for mode in ("pause", "flat"))]
)
def test_a_round_trip_with_muon_is_bitwise(
    mode: Literal["overlap", "pause", "flat"], tmp_path: Path, undisturbed_muon: tuple[dict[int, float], Path]
) -> None:
    # LS-3, LS-4
    config = muon(job(tmp_path, steps=STEPS), mode)
    losses, checkpoint, committed = trained(config, *(f"{AT}:{layout}" for layout in CUT), standbys=2)
    assert committed == [(AT, layout) for layout in CUT]
    assert losses == undisturbed_muon[0]
    assert_same(checkpoint, undisturbed_muon[1])


@pytest.mark.slow
def test_every_layout_trains_alike_with_muon(tmp_path: Path, undisturbed_muon: tuple[dict[int, float], Path]) -> None:
    layouts = (*CUT, "tp1cp2pp2dp1", "tp1pp1dp3")
    resizes = [f"{2 * number + 2}:{layout}" for number, layout in enumerate(layouts)]
    losses, _, committed = trained(muon(job(tmp_path, steps=STEPS)), *resizes, standbys=2)
    assert [layout for _, layout in committed] == [*layouts]
    assert losses == {step: pytest.approx(loss, rel=1e-6) for step, loss in undisturbed_muon[0].items()}


@pytest.mark.long
def test_every_layout_drops_and_rounds_alike(tmp_path: Path, undisturbed: tuple[dict[int, float], Path]) -> None:
    """With all activations computed again in the run that changes, and with none in the other."""

    def run(name: str, recompute: Literal["none", "full"], *resizes: str) -> dict[int, float]:
        (tmp_path / name).mkdir()
        config = job(tmp_path / name, steps=STEPS)
        model = replace(config.model, hidden_dropout=0.2, attention_dropout=0.1)
        train = replace(config.train, moments_precision="bf16", recompute=recompute)
        losses, _, committed = trained(replace(config, model=model, train=train), *resizes, standbys=2 * bool(resizes))
        assert len(committed) == len(resizes)
        return losses

    resizes = (f"{2 * number + 2}:{layout}" for number, layout in enumerate((*LONG, "tp2pp1dp1")))
    changed, alone = run("changed", "full", *resizes), run("alone", "none")
    assert changed == {step: pytest.approx(loss, rel=1e-6) for step, loss in alone.items()}
    assert alone[1] != undisturbed[0][1]


@pytest.mark.slow
def test_every_layout_trains_alike_in_fp8(tmp_path: Path) -> None:
    """But for bf16's rounding, which depends on how a layout sums up."""

    def run(name: str, *resizes: str, fp8: bool = True) -> dict[int, float]:
        (tmp_path / name).mkdir()
        config = job(tmp_path / name, steps=10)
        train = replace(config.train, precision="bf16", fp8=fp8, seq_length=32)
        config = replace(config, model=replace(config.model, ffn_hidden_size=64), train=train)
        losses, _, committed = trained(config, *resizes, standbys=2 * bool(resizes))
        assert len(committed) == len(resizes)
        return losses

    changed, alone = run("changed", "2:tp2pp1dp1", "4:tp1cp2pp1dp2", "6:tp1pp2dp1"), run("alone")
    assert changed == {step: pytest.approx(loss, rel=1e-4) for step, loss in alone.items()}
    in_bf16 = run("bf16", fp8=False)
    assert all(loss != in_bf16[step] for step, loss in alone.items()), "else nothing was computed in FP8"
    assert alone == pytest.approx(in_bf16, rel=1e-2)


def test_every_layout_trains_alike(tmp_path: Path, undisturbed: tuple[dict[int, float], Path]) -> None:
    resizes = [f"{2 * number + 2}:{layout}" for number, layout in enumerate((*LONG, "tp2pp1dp1"))]
    losses, _, committed = trained(job(tmp_path, steps=STEPS), *resizes, standbys=2)
    assert [layout for _, layout in committed] == [*LONG, "tp2pp1dp1"]
    assert losses == {step: pytest.approx(loss, rel=1e-6) for step, loss in undisturbed[0].items()}


DIVIDED = (
    *("tp1pp1ep2dp4", "tp1pp1ep4dp4", "tp1pp2ep2dp2", "tp1cp2pp1ep4dp2", "tp2pp1ep2dp2", "tp1cp2pp1ep2dp1"),
    *("tp2pp1ep2etp1dp2", "tp2pp1etp1dp1", "tp2cp2pp1ep4etp1dp1", "tp1pp1etp2dp4"),
)
"""With expert parallelism, and experts that are cut otherwise than all else."""


@pytest.mark.parametrize(
    ("mode", "distributed"),
    [
        ("overlap", True),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (("overlap", False), ("pause", True), ("pause", False), ("flat", True))
        ),
    ],
)
def test_experts_go_there_and_back_bitwise(
    mode: Literal["overlap", "pause", "flat"], distributed: bool, tmp_path: Path
) -> None:
    """Divided, cut, whole where all else is cut, and divided again: in the same layout, the same is trained on."""

    def run(name: str, *resizes: str) -> tuple[dict[int, float], Path]:
        (tmp_path / name).mkdir()
        config = job(tmp_path / name, steps=7, stream=StreamSection(mode=mode))
        config = replace(config, train=replace(config.train, distributed_optimizer=distributed))
        model, elastic = replace(config.model, **MIXTURE, **BIASES), replace(config.elastic, initial="tp1pp1ep2dp2")
        elastic = replace(elastic, layouts=("tp1pp1ep2dp2", "tp2pp1dp1", "tp2pp1ep2etp1dp1"))
        losses, checkpoint, committed = trained(replace(config, model=model, elastic=elastic), *resizes)
        assert [layout for _, layout in committed] == [resize.partition(":")[2] for resize in resizes]
        return losses, checkpoint

    alone = run("alone")
    changed = run("changed", "4:tp2pp1dp1", "4:tp2pp1ep2etp1dp1", "4:tp1pp1ep2dp2")
    assert changed[0] == alone[0]
    assert_same(changed[1], alone[1])
    (biases,) = (each for name, each in tensors(alone[1]).items() if name.endswith("router.expert_bias"))
    assert biases.any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "distributed", "biased"),
    [
        ("adam", True, True),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (("adam", False, False), ("adam", False, True), ("muon", False, True))
        ),
    ],
)
def test_mixtures_of_experts_train_alike_in_every_layout(
    optimizer: Literal["adam", "muon"], distributed: bool, biased: bool, tmp_path: Path
) -> None:
    """Their load is balanced alike, too: with and without replicas that have a microbatch less than others."""

    def run(name: str, *resizes: str, standbys: int) -> tuple[list[tuple[float, float]], torch.Tensor | None]:
        (tmp_path / name).mkdir()
        config = job(tmp_path / name, steps=2 * (len(DIVIDED) + len(FAR)) + 4)
        config = replace(
            config,
            checkpoint=SAVED,
            model=replace(config.model, **MIXTURE, **(BIASES if biased else {})),
            train=replace(config.train, optimizer=optimizer, global_batch_size=5, distributed_optimizer=distributed),
        )
        lab = WorkerLab(config)
        try:
            lab.begin(*(part for text in resizes for part in ("--resize", text)))
            for index in range(standbys):
                lab.real_worker(f"standby-{index}")
            lab.finish()
            assert len(lab.events("reconfiguration_committed")) == len(resizes)
            stored = tensors(newest(lab.run_dir.checkpoints))
            biases = next((stored[name] for name in stored if name.endswith("router.expert_bias")), None)
            return [(line.loss, line.grad_norm) for line in read_metrics(lab.run_dir.metrics)], biases
        finally:
            lab.close()

    alone, biases = run("alone", "1:tp1pp1dp1", standbys=0)
    changed, moved = run(
        "changed", *(f"{2 * number + 2}:{layout}" for number, layout in enumerate((*DIVIDED, *FAR))), standbys=2
    )
    assert [loss for loss, _ in changed] == [pytest.approx(loss, rel=1e-6) for loss, _ in alone]
    assert [norm for _, norm in changed] == [pytest.approx(norm, rel=1e-4) for _, norm in alone]
    assert (biases is not None) == biased
    if biases is not None and moved is not None:
        assert torch.equal(moved, biases), "as many tokens went to each expert in each layout"
        assert biases.any()


TURNS = (
    "tp1pp4vpp2dp1",
    "tp1pp2dp2",
    "tp1pp2vpp4dp2",
    "tp2pp2vpp2dp1",
    "tp1cp2pp2vpp2dp1",
    "tp1pp4dp1",
    "tp1pp2vpp2dp1",
)
"""With stages of several chunks, whose layers lie apart."""


def interleaved(
    folder: Path, *resizes: str, mode: Literal["overlap", "pause"] = "overlap", initial: str = "tp1pp2vpp2dp1"
) -> tuple[dict[int, float], dict[int, float], Path]:
    """Losses, validation losses and last checkpoint of a run of a model of eight layers."""
    folder.mkdir()
    config = job(folder, steps=2 * len(TURNS) + 4, stream=StreamSection(mode=mode))
    config = replace(
        config,
        model=replace(config.model, num_layers=8, hidden_dropout=0.1, attention_dropout=0.1),
        elastic=replace(config.elastic, layouts=(initial,), initial=initial),
        validation=ValidationSection(provider="paced_samples:provide", every=3, samples=5),
        checkpoint=SAVED,
    )
    lab = WorkerLab(config)
    try:
        lab.begin(*(part for text in resizes for part in ("--resize", text)))
        for index in range(2 if resizes else 0):
            lab.real_worker(f"standby-{index}")
        losses = lab.finish()
        committed = [event["to"] for event in lab.events("reconfiguration_committed")]
        assert committed == [resize.partition(":")[2] for resize in resizes]
        validated = {line.step: line.loss for line in read_validations(lab.run_dir.validations)}
        assert list(validated) == list(range(3, config.train.steps + 1, 3))
        return losses, validated, newest(lab.run_dir.checkpoints)
    finally:
        lab.close()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["overlap", pytest.param("pause", marks=pytest.mark.long)])
def test_chunks_go_there_and_back_bitwise(mode: Literal["overlap", "pause"], tmp_path: Path) -> None:
    # LS-3, LS-4
    alone = interleaved(tmp_path / "alone", mode=mode)
    changed = interleaved(tmp_path / "changed", *(f"{AT}:{layout}" for layout in TURNS), mode=mode)
    assert changed[:2] == alone[:2]
    assert_same(changed[2], alone[2])


@pytest.mark.long
def test_interleaved_stages_train_alike(tmp_path: Path) -> None:
    """And validate alike, with fewer samples than they take at a time."""
    alone = interleaved(tmp_path / "alone", initial="tp1pp1dp2")
    changed = interleaved(
        tmp_path / "changed",
        *(f"{2 * number + 2}:{layout}" for number, layout in enumerate(TURNS)),
        initial="tp1pp1dp2",
    )
    for found, expected in zip(changed[:2], alone[:2], strict=True):
        assert found == {step: pytest.approx(loss, rel=1e-6) for step, loss in expected.items()}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> DataSection:
    """A blend of short documents, whole and kept apart in each sample."""
    folder, paths = tmp_path_factory.mktemp("texts"), []
    for name, first in (("small", 65), ("large", 97)):
        documents = (chr(first + number % 7) * (1 + number * 5 % 11) for number in range(60))
        paths.append(folder / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return DataSection(
        paths=tuple(map(str, paths)),
        weights=(0.7, 0.3),
        reset_position_ids=True,
        reset_attention_mask=True,
        eod_mask_loss=True,
        packing="best_fit",
        packing_window=16,
    )


@pytest.mark.slow
def test_a_blend_of_packed_documents_in_growing_batches_trains_alike(tmp_path: Path, texts: DataSection) -> None:
    """In every kind of layout, and what one world has trained the next one goes on from, sample by sample."""

    def run(folder: str, *resizes: str) -> tuple[dict[int, float], list[int], list[int]]:
        config = job(tmp_path / folder, steps=STEPS, data=texts)
        config = replace(
            config,
            model=replace(config.model, vocab_size=257),
            train=replace(
                config.train, rampup_batch_size=(2, 2, 40), z_loss_coeff=1e-3, no_weight_decay=("embedding.*",)
            ),
        )
        (tmp_path / folder).mkdir()
        lab = WorkerLab(config)
        try:
            lab.begin(*(part for text in resizes for part in ("--resize", text)))
            for index in range(2 if resizes else 0):
                lab.real_worker(f"standby-{index}")
            losses = lab.finish()
            assert len(lab.events("reconfiguration_committed")) == len(resizes)
            lines = list(read_metrics(lab.run_dir.metrics))
            return losses, [line.consumed_samples for line in lines], [line.tokens for line in lines]
        finally:
            lab.close()

    layouts = (*LONG, "tp1pp1dp4", "tp2pp1dp1")
    changed = run("changed", *(f"{2 * number + 2}:{layout}" for number, layout in enumerate(layouts)))
    alone = run("alone", "1:tp1pp1dp1")
    assert changed[0] == {step: pytest.approx(loss, rel=1e-6) for step, loss in alone[0].items()}
    assert changed[1:] == alone[1:]
    assert alone[1][:5] == [2, 4, 6, 8, 12], "of 2, and after 8 samples of 4"
    sizes = [after - before for before, after in pairwise([0, *alone[1]])]
    assert all(0 < counted < 16 * size for counted, size in zip(alone[2], sizes, strict=True))
