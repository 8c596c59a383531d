"""Posting a document: what is accepted, and what is said where it is not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from web import WebServer

from liver_slurm.base.post import post


def test_a_document_arrives() -> None:
    with WebServer() as server:
        assert post(server.url, {"text": "grew → 4"}, 30.0) == ""
        assert server.posted == [{"text": "grew → 4"}]


@pytest.mark.parametrize(("status", "location"), [(403, ""), (500, ""), (302, "http://127.0.0.1:1/elsewhere")])
def test_a_refusal_has_a_status_and_a_redirection_is_one(status: int, location: str) -> None:
    with WebServer(status, location) as server:
        assert post(server.url, {}, 30.0) == f"HTTP status {status}"
        assert len(server.posted) == 1


def test_the_url_is_never_said() -> None:
    for url in ("http://127.0.0.1:1/SECRET", "http://nobody.invalid/SECRET", "http://[SECRET/", "http://a b/SECRET"):
        why = post(url, {}, 5.0)
        assert why
        assert "SECRET" not in why


def test_as_a_process() -> None:
    def run(url: str) -> subprocess.CompletedProcess[str]:
        given = json.dumps({"url": url, "timeout": 30.0, "document": {"text": "x"}})
        command = [sys.executable, "-m", "liver_slurm.base.post"]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False)

    with WebServer() as server:
        assert run(server.url).returncode == 0
        assert server.posted == [{"text": "x"}]
    done = run("http://127.0.0.1:1/SECRET")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "Connection refused\n")
