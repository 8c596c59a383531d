"""``liver-slurm bench transfer --quick``: the document has every field; figures are for people to judge."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from interrupting import Command, interrupt, slowness

from liver_slurm.bench.raw_links import LINKS, why_not
from liver_slurm.bench.transfer import STAGING, WAYS, table

COMMAND = ["liver_slurm", "bench", "transfer"]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_document_has_its_fields() -> None:
    command = [sys.executable, "-m", *COMMAND, "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=True)
    document = json.loads(done.stdout)
    assert document["bench"] == "transfer"
    cases = document["cases"]
    assert [(case["transport"], case["staging_bytes"]) for case in cases] == [
        (transport, staging) for transport in WAYS for staging in STAGING
    ]
    for case in cases:
        assert case["name"]
        assert case["gb_per_s"] > 0
        assert case["ratio"] == pytest.approx(case["gb_per_s"] / case["raw_gb_per_s"])
        assert 0 <= case["staging_peak_bytes"] <= case["staging_bytes"]
    links = {case["raw"]: case for case in document["paths"]}
    assert set(links) == set(LINKS)
    for name, case in links.items():
        if reason := why_not(name, torch.cuda.device_count()):
            assert case["skipped"] == reason
        else:
            assert case["raw_gb_per_s"] > 0, case
    assert len(table(document).splitlines()) == len(cases) + 2 + 1 + len(document["paths"]) + 2


def test_ctrl_c_ends_both_ends_in_one_line(tmp_path: Path) -> None:
    def both_ends(root: psutil.Process) -> bool:
        return any(len(one.net_connections()) > 1 for one in root.children())

    bench = Command("bench transfer", lambda _: COMMAND)
    outcome = interrupt(bench, tmp_path / "bench", both_ends)
    assert not outcome.problems(bench, signal.SIGINT, 5.0 * slowness())
    assert (tmp_path / "bench" / "stdout").read_text() == ""
