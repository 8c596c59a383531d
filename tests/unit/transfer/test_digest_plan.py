from __future__ import annotations

import pytest
import torch

from liver_slurm.transfer.digest_plan import DigestPlan, samples
from liver_slurm.transfer.digest_table import UNITS, digest_tables


def test_no_boxes_have_no_digests() -> None:
    pending = DigestPlan([]).launch()
    assert pending.done()
    assert pending.result() == []


def test_boxes_of_the_host_are_refused() -> None:
    with pytest.raises(ValueError, match="one GPU, not of \\['cpu'\\]"):
        DigestPlan([torch.zeros(3)])


def test_samples_need_all_variants_of_the_kernel() -> None:
    tables = digest_tables(samples(torch.arange(256, dtype=torch.uint8)), 64)
    assert {(table.unit, table.flat) for table in tables} == {(unit, flat) for unit in UNITS for flat in (True, False)}
