"""Run directories: made once, found again, missed clearly."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
from pathlib import Path

import pytest
from checkpoint_files import small_checkpoint

from liver_slurm.base.errors import BadInput
from liver_slurm.config.load import read_job
from liver_slurm.config.schema import JobConfig, JobSection, ModelSection, TrainSection
from liver_slurm.rundir import registry
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run, find_run, list_runs, read_run_info, record_run


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LIVER_SITE", raising=False)
    monkeypatch.chdir(tmp_path)
    return JobConfig(job=JobSection(name="tiny", run_root=str(tmp_path / "runs")))


def test_a_run_directory_has_what_a_run_needs(config: JobConfig) -> None:
    run_dir = create_run(config)
    assert run_dir.path.name.startswith("tiny-")
    assert read_job(run_dir.job_file) == config
    info = read_run_info(run_dir)
    assert (info.name, info.job_id, info.resumed_from, len(info.run_id)) == ("tiny", "", "", 32)
    assert all(one.is_dir() for one in (run_dir.logs, run_dir.checkpoints, run_dir.data, run_dir.standby))
    assert stat.S_IMODE(run_dir.secrets.stat().st_mode) == 0o700
    assert create_run(config).path != run_dir.path


def test_a_run_directory_that_exists_is_refused(config: JobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.secrets, "token_hex", lambda size: "ab" * size)
    monkeypatch.setattr(registry.time, "strftime", lambda *_: "20260101-000000")
    run_dir = create_run(config)
    (run_dir.metrics).write_text("precious")
    with pytest.raises(BadInput, match="exists; nothing was changed"):
        create_run(config)
    assert run_dir.metrics.read_text() == "precious"


def test_a_run_root_that_cannot_be_written(config: JobConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken = dataclasses.replace(config, job=dataclasses.replace(config.job, run_root=str(tmp_path / "file")))
    with pytest.raises(BadInput, match=r"job.run_root: cannot make"):
        create_run(broken)


def test_a_run_is_found_by_job_id_name_folder_and_path(config: JobConfig, tmp_path: Path) -> None:
    older, newer = create_run(config), create_run(config)
    record_run(older, "41")
    record_run(newer, "42")
    assert find_run("41") == older
    assert find_run("42+1") == newer
    assert find_run(older.path.name) == older
    assert find_run(str(older.path)) == older
    assert find_run("tiny") == newer
    assert [run_dir for run_dir, _ in list_runs()] == [newer, older]


def test_runs_of_the_run_root_are_found_without_an_index(config: JobConfig) -> None:
    run_dir = create_run(config)
    assert find_run("tiny") == run_dir


def test_a_run_that_is_gone_or_never_was(config: JobConfig, tmp_path: Path) -> None:
    run_dir = create_run(config)
    record_run(run_dir, "41")
    shutil.rmtree(run_dir.path)
    with pytest.raises(BadInput, match=r"run 41 is gone: its run directory .* was removed"):
        find_run("41")
    with pytest.raises(BadInput, match="there is no run '99'"):
        find_run("99")
    with pytest.raises(BadInput, match="is not a run directory"):
        find_run(str(tmp_path))
    with registry.index_file().open("ab") as index:
        index.write(b'{"torn')
    assert list_runs() == []


def test_an_empty_text_is_no_run(config: JobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(create_run(config).path)
    for text in ("", " "):
        with pytest.raises(BadInput, match="an empty text names no run"):
            find_run(text)
    assert find_run(".").path == Path.cwd()


def test_a_folder_hides_no_run_of_its_name(config: JobConfig, tmp_path: Path) -> None:
    run_dir = create_run(config)
    (tmp_path / "tiny").mkdir()
    assert find_run("tiny") == run_dir
    with pytest.raises(BadInput, match="is not a run directory"):
        find_run("./tiny")
    (tmp_path / "other").mkdir()
    with pytest.raises(BadInput, match="is not a run directory"):
        find_run("other")


def saved(run_dir: RunDir, step: int) -> None:
    small_checkpoint(run_dir.checkpoints, step)


def test_resuming_needs_a_complete_checkpoint(config: JobConfig) -> None:
    # LS-25
    run_dir = create_run(config)
    with pytest.raises(BadInput, match="there is no complete checkpoint"):
        create_run(config, run_dir)
    (run_dir.checkpoints / "step-00000200").mkdir()  # half removed, by a version that did not rename it first
    with pytest.raises(BadInput, match="there is no complete checkpoint"):
        create_run(config, run_dir)
    saved(run_dir, 100)
    more = dataclasses.replace(config, train=TrainSection(steps=101))
    assert read_run_info(create_run(more, run_dir)).resumed_from == str(run_dir.path)


def test_resuming_says_what_means_something_else_now(config: JobConfig, caplog: pytest.LogCaptureFixture) -> None:
    config = dataclasses.replace(config, train=TrainSection(steps=150))
    run_dir = create_run(config)
    saved(run_dir, 100)
    same = dataclasses.replace(
        config, train=dataclasses.replace(config.train, steps=200, lr_decay_steps=config.train.steps)
    )
    create_run(same, run_dir)
    assert not caplog.messages
    changed = dataclasses.replace(same, model=dataclasses.replace(config.model, rotary_base=500_000))
    create_run(changed, run_dir)
    assert caplog.messages == [
        "model.rotary_base: 500000, where the run that is resumed had 10000; training goes on with the new value"
    ]


@pytest.mark.parametrize(("size", "says"), [(128, "skipped: 6400 samples"), (32, "trained again: 3200 samples")])
def test_resuming_with_another_batch_says_which_samples_come(
    size: int, says: str, config: JobConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(config, train=TrainSection(steps=150, global_batch_size=64, micro_batch_size=1))
    run_dir = create_run(config)
    saved(run_dir, 100)
    create_run(dataclasses.replace(config, train=dataclasses.replace(config.train, global_batch_size=size)), run_dir)
    assert f"{says} from number {min(size, 64) * 100} on" in caplog.messages[0]


def test_resuming_needs_the_same_experts(config: JobConfig, caplog: pytest.LogCaptureFixture) -> None:
    model = ModelSection(num_layers=2, hidden_size=64, num_attention_heads=8, num_moe_experts=4)
    before = dataclasses.replace(config, model=model, train=TrainSection(steps=100))
    run_dir = create_run(before)
    saved(run_dir, 50)
    spelt_out = dataclasses.replace(model, moe_ffn_hidden_size=256)
    create_run(dataclasses.replace(before, model=spelt_out), run_dir)
    assert not caplog.messages
    create_run(dataclasses.replace(before, model=dataclasses.replace(model, moe_aux_loss_coeff=0.1)), run_dir)
    assert caplog.messages[0].startswith("model.moe_aux_loss_coeff: 0.1, where the run that is resumed had 0.0")
    for change in ({"num_moe_experts": 8}, {"moe_ffn_hidden_size": 128}, {"moe_shared_expert_intermediate_size": 64}):
        other = dataclasses.replace(model, **change)  # type: ignore[arg-type]
        with pytest.raises(BadInput, match=f"model.{next(iter(change))}: .* is not allowed"):
            create_run(dataclasses.replace(before, model=other), run_dir)


def test_resuming_needs_the_same_model_and_steps_that_are_left(config: JobConfig) -> None:
    model = ModelSection(num_layers=2, hidden_size=64, num_attention_heads=8)
    before = dataclasses.replace(config, model=model, train=TrainSection(steps=100))
    run_dir = create_run(before)
    saved(run_dir, 100)
    spelt_out = dataclasses.replace(model, num_query_groups=8, kv_channels=8, ffn_hidden_size=256, init_method_std=0.5)
    create_run(dataclasses.replace(before, model=spelt_out, train=TrainSection(steps=101, lr=1.0)), run_dir)

    known = set(run_dir.path.parent.iterdir())
    other = dataclasses.replace(model, num_layers=4, num_query_groups=4)
    with pytest.raises(BadInput) as refused:
        create_run(dataclasses.replace(before, model=other, train=TrainSection(steps=100, precision="bf16")), run_dir)
    assert str(refused.value).splitlines() == [
        "model.num_layers: 4 is not allowed; allowed: 2, as in the run that is resumed",
        "model.num_query_groups: 4 is not allowed; allowed: 8, as in the run that is resumed",
        "train.precision: bf16 is not allowed; allowed: fp32, as in the run that is resumed",
        "train.steps: 100 leaves nothing to train after the checkpoint that is resumed, of step 100; allowed: > 100",
    ]
    assert set(run_dir.path.parent.iterdir()) == known, "nothing is left behind"


def test_a_home_folder_that_is_full_takes_no_run_away(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = create_run(config)
    real = os.write
    monkeypatch.setattr(registry.os, "write", lambda file, content: 0 if b"run_dir" in content else real(file, content))
    record_run(run_dir, "41")
    assert read_run_info(run_dir).job_id == "41"
    assert f"(No space left on device): find this run by {run_dir.path}" in caplog.text
    assert find_run(str(run_dir.path)).path == run_dir.path


def test_a_home_folder_that_cannot_be_made_or_read(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    run_dir = create_run(config)
    record_run(run_dir, "41")
    assert f"find this run by {run_dir.path}" in caplog.text
    assert [found.path for found, _ in list_runs()] == [run_dir.path], "in the default run root"
    assert find_run("41").path == run_dir.path
