"""The endpoint and the text file: read by Prometheus' parsers, on the configured interface, and gone at the end."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import pytest
from event_samples import committed
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus
from top_samples import training

from liver_slurm.config.load import load_job
from liver_slurm.config.outside import PrometheusSection
from liver_slurm.observability import exporter as exporter_module
from liver_slurm.observability.exporter import Exporter, Figures
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.metrics import MetricsWriter, StepMetrics, truncate_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run

TINY = Path(__file__).parents[3] / "configs" / "gpt-tiny.toml"
BATCH = load_job(TINY).train.global_batch_size
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0, text/plain;q=0.5"}


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIVER_SITE", "")
    made = create_run(load_job(TINY))
    EventLog(made.events).append(committed())
    return made


def step(number: int, end: float) -> StepMetrics:
    return StepMetrics(
        step=number, loss=1.0, grad_norm=1.0, lr=1e-3, tokens=1, consumed_samples=number * BATCH, generation=0,
        layout="tp1pp1dp1", start=end - 0.5, end=end,
    )  # fmt: skip


def exporter(run_dir: RunDir, section: PrometheusSection, host: str = "127.0.0.1") -> Exporter:
    figures = Figures(run_dir, lambda: training().status, lambda: {"sent": 2, "failed": 0})
    return Exporter(figures, section, run_dir, host)


def target(run_dir: RunDir) -> str:
    found = json.loads(run_dir.prometheus_targets.read_text())
    assert [list(one) for one in found] == [["targets"]]
    return str(found[0]["targets"][0])


def ask(where: str, path: str = "/metrics", headers: dict[str, str] | None = None) -> tuple[str, str]:
    with urllib.request.urlopen(
        urllib.request.Request(f"http://{where}{path}", headers=headers or {}), timeout=60
    ) as got:
        return got.headers["Content-Type"], got.read().decode()


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not _holds(holds):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _holds(holds: Callable[[], bool]) -> bool:
    try:
        return holds()
    except (OSError, HTTPException):  # hung up on
        return False


def test_both_formats_are_served(run_dir: RunDir) -> None:
    made = exporter(run_dir, PrometheusSection(port=0))
    where = target(run_dir)
    kind, text = ask(where, headers=OPENMETRICS)
    assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    found = {sample.name: sample for family in openmetrics(text) for sample in family.samples}
    assert 'cause="capacity",result="committed"} 1\n' in text
    assert found["liver_run_info"].labels == {"run": run_dir.path.name, "name": "gpt-tiny", "job_id": ""}
    kind, text = ask(where)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert {sample.name for family in prometheus(text) for sample in family.samples} == set(found)
    EventLog(run_dir.events).append(committed())
    assert 'result="committed"} 2\n' in ask(where)[1]
    made.close()
    assert not run_dir.prometheus_targets.exists()
    with pytest.raises(urllib.error.URLError):
        ask(where)


def test_what_is_trained_never_falls(run_dir: RunDir) -> None:
    """Steps that a loss took back, and that are trained again, are samples that were trained; fewer count."""
    now = time.time() + 1.0
    figures = Figures(run_dir, lambda: training().status, dict)
    writer = MetricsWriter(run_dir.metrics)

    def train(first: int, last: int, begin: float) -> tuple[float, float]:
        for number in range(first, last + 1):
            writer.append(step(number, begin + number))
        found = {
            sample.name: sample.value for one in openmetrics(figures.text("openmetrics")) for sample in one.samples
        }
        return found["liver_samples_total"] / BATCH, found["liver_consumed_samples"] / BATCH

    writer.append(step(1, now - 100.0))  # before this coordinator began
    assert train(2, 10, now) == (9.0, 10.0)
    truncate_metrics(run_dir.metrics, 6)
    writer.reopen()
    assert train(7, 6, now) == (9.0, 6.0)
    assert train(7, 8, now + 60.0) == (11.0, 8.0)
    writer.close()


def test_there_is_nothing_else_to_get(run_dir: RunDir) -> None:
    made = exporter(run_dir, PrometheusSection(port=0))
    for path in ("/secrets", "/../job.json"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            ask(target(run_dir), path)
    made.close()


def test_clients_that_say_nothing_do_not_pile_up(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter_module, "CLIENTS", 2)
    made = exporter(run_dir, PrometheusSection(port=0))
    host, _, port = target(run_dir).partition(":")
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection((host, int(port)), timeout=60)) for _ in range(3)]
        assert silent[2].recv(1) == b""  # hung up on at once, while the others may still say what they want
    eventually(lambda: "liver_step" in ask(target(run_dir))[1])
    made.close()


def test_it_listens_on_the_configured_interface_only(run_dir: RunDir) -> None:
    made = exporter(run_dir, PrometheusSection(port=0, interface="lo"), host="host-that-is-not-asked.invalid")
    host, _, port = target(run_dir).partition(":")
    assert host == "127.0.0.1"
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", int(port)))
    made.close()


@pytest.mark.parametrize("interface", ["no-such-interface", None])
def test_what_cannot_be_served_is_said_and_the_run_goes_on(
    run_dir: RunDir, caplog: pytest.LogCaptureFixture, interface: str | None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, caplog.at_level(logging.ERROR):
        section = PrometheusSection(port=taken.getsockname()[1], interface=interface)
        exporter(run_dir, section).close()
    (line,) = caplog.messages
    assert line.startswith("prometheus.port: no figures are served: ")
    assert ("Address already in use" in line) == (interface is None)


def test_a_file_for_node_exporter(run_dir: RunDir, tmp_path: Path) -> None:
    folder = tmp_path / "textfile"
    folder.mkdir()
    made = exporter(run_dir, PrometheusSection(textfile=str(folder), every=0.02))
    file = folder / f"liver-slurm-{run_dir.path.name}.prom"
    eventually(file.exists)
    assert {family.name for family in prometheus(file.read_text())} >= {"liver_step", "liver_run_info"}
    EventLog(run_dir.events).append(committed())
    eventually(lambda: 'result="committed"} 2\n' in file.read_text())
    made.close()
    assert list(folder.iterdir()) == []


def test_figures_that_cannot_be_made_leave_no_old_ones(
    run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object) -> str:
        raise KeyError("a figure")

    made = exporter(run_dir, PrometheusSection(textfile=str(tmp_path), every=0.01))
    file = tmp_path / f"liver-slurm-{run_dir.path.name}.prom"
    eventually(file.exists)
    with monkeypatch.context() as broken:
        broken.setattr(Figures, "text", breaks)
        eventually(lambda: bool(caplog.messages))
        eventually(lambda: not file.exists())
    eventually(file.exists)
    made.close()
    (record,) = caplog.records
    assert record.getMessage().endswith("cannot be written: KeyError: 'a figure'")
    assert record.exc_info, "a defect has its traceback"


def test_a_folder_that_is_not_there_is_said_once(run_dir: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = exporter(run_dir, PrometheusSection(textfile="/nonexistent", every=0.001))
        eventually(lambda: bool(caplog.messages))
        time.sleep(0.05)  # a net only: further lines would come in this time
        made.close()
    assert len(caplog.messages) == 1
    assert "No such file or directory" in caplog.messages[0]
