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
from liver_slurm.config.batch_sizes import samples_before
from liver_slurm.config.load import read_job, save_job
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


def batches(config: JobConfig, size: int, *ramp: int, micro: int = 1) -> JobConfig:
    train = TrainSection(steps=900, global_batch_size=size, rampup_batch_size=ramp, micro_batch_size=micro)
    return dataclasses.replace(config, train=train)


def test_resuming_with_other_batches_goes_on_with_the_next_sample(
    config: JobConfig, caplog: pytest.LogCaptureFixture
) -> None:
    first = create_run(batches(config, 64))
    saved(first, 100)
    second = create_run(batches(config, 128), first)
    assert caplog.messages == [
        "train.global_batch_size: 128, where the run that is resumed had 64; training goes on with the new value",
        "training goes on with sample number 6400, the one after the last that was taken",
    ]
    assert read_job(second.job_file).train.earlier_batches == ((100, 64),)
    small_checkpoint(second.checkpoints, 150, consumed_samples=6400 + 50 * 128)
    third = read_job(create_run(batches(config, 48, 16, 16, 200), second).job_file).train
    assert (third.earlier_batches, samples_before(third, 150)) == (((100, 64), (150, 128)), 12800)
    caplog.clear()
    fourth = read_job(create_run(read_job(second.job_file), second).job_file)
    assert fourth == read_job(second.job_file)
    assert not caplog.messages


def test_a_job_file_that_is_not_that_of_its_checkpoint_is_not_resumed(config: JobConfig) -> None:
    run_dir = create_run(batches(config, 64))
    small_checkpoint(run_dir.checkpoints, 100, consumed_samples=6400)
    create_run(batches(config, 32), run_dir)
    save_job(batches(config, 32), run_dir.job_file)
    says = r"step-00000100 is not of its job\.json: its steps took 6400 samples, and this job's .* taken 3200 by then"
    with pytest.raises(BadInput, match=says):
        create_run(batches(config, 32), run_dir)


def test_a_run_cannot_begin_with_batches_that_have_no_whole_micro_batches(config: JobConfig) -> None:
    job = batches(config, 64, micro=4)
    uneven = dataclasses.replace(job, train=dataclasses.replace(job.train, earlier_batches=((10, 6),)))
    with pytest.raises(BadInput, match=r"train\.earlier_batches: .* 6 samples, which train.micro_batch_size 4 does"):
        create_run(uneven)


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
