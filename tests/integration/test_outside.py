"""A real run and the world outside: figures are scraped, people are told, `top` sees the coordinator go and return."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from figure_names import exported_names
from interrupting import default_signals
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from terminal import Terminal
from web import WebServer

from liver_slurm import find
from liver_slurm.rundir.paths import RunDir

TINY = Path(__file__).parents[2] / "configs" / "gpt-tiny.toml"
PATIENCE = 600.0
Eventually = Callable[..., Any]


class Run:
    """``liver-slurm run`` in a process of its own, which grows from one worker to two and ends when it is cancelled."""

    def __init__(self, folder: Path, webhook: str) -> None:
        kept = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + chr(10))"
        self.told = folder / "told"
        text = folder / "text.txt"
        text.write_text("To be trained on, again and again. " * 400)
        keys = {
            "job.run_root": str(folder),
            "data.paths": json.dumps([str(text)]),
            "train.steps": 100_000,
            "elastic.initial": "tp1pp1dp1",
            "elastic.layouts": json.dumps(["tp1pp1dp1", "tp1pp1dp2"]),
            "prometheus.port": 0,
            "notify.webhook": webhook,
            "notify.command": json.dumps([sys.executable, "-c", kept, str(self.told)]),
            "notify.timeout": 120,
        }
        sets = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "liver_slurm.cli.main", "run", str(TINY), "--workers", "1", "--standbys", "1"]
        self.errors = folder / "stderr"
        with self.errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*command, "--json", *sets],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "OMP_NUM_THREADS": "1", "LIVER_SITE": "", "HOME": str(folder)},
                preexec_fn=default_signals,
            )
        self._folder = folder

    def run_dir(self) -> RunDir | None:
        found = list(self._folder.glob("gpt-tiny-*/run.json"))
        return RunDir(found[0].parent) if found else None

    def end(self) -> None:
        """Leave no process, whatever came before."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
        self.process.wait()


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture
def run(tmp_path: Path, web: WebServer) -> Iterator[Run]:
    made = Run(tmp_path, web.url)
    yield made
    made.end()


def scraped(run_dir: RunDir) -> dict[str, float]:
    """Every figure, those with several labels as a sum; empty while nothing is served."""
    if not run_dir.prometheus_targets.exists():
        return {}
    (target,) = json.loads(run_dir.prometheus_targets.read_text())
    headers = {"Accept": "application/openmetrics-text"}
    request = urllib.request.Request(f"http://{target['targets'][0]}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        found: dict[str, float] = {}
        for sample in (sample for family in families for sample in family.samples):
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found


def test_a_run_and_the_world_outside(run: Run, web: WebServer, eventually: Eventually) -> None:
    run_dir = eventually(run.run_dir, "a run directory", PATIENCE)
    assert run_dir.job_file.stat().st_mode & 0o077 == 0
    first = eventually(lambda: scraped(run_dir), "figures", PATIENCE)
    assert set(first) <= exported_names()
    eventually(lambda: scraped(run_dir).get("liver_workers") == 2.0, "the figures say that the run grows", PATIENCE)
    eventually(lambda: scraped(run_dir).get("liver_reconfigurations_total"), "a reconfiguration is counted", PATIENCE)
    eventually(lambda: scraped(run_dir).get("liver_tokens_per_second"), "a step of the new world", PATIENCE)
    figures = scraped(run_dir)
    assert figures["liver_notifications_total"] >= 0.0
    assert {"liver_loss", "liver_step_seconds", "liver_remaining_seconds", "liver_samples_total"} <= set(figures)
    command = [sys.executable, "-m", "liver_slurm.cli.main", "top", str(run_dir.path), "--interval", "0.2"]
    with Terminal(command, {**os.environ, "TERM": "xterm", "PYTHONUTF8": "1", "LIVER_SITE": ""}) as top:
        node = re.compile(rf"^  {re.escape(os.uname().nodename)} .* ranks 0-1", re.MULTILINE)  # the coordinator's word
        top.until(lambda text: "1: tp1pp1dp2, 2 workers" in text and node.search(text) is not None, PATIENCE)
        (coordinator,) = (
            child
            for child in psutil.Process(run.process.pid).children()
            if "liver_slurm.coordinator" in child.cmdline()
        )
        eventually(lambda: len(web.posted) == 2, "the start and the growth are told", PATIENCE)
        run.process.send_signal(signal.SIGSTOP)  # it would start another one at once
        coordinator.send_signal(signal.SIGKILL)
        top.until(lambda text: "coordin.  away since " in text and node.search(text) is not None, PATIENCE)
        run.process.send_signal(signal.SIGCONT)
        top.until(lambda text: "coordin." not in text and "coordinator started again" in text, PATIENCE)
        find(run_dir.path).cancel()
        assert top.wait(PATIENCE) == 0
        assert "· cancelled" in top.text
    out, _ = run.process.communicate(timeout=PATIENCE)
    assert json.loads(out)["state"] == "cancelled"
    progress = run.errors.read_text()
    assert "tp1pp1dp1 → tp1pp1dp2 at step" in progress
    assert " left at " in progress
    told = [json.loads(line) for line in run.told.read_text().splitlines()]
    assert [one["event"] for one in told] == ["started", "grew", "stopped"]
    assert web.posted == told
    assert not run_dir.prometheus_targets.exists()
    for file in [run_dir.events, run.errors, *run_dir.logs.iterdir()]:
        assert "SECRET" not in file.read_text(), f"{file} says the webhook's URL"
