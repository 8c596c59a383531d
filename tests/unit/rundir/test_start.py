"""Whether a run can begin with given weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import small_checkpoint

from liver_slurm.base.errors import BadInput
from liver_slurm.config.load import read_job, save_job
from liver_slurm.config.schema import JobConfig, JobSection, ModelSection, TrainSection
from liver_slurm.rundir.checkpoint_index import StoredBox, StoredTensor, digest_of, write_index
from liver_slurm.rundir.checkpoints import part_path, publish_checkpoint
from liver_slurm.rundir.registry import create_run
from liver_slurm.rundir.start import check_start, import_meta

MODEL = ModelSection(num_layers=2, hidden_size=64, num_attention_heads=4, vocab_size=300, rotary_base=500000)


def imported(folder: Path, moments: bool = False, meta: dict[str, Any] | None = None) -> Path:
    """Weights of MODEL as an import leaves them, but for the tensors."""
    part = part_path(folder)
    part.mkdir(parents=True)
    (part / "rank-0").write_bytes(b"state")
    box = StoredBox((0,), (1,), "rank-0", 0, 5, digest_of(b"state"))
    digest = write_index(part, {"weight": StoredTensor("float32", (1,), [box])})
    publish_checkpoint(folder, part, {"step": 0, **(meta or import_meta(MODEL, 64, moments))}, digest)
    return folder


def starting(path: Path, model: ModelSection = MODEL, **train: Any) -> JobConfig:
    given = {"steps": 5, "seq_length": 64, "global_batch_size": 1, "start_from": str(path)}
    return JobConfig(
        job=JobSection(run_root=str(path.parent / "runs")), model=model, train=TrainSection(**{**given, **train})
    )


def test_the_same_model_in_any_precision(tmp_path: Path) -> None:
    path = imported(tmp_path / "imported")
    check_start(starting(path))
    check_start(starting(path, precision="bf16"))
    check_start(starting(path, replace(MODEL, kv_channels=16, ffn_hidden_size=256, init_method_std=0.5)))


def test_moments_that_an_import_has_can_be_loaded(tmp_path: Path) -> None:
    check_start(starting(imported(tmp_path / "imported", moments=True), start_optimizer="loaded"))


def test_what_a_newer_version_says_of_the_model_is_not_passed_over(tmp_path: Path) -> None:
    meta = import_meta(MODEL, 64, False)
    for name, value in (("unused", None), ("sliding", 4096)):
        model = {**dict(meta["model"]), name: value}
        path = imported(tmp_path / name, meta={**meta, "model": model})
        if value is None:
            check_start(starting(path))
        else:
            with pytest.raises(BadInput, match=r"of a newer version of liver-slurm, whose model\.sliding is not known"):
                check_start(starting(path))


@pytest.mark.parametrize(
    ("model", "train", "says"),
    [
        ({"num_layers": 3}, {}, "model.num_layers: 3 is not allowed; allowed: 2, as in"),
        ({"rotary_base": 10000}, {}, "model.rotary_base: 10000 is not allowed; allowed: 500000, as in"),
        ({"layernorm_epsilon": 1e-6}, {}, "model.layernorm_epsilon: 1e-06 is not allowed"),
        ({"moe_router_topk": 4}, {}, "model.moe_router_topk: 4 is not allowed; allowed: 2, as in"),
        ({}, {"start_optimizer": "loaded"}, 'train.start_optimizer: "loaded" is not allowed'),
        ({}, {"seq_length": 65}, "train.seq_length: 65 is above the sliding window of the model in"),
    ],
)
def test_another_model_is_refused(model: dict[str, Any], train: dict[str, Any], says: str, tmp_path: Path) -> None:
    config = starting(imported(tmp_path / "imported"), replace(MODEL, **model), **train)
    with pytest.raises(BadInput) as caught:
        create_run(config)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_of_a_run_is_compared_with_its_job(tmp_path: Path) -> None:
    path = small_checkpoint(tmp_path / "run" / "checkpoints", 5)
    save_job(replace(starting(path), model=MODEL), tmp_path / "run" / "job.json")
    check_start(starting(path, start_optimizer="loaded"))
    with pytest.raises(BadInput, match=r"model\.num_layers: 3 is not allowed; allowed: 2, as in .*job\.json"):
        check_start(starting(path, replace(MODEL, num_layers=3)))


def test_what_is_no_checkpoint_or_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"train\.start_from: .*nowhere cannot be used: .* allowed: a folder that"):
        check_start(starting(tmp_path / "nowhere"))
    path = imported(tmp_path / "imported")
    (path / "rank-0").write_bytes(b"st")
    with pytest.raises(BadInput, match="rank-0 is cut short"):
        check_start(starting(path))


def test_a_run_that_is_resumed_starts_from_the_other_run(tmp_path: Path) -> None:
    config = starting(imported(tmp_path / "imported"))
    first = create_run(config)
    small_checkpoint(first.checkpoints, 2)
    assert read_job(first.job_file).train.start_from == str(tmp_path / "imported")
    assert read_job(create_run(config, first).job_file).train.start_from is None
