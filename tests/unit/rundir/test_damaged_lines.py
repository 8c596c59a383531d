"""Files of a run in which a line is damaged: whoever reads them passes it over and goes on with the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liver_slurm.config.load import load_job
from liver_slurm.observability.ledger.document import document, make_ledger
from liver_slurm.observability.ledger.facts import read_facts
from liver_slurm.observability.ledger.step_table import read_steps
from liver_slurm.observability.run_view import RunFiles
from liver_slurm.rundir.event_log import follow_documents, read_documents, read_events
from liver_slurm.rundir.events import WorldLive
from liver_slurm.rundir.metrics import last_metrics, last_step, read_metrics, truncate_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run, index_file, list_runs, record_run
from liver_slurm.rundir.validation import last_validation, read_validations

TINY = Path(__file__).parents[3] / "configs" / "gpt-tiny.toml"
STEP = {
    "step": 30, "loss": 1.0, "grad_norm": 1.0, "lr": 1e-3, "tokens": 64, "consumed_samples": 8, "generation": 0,
    "layout": "tp1pp1dp2", "start": 1.0, "end": 2.0,
}  # fmt: skip
VALIDATION = {
    "step": 30, "loss": 1.0, "perplexity": 2.0, "tokens": 1, "samples": 1, "best_step": 1, "best_loss": 1.0,
    "since_best": 0, "seconds": 0.1, "generation": 0, "layout": "tp1pp1dp2", "end": 2.0,
}  # fmt: skip
LONG = 99_999_999_999_999_999_999
WRONG = st.one_of(st.none(), st.text(max_size=3), st.just(LONG), st.just([]), st.just({}), st.just(1e300))


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIVER_SITE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    return create_run(load_job(TINY))


@pytest.mark.parametrize(
    "bad",
    [
        '{"step": 31}',
        '{"step": "x"}',
        json.dumps({**STEP, "step": LONG}),
        json.dumps({**STEP, "end": None}),
        json.dumps({**STEP, "tokens": LONG}),
        "[]",
    ],
)
def test_a_damaged_step_is_passed_over(run_dir: RunDir, bad: str) -> None:
    run_dir.metrics.write_text(f"{json.dumps(STEP)}\n{bad}\n")
    assert [one.step for one in read_metrics(run_dir.metrics)] == [30]
    last = last_metrics(run_dir.metrics)
    assert last is not None
    assert last.step == 30
    assert last_step(run_dir.metrics) in (30, 31)
    assert 30 in read_steps(run_dir.metrics).step.tolist()
    files = RunFiles(run_dir)
    files.refresh()
    assert files.status().step == 30
    truncate_metrics(run_dir.metrics, 30)
    assert [one.step for one in read_metrics(run_dir.metrics)] == [30]


@pytest.mark.parametrize("time", ["null", '"a"', str(LONG), "1e300", "-1", "true"])
def test_an_event_without_a_moment_is_passed_over(run_dir: RunDir, time: str) -> None:
    path = run_dir.events
    path.write_text(
        f'{{"time": {time}, "event": "world_live"}}\n{{"event": 5, "time": 1}}\n{{"event": "world_live"}}\n'
    )
    with path.open("a") as stream:
        stream.write('{"time": 2.0, "event": "world_live", "generation": 0}\n')
    assert list(read_events(path)) == [WorldLive(time=2.0, generation=0)]
    assert len(list(follow_documents(path, stop=lambda: True))) == 1
    assert len(RunFiles(run_dir).refresh()) == 1


def test_a_damaged_validation_is_passed_over(run_dir: RunDir) -> None:
    run_dir.validations.write_text(f'{json.dumps(VALIDATION)}\n{{"step": "x"}}\n{{"step": 31}}\n')
    assert [one.step for one in read_validations(run_dir.validations)] == [30]
    newest = last_validation(run_dir.validations)
    assert newest is not None
    assert newest.step == 30


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_wrong_value_and_no_damaged_byte_stops_a_reader(run_dir: RunDir, data: st.DataObject) -> None:
    golden = Path(__file__).parents[1] / "golden" / "events-1.jsonl"
    events = [json.loads(line) for line in golden.read_bytes().splitlines()]
    for path, lines in ((run_dir.events, events), (run_dir.metrics, [STEP]), (run_dir.validations, [VALIDATION])):
        line: dict[str, Any] = dict(data.draw(st.sampled_from(lines)))
        line[data.draw(st.sampled_from(sorted(line)))] = data.draw(WRONG)
        text = bytearray(b"".join(msgspec.json.encode(one) + b"\n" for one in lines) + json.dumps(line).encode())
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(text)
    files = RunFiles(run_dir)
    files.refresh()
    files.status()
    document(make_ledger(read_facts(run_dir, 5.0)))
    assert isinstance(list(read_documents(run_dir.events)), list)


def test_a_damaged_byte_in_the_list_of_runs_costs_one_line(run_dir: RunDir) -> None:
    record_run(run_dir)
    with index_file().open("ab") as stream:
        stream.write(b'{"job_id": "7", "name": "\xbf", "run_dir": "/r"}\n{"job_id": 7, "name": null, "run_dir": []}\n')
    assert [found.path for found, _ in list_runs()] == [run_dir.path]
