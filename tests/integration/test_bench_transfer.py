"""``liver-slurm bench transfer --quick``: the document has every field; figures are for people to judge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from liver_slurm.bench.transfer import RAW, STAGING, table

COMMAND = [sys.executable, "-m", "liver_slurm.cli.main", "bench", "transfer"]


@pytest.mark.timeout(180)
def test_document_has_its_fields() -> None:
    done = subprocess.run([*COMMAND, "--quick", "--json"], capture_output=True, text=True, timeout=170, check=True)
    document = json.loads(done.stdout)
    assert document["bench"] == "transfer"
    cases = document["cases"]
    assert [(case["transport"], case["staging_bytes"]) for case in cases] == [
        (transport, staging) for transport in RAW for staging in STAGING
    ]
    for case in cases:
        assert case["name"]
        assert case["gb_per_s"] > 0
        assert case["ratio"] == pytest.approx(case["gb_per_s"] / case["raw_gb_per_s"])
        assert 0 < case["staging_peak_bytes"] <= case["staging_bytes"]
    assert len(table(document).splitlines()) == len(cases) + 2


def test_ctrl_c_ends_both_ends_in_one_line(eventually: Callable[..., Any]) -> None:
    # a session of its own: all its processes get the signal, as from a terminal
    bench = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        root = psutil.Process(bench.pid)
        both = eventually(lambda: [one for one in root.children() if len(one.net_connections()) > 1], "two ends")
        os.killpg(bench.pid, signal.SIGINT)
        out, err = bench.communicate(timeout=30)
        assert (out, err) == ("", "liver-slurm: interrupted\n")
        assert bench.returncode in (130, -signal.SIGINT)  # a shell says 130 of both
        assert psutil.wait_procs(both, timeout=10)[1] == []
    finally:
        bench.kill()
