"""``liver-slurm bench transfer --quick``: the document has every field; figures are for people to judge."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from liver_slurm.bench.transfer import RAW, STAGING, table


@pytest.mark.timeout(180)
def test_document_has_its_fields() -> None:
    command = [sys.executable, "-m", "liver_slurm.cli.main", "bench", "transfer", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=True)
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
