"""Packing of documents: what is predicted, how full samples are, and that nothing but the lengths decides."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.base.errors import BadInput, RunIsOver
from liver_slurm.config.schema import DataSection, JobConfig, ModelSection, TrainSection
from liver_slurm.config.validation import ValidationSection
from liver_slurm.engine.api import Samples
from liver_slurm.engine.data.packing import pack
from liver_slurm.engine.data.prepare import resolve_data
from liver_slurm.engine.data.samples import open_samples
from liver_slurm.engine.megatron.indexed_dataset import dataset_builder
from liver_slurm.rundir.paths import RunDir

EOD, LENGTH = 256, 8
SIZES = (7, 3, 0, 30, 1, 5, 2, 8, 16, 4, 12, 6)
"""Letters of the documents, without the token that ends them."""


@settings(max_examples=200, deadline=None)
@given(documents=st.lists(st.integers(1, 60), max_size=80), seq_length=st.integers(1, 20), window=st.integers(1, 100))
def test_each_token_is_predicted_once_and_samples_are_full(documents: list[int], seq_length: int, window: int) -> None:
    packing = pack(np.array(documents, dtype=np.int64), seq_length, window)
    predicted: Counter[int] = Counter()
    begins = np.concatenate([[0], np.cumsum(documents, dtype=np.int64)])
    filled: dict[int, list[int]] = {}
    for sample in range(len(packing.ends)):
        parts = packing.parts(sample)
        assert parts == sorted(parts), "as they lie in the data"
        assert sum(length for _, length in parts) <= seq_length + 1
        owners = [int(np.searchsorted(begins, start, "right")) - 1 for start, _ in parts]
        assert len({owner // window for owner in owners}) == 1
        assert all(start + length <= begins[owner + 1] for (start, length), owner in zip(parts, owners, strict=True))
        filled.setdefault(owners[0] // window, []).append(sum(length for _, length in parts))
        predicted.update(token for start, length in parts for token in range(start + 1, start + length))
    expected = {token for first, last in pairwise(begins.tolist()) for token in range(first + 1, last)}
    assert predicted == Counter(expected)
    for fills in filled.values():
        least = sorted(fills)[:2]
        assert len(least) < 2 or sum(least) > seq_length + 1


def test_each_goes_to_the_fullest_sample_with_room() -> None:
    """The longest first: of 20 tokens two samples are full, and its last two are with 5 and 3, which are 2 short."""
    packing = pack(np.array([3, 6, 4, 5, 20]), 9, 100)
    held = [tuple(length for _, length in packing.parts(sample)) for sample in range(len(packing.ends))]
    assert sorted(held) == [(3, 5, 2), (6, 4), (10,), (10,)]


@pytest.fixture
def job(tmp_path: Path) -> tuple[JobConfig, RunDir]:
    """A text of short and long documents, each of letters of its own."""
    path, run_dir = tmp_path / "some.jsonl", RunDir(tmp_path / "run")
    run_dir.data.mkdir(parents=True)
    texts = (chr(65 + number) * size for number, size in enumerate(SIZES))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts if text))
    data = DataSection(paths=(str(path),), packing="best_fit", eod_mask_loss=True)
    config = JobConfig(
        data=data,
        validation=ValidationSection(paths=(str(path),)),
        train=TrainSection(steps=8, seq_length=LENGTH, micro_batch_size=1, global_batch_size=4),
    )
    return config, run_dir


def opened(config: JobConfig, run_dir: RunDir) -> Samples:
    return open_samples(config, resolve_data(config, run_dir))


def counted(rows: np.ndarray) -> Counter[int]:
    """What is predicted, with the loss of what follows the end of a document left out."""
    return Counter(rows[:, 1:][rows[:, :-1] != EOD].tolist())


def test_an_epoch_has_each_document_whole_and_is_filled_up(job: tuple[JobConfig, RunDir]) -> None:
    samples = opened(*job)
    rows = samples.batch(0, len(samples))
    letters = {65 + number: size - 1 for number, size in enumerate(SIZES) if size > 1}
    assert counted(rows) == Counter({**letters, EOD: sum(size > 0 for size in SIZES)})
    short = [65 + number for number, size in enumerate(SIZES) if 0 < size < LENGTH]
    assert all(len({at for at, row in enumerate(rows) if letter in row}) == 1 for letter in short), "never cut"
    assert len(samples) < -(-(sum(SIZES) + len(SIZES)) // LENGTH) + 2, "hardly more than without"
    again = samples.batch(len(samples), len(samples))
    assert sorted(map(bytes, again)) == sorted(map(bytes, rows))
    assert not np.array_equal(again, rows), "each epoch has its order"


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_who_reads_how_many_at_a_time_changes_nothing(job: tuple[JobConfig, RunDir], parts: int) -> None:
    whole = opened(*job).batch(3, 12)
    some = [opened(*job).batch(3 + first, 12 // parts) for first in range(0, 12, 12 // parts)]
    assert np.array_equal(np.concatenate(some), whole)
    longer = replace(job[0], train=replace(job[0].train, steps=1000))
    assert np.array_equal(opened(longer, job[1]).batch(3, 12), whole)


def test_blends_and_validation_are_packed_alike(job: tuple[JobConfig, RunDir], tmp_path: Path) -> None:
    config, run_dir = job
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": letter * 3}) + "\n" for letter in "xyzxyz"))
    blend = replace(config.data, paths=(*config.data.paths, str(other)), weights=(1.0, 1.0))
    rows = opened(replace(config, data=blend), run_dir).batch(0, 20)
    of_other = [row for row in rows if set(map(chr, row[row < EOD])) <= set("xyz")]
    assert len(of_other) == 10
    assert all(sum(row == EOD) == 3 for row in of_other), "two of four tokens each, and one that fills up"
    validated = open_samples(config, resolve_data(config, run_dir, "validation"), "validation")
    plain = opened(config, run_dir)
    assert counted(validated.batch(0, len(validated))) == counted(plain.batch(0, len(plain)))


def test_a_strange_token_is_named_by_its_place_in_the_data(job: tuple[JobConfig, RunDir]) -> None:
    config, run_dir = job
    small = replace(config, model=ModelSection(vocab_size=75))
    with pytest.raises(RunIsOver, match=r"token (\d+): token (\d+) is not in the vocabulary of 75") as caught:
        opened(small, run_dir).batch(0, 20)
    named = caught.value.args[0].partition(".bin, token ")[2].split(": token ")
    place, token = int(named[0]), int(named[1].split()[0])
    data = [one for number, size in enumerate(SIZES) if size for one in [65 + number] * size + [EOD]]
    assert data[place] == token


def test_data_without_anything_to_predict_is_refused(tmp_path: Path, job: tuple[JobConfig, RunDir]) -> None:
    path, run_dir = tmp_path / "empty", RunDir(tmp_path / "other")
    run_dir.data.mkdir(parents=True)
    builder = dataset_builder(path.with_suffix(".bin"), 257)
    for _ in range(2):
        builder.add_document(np.array([EOD]), [1])
    builder.finalize(str(path.with_suffix(".idx")))
    data = replace(job[0].data, paths=(str(path),))
    with pytest.raises(BadInput, match=r"data\.paths: no document of two tokens in"):
        opened(replace(job[0], data=data), run_dir)
