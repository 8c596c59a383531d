"""Checkpoints of plain megatron-core, in and out: the same logits, and the same further step, in any layout."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_files import tensors
from megatron_lm import EPSILON, LR, MODELS, OPTIMIZERS, SEQUENCE, arguments

from liver_slurm.config.schema import DataSection, JobConfig, ModelSection, TrainSection
from liver_slurm.engine.torch_dist.exporting import export_model
from liver_slurm.engine.torch_dist.importing import import_model
from liver_slurm.rundir.checkpoints import read_meta

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE = 600.0
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONPATH": str(ROOT / "tests" / "support"),
}
LAYOUTS = ("tp1pp1", "tp2pp1", "tp1pp2")
CLOSE = 1e-5


def run(script: str, *ranks: tuple[object, ...], logs: Path) -> None:
    """Run a script once for each rank, and wait for all."""
    paths = [logs / f"{script}-{number}.log" for number in range(len(ranks))]
    processes = []
    try:
        for rank, path in zip(ranks, paths, strict=True):
            with path.open("w") as stream:
                command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, rank)]
                processes.append(subprocess.Popen(command, stdout=stream, stderr=stream, env=ENVIRONMENT))
        codes = [process.wait(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * len(ranks), "\n".join(f"==== {path.name}\n{path.read_text()[-3000:]}" for path in paths)


def theirs(folder: Path, ranks: int, *orders: str) -> None:
    run("megatron_lm_worker.py", *((rank, ranks, folder, *orders) for rank in range(ranks)), logs=folder)


def job(imported: Path) -> JobConfig:
    """A job of the model that was imported."""
    train = TrainSection(steps=9, seq_length=SEQUENCE, global_batch_size=2, lr=LR, adam_eps=EPSILON)
    model = ModelSection(**read_meta(imported)["model"])
    return JobConfig(model=model, data=DataSection(paths=("nowhere",)), train=train)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each model: what megatron-core saved, what was imported and exported, and what each makes of it."""
    folder = tmp_path_factory.mktemp("models")
    theirs(folder, 1, "tp1pp1:make")
    for name in MODELS:
        here, moments = folder / name, name in OPTIMIZERS
        imported = import_model(here / "tp1pp1", here / "imported", None, optimizer=moments).path
        export_model(imported, job(imported), here / "exported", "fp32")
        if moments and arguments(name).num_experts is None:
            export_model(imported, job(imported), here / "moments", "fp32", optimizer=True)
    theirs(folder, 1, "tp1pp1:check,goon")
    theirs(folder, 2, "tp2pp1:check,again", "tp1pp2:again")
    run("megatron_lm_ours.py", (folder,), logs=folder)
    return folder


@pytest.mark.timeout(4 * PATIENCE)
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_theirs_whatever_layout_saved_the_model(name: str, models: Path) -> None:
    here = models / name
    expected, found = torch.load(here / "expected.pt"), torch.load(here / "ours.pt")
    rows = arguments(name).padded_vocab_size
    assert expected.shape[-1] == rows
    assert (found[..., :rows] - expected).abs().max() < CLOSE
    first, *others = (import_model(here / layout, here / f"weights of {layout}", None).path for layout in LAYOUTS)
    weights = tensors(first)
    for other in map(tensors, others):
        assert other.keys() == weights.keys()
        assert all(torch.equal(other[key], weights[key]) for key in weights)


@pytest.mark.timeout(4 * PATIENCE)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_further_step_is_theirs_with_the_moments_only(name: str, models: Path) -> None:
    here = models / name
    expected = tensors(import_model(here / "after", here / "imported after", None).path)
    loaded, fresh = torch.load(here / "ours-loaded.pt"), torch.load(here / "ours-fresh.pt")
    assert loaded.keys() == expected.keys()
    for key, value in expected.items():
        assert (loaded[key] - value).abs().max() < CLOSE, key
        assert (fresh[key] - value).abs().max() > 10 * CLOSE, f"{key}: moments change nothing here"


@pytest.mark.timeout(4 * PATIENCE)
@pytest.mark.parametrize("layout", ["tp1pp1", "tp2pp1"])
def test_what_is_exported_has_the_same_logits_there(layout: str, models: Path) -> None:
    for name in MODELS:
        expected, found = (torch.load(models / name / f"{file}.pt") for file in ("expected", f"there-{layout}"))
        assert (found - expected).abs().max() < CLOSE, name


@pytest.mark.timeout(4 * PATIENCE)
def test_training_goes_on_there_with_exported_moments(models: Path) -> None:
    found = {path.parent.name: torch.load(path) for path in models.glob("*/gone-on.pt")}
    assert found.keys() == {"gpt", "llama"}
    for name, weights in found.items():
        expected = torch.load(models / name / "after.pt")
        assert weights.keys() == expected.keys()
        assert all((weights[key] - value).abs().max() < 1e-6 for key, value in expected.items()), name


def test_fewer_tokens_than_rows_are_taken(models: Path) -> None:
    done = import_model(models / "gpt-rope" / "tp2pp1", models / "fewer", None, vocabulary=290)
    found, every = tensors(done.path), tensors(models / "gpt-rope" / "imported")
    for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert found[key].shape == every[key].shape == (384, 64)
        assert torch.equal(found[key][:290], every[key][:290])
        assert found[key][290:].abs().max() == 0
    assert replace(done.model, vocab_size=304) == ModelSection(**read_meta(models / "gpt-rope" / "imported")["model"])
