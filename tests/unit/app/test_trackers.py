"""A run for TensorBoard and Weights & Biases: every step once, as it was trained last, and no secret."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from event_samples import committed

from liver_slurm.app import trackers
from liver_slurm.app.trackers import Feed, feed, scalars
from liver_slurm.cli.main import main
from liver_slurm.config.load import load_job
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import RunEnded
from liver_slurm.rundir.metrics import MetricsWriter, StepMetrics, truncate_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run, record_run
from liver_slurm.rundir.validation import ValidationMetrics

TINY = Path(__file__).parents[3] / "configs" / "gpt-tiny.toml"


def step(number: int, end: float | None = None) -> StepMetrics:
    end = number + 0.5 if end is None else end
    return StepMetrics(
        step=number, loss=5.0 - number / 10, grad_norm=1.0, lr=1e-3, tokens=1024, consumed_samples=16 * number,
        generation=1, layout="tp2pp1dp2", start=end - 0.5, end=end, tokens_per_s=2048.0,
    )  # fmt: skip


class Kept:
    """A tracker that keeps what it is given."""

    where = "here"

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []
        self.closed = False

    def scalars(self, values: dict[str, float], step: int, at: float) -> None:
        kind = next((kind for kind in ("train", "validation") if f"{kind}/loss" in values), "change")
        self.given.append((kind, step))

    def text(self, name: str, text: str, step: int, at: float) -> None:
        self.given.append(("text", step, text))

    def again(self, step: int, at: float) -> None:
        self.given.append(("again", step))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run of three steps that grew, with a secret in its job file."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LIVER_SITE", "")
    monkeypatch.chdir(tmp_path)
    made = create_run(load_job(TINY, ["notify.webhook=https://hooks.example/SECRET"]))
    record_run(made)
    writer = MetricsWriter(made.metrics)
    for number in range(1, 4):
        writer.append(step(number))
    writer.close()
    log = EventLog(made.events)
    log.append(committed(cutover_step=2))
    log.close()
    return made


def test_a_run_is_handed_on_once(run_dir: RunDir) -> None:
    kept = Kept()
    found = Feed(run_dir, kept)
    found.read()
    found.read()
    assert kept.given == [
        ("train", 1), ("train", 2), ("train", 3), ("change", 2),
        ("text", 2, "tp1pp1dp2 → tp1pp1dp3: a standby is warm"),
    ]  # fmt: skip
    assert (found.steps, found.changes) == (3, 1)


def test_steps_that_were_trained_again_take_the_place_of_the_first(run_dir: RunDir) -> None:
    kept = Kept()
    found = Feed(run_dir, kept)
    found.read()
    truncate_metrics(run_dir.metrics, 1)
    writer = MetricsWriter(run_dir.metrics)
    writer.append(step(2, end=9.5))
    writer.append(step(3, end=10.5))
    writer.close()
    kept.given.clear()
    found.read()
    assert kept.given == [("again", 2), ("train", 2), ("train", 3)]


def test_validations_are_handed_on_once(run_dir: RunDir) -> None:
    def line(step: int) -> bytes:
        one = ValidationMetrics(
            step=step, loss=5.0, perplexity=148.4, tokens=9, samples=3, best_step=step, best_loss=5.0, since_best=0,
            seconds=0.1, generation=1, layout="tp2pp1dp2", end=float(step),
        )  # fmt: skip
        return msgspec.json.encode(one) + b"\n"

    kept = Kept()
    found = Feed(run_dir, kept)
    run_dir.validations.write_bytes(line(1) + line(2))
    found.read()
    assert [given for given in kept.given if given[0] == "validation"] == [("validation", 1), ("validation", 2)]
    kept.given.clear()
    run_dir.validations.write_bytes(line(1))  # the run went back, and validates again
    found.read()
    assert kept.given == []
    with run_dir.validations.open("ab") as file:
        file.write(line(2).replace(b'"end":2.0', b'"end":7.0'))
    found.read()
    assert kept.given == [("validation", 2)]


def test_a_run_that_goes_on_is_followed_to_its_end(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "POLL", 0.0)
    looks = iter((False, False, True))

    def over() -> bool:
        last = next(looks)
        if last:
            EventLog(run_dir.events).append(RunEnded(outcome="finished", step=3))
        return last

    kept = Kept()
    assert feed(run_dir, kept, over).changes == 2
    assert kept.closed


def test_a_tracker_is_closed_whatever_happens(run_dir: RunDir) -> None:
    def over() -> bool:
        raise KeyboardInterrupt

    kept = Kept()
    with pytest.raises(KeyboardInterrupt):
        feed(run_dir, kept, over)
    assert kept.closed


def test_figures_of_a_step() -> None:
    found = scalars(step(2))
    assert found["train/loss"] == 4.8
    assert found["world/workers"] == 4.0
    assert "speed/mfu" not in found
    assert all(math.isfinite(value) for value in found.values())


@pytest.fixture
def liver(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        return (code, *capfd.readouterr())

    return call


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_an_extra_that_is_missing_is_named(
    liver: Callable[..., tuple[int, str, str]], run_dir: RunDir, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorboard.compat.proto", "wandb"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    code, out, err = liver("export", kind, str(run_dir.path))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"pip install 'liver-slurm[{kind}]'" in err


def test_a_folder_with_something_in_it_is_left_alone(
    liver: Callable[..., tuple[int, str, str]], run_dir: RunDir
) -> None:
    code, _, err = liver("export", "tensorboard", str(run_dir.path), "--to", str(run_dir.path))
    assert (code, err.count("\n")) == (2, 1)
    assert "is not an empty folder" in err


@pytest.mark.trackers
def test_tensorboard_reads_it(liver: Callable[..., tuple[int, str, str]], run_dir: RunDir) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # a second export takes the place of the first
        code, out, _ = liver("export", "tensorboard", str(run_dir.path), "--json")
        assert code == 0
    assert json.loads(out) == {
        "run_dir": str(run_dir.path),
        "where": f"tensorboard --logdir {run_dir.tensorboard}",
        "steps": 3,
        "changes": 1,
    }
    board = EventAccumulator(str(run_dir.tensorboard)).Reload()
    found = board.Scalars("train/loss")
    assert [(one.step, one.wall_time, round(one.value, 4)) for one in found] == [
        (1, 1.5, 4.9), (2, 2.5, 4.8), (3, 3.5, 4.7),
    ]  # fmt: skip
    assert [round(one.value, 4) for one in board.Scalars("reconfiguration/pause_s")] == [0.25]
    (text,) = board.Tensors("changes")
    assert text.tensor_proto.string_val == ["tp1pp1dp2 → tp1pp1dp3: a standby is warm".encode()]


@pytest.mark.trackers
def test_tensorboard_forgets_steps_that_were_trained_again(run_dir: RunDir) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = trackers.TensorBoard(run_dir.tensorboard)
    found = Feed(run_dir, board)
    found.read()
    truncate_metrics(run_dir.metrics, 1)
    writer = MetricsWriter(run_dir.metrics)
    writer.append(step(2, end=9.5))
    writer.close()
    found.read()
    board.close()
    read = EventAccumulator(str(run_dir.tensorboard)).Reload()
    assert [(one.step, one.wall_time) for one in read.Scalars("train/loss")] == [(1, 1.5), (2, 9.5)]


@pytest.mark.trackers
def test_wandb_takes_it_offline_and_no_secret_goes_there(
    liver: Callable[..., tuple[int, str, str]],
    run_dir: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., Any],
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    code, out, _ = liver("export", "wandb", str(run_dir.path), "--offline", "--json")
    found = json.loads(out)
    assert (code, found["steps"], found["changes"]) == (0, 3, 1)
    folder = Path(found["where"].removeprefix("wandb sync "))
    assert folder.is_relative_to(run_dir.wandb)

    def written() -> bytes:
        return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())

    # A process of wandb's own writes; ours does not wait for it.
    eventually(lambda: b"train/loss" in written() and b"hidden_size" in written(), "wandb has written")
    assert b"SECRET" not in written()
