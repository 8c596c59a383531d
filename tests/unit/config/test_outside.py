"""The sections [prometheus] and [notify]: what is allowed, and that no message or file shows a secret to others."""

from __future__ import annotations

from pathlib import Path

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.config.load import load_job, read_job, save_job

TINY = Path(__file__).parents[3] / "configs" / "gpt-tiny.toml"


@pytest.fixture(autouse=True)
def _no_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LIVER_SITE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "prometheus.port=70000",
            "--set: prometheus.port: 70000 is not allowed; allowed: a whole number from 0 to",
        ),
        (
            "prometheus.interface=lo",
            "--set: prometheus.interface: has no use without prometheus.port; allowed: both, or neither",
        ),
        (
            "notify.webhook=hooks.example/SECRET",
            "--set: notify.webhook: its value is not allowed; allowed: a URL that begins with http:// or https://",
        ),
        (
            "notify.webhook=ftp://hooks.example/SECRET",
            "--set: notify.webhook: its value is not allowed; allowed: a URL that begins with http:// or https://",
        ),
        (
            "notify.webhook=http://[SECRET/",
            "--set: notify.webhook: its value is not allowed; allowed: a URL that begins with http:// or https://",
        ),
        (
            "notify.webhook.x=SECRET",
            "--set: notify.webhook: its value is not allowed; allowed: a URL that begins with http:// or https://",
        ),
        ("notify.command=curl SECRET", "--set: notify.command: its value is not allowed; allowed: a list, each text"),
        ('notify.command=["curl", 3]', "--set: notify.command.1: its value is not allowed; allowed: text"),
        (
            'notify.command=["", "SECRET"]',
            "--set: notify.command: its first word is empty; allowed: a command and its arguments",
        ),
        (
            "notify.timeout=0",
            "--set: notify.timeout: 0 is not allowed; allowed: a duration > 0 such as ",
        ),
        (
            'notify.events=["grew", "exploded"]',
            '--set: notify.events.1: "exploded" is not allowed; allowed: "started"',
        ),
    ],
)
def test_one_problem_is_one_line_without_a_secret(override: str, expected: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_job(TINY, [override])
    (line,) = str(caught.value).splitlines()
    assert line.startswith(expected)
    assert "SECRET" not in line


def test_a_place_that_there_is_not_is_said_without_the_value() -> None:
    with pytest.raises(BadInput) as caught:
        load_job(TINY, ["notify.command.7=SECRET"])
    assert "SECRET" not in str(caught.value)


def test_a_job_with_a_webhook_is_for_its_user_alone(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    save_job(load_job(TINY), file)
    assert file.stat().st_mode & 0o044
    job = load_job(TINY, ["notify.webhook=https://hooks.example/SECRET", "notify.events=['grew']", "prometheus.port=0"])
    save_job(job, file)
    assert file.stat().st_mode & 0o077 == 0
    assert read_job(file) == job
    assert load_job(file) == job
