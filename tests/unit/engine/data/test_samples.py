"""Samples of a blend, from prepared text to a replica's part of a step."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from liver_slurm.base.errors import BadInput, RunIsOver
from liver_slurm.config.schema import DataSection, JobConfig, ModelSection, TrainSection
from liver_slurm.config.validation import ValidationSection
from liver_slurm.engine.data.prepare import resolve_data
from liver_slurm.engine.data.samples import SampleSource, open_samples
from liver_slurm.engine.megatron.microbatches import share_of
from liver_slurm.parallel.layout import Layout
from liver_slurm.rundir.paths import RunDir

LENGTH, SIZES = 4, (5, 11, 3)
"""Tokens and samples: small enough that each data set is gone through several times."""


@pytest.fixture
def blended(tmp_path: Path) -> tuple[JobConfig, RunDir]:
    """Three texts, each of its own bytes, two of them as validation data too."""
    paths = []
    for number, (size, first) in enumerate(zip(SIZES, "aAz", strict=True)):
        paths.append(tmp_path / f"{number}.txt")
        paths[-1].write_text("".join(chr(ord(first) + at // LENGTH) for at in range(size * LENGTH)))
    texts = tuple(map(str, paths))
    config = JobConfig(
        data=DataSection(paths=texts, weights=(0.5, 0.3, 0.2)),
        validation=ValidationSection(paths=texts[:2], weights=(3.0, 1.0)),
        train=TrainSection(steps=8, seq_length=LENGTH, micro_batch_size=2, global_batch_size=12),
    )
    run_dir = RunDir(tmp_path / "run")
    run_dir.data.mkdir(parents=True)
    return config, run_dir


def test_each_data_set_has_its_epochs_and_its_share(blended: tuple[JobConfig, RunDir]) -> None:
    config, run_dir = blended
    prefixes = resolve_data(config, run_dir)
    assert [Path(prefix).name for prefix in prefixes] == ["text-0", "text-1", "text-2"]
    rows = open_samples(config, prefixes).batch(0, 200)
    alone = [SampleSource([prefix], LENGTH, 0) for prefix in prefixes]
    assert [len(one) for one in alone] == list(SIZES)
    owner = {row.tobytes(): which for which, one in enumerate(alone) for row in one.batch(0, len(one))}
    sets = [owner[row.tobytes()] for row in rows]
    assert Counter(sets) == {0: 100, 1: 60, 2: 40}
    for which, size in enumerate(SIZES):
        own = [row.tobytes() for row, of in zip(rows, sets, strict=True) if of == which]
        epochs = [own[at : at + size] for at in range(0, len(own) - size + 1, size)]
        assert all(len(set(epoch)) == size for epoch in epochs), "each sample comes once an epoch"
        assert len({tuple(epoch) for epoch in epochs}) > 1, "epochs are shuffled anew"


@pytest.mark.parametrize("dp", [1, 2, 3, 5])
def test_replicas_read_the_same_samples_between_them(blended: tuple[JobConfig, RunDir], dp: int) -> None:
    config, run_dir = blended
    samples = open_samples(config, resolve_data(config, run_dir))
    batch, micro = config.train.global_batch_size, config.train.micro_batch_size
    for step in range(config.train.steps):
        shares = [share_of(batch // micro, Layout(1, 1, dp), replica) for replica in range(dp)]
        parts = [samples.batch(step * batch + one.first * micro, one.count * micro) for one in shares]
        assert np.array_equal(np.concatenate(parts), samples.batch(step * batch, batch))


def test_a_longer_run_keeps_the_order(blended: tuple[JobConfig, RunDir]) -> None:
    config, run_dir = blended
    prefixes = resolve_data(config, run_dir)
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=1000))
    assert np.array_equal(open_samples(longer, prefixes).batch(37, 60), open_samples(config, prefixes).batch(37, 60))


def test_validation_data_ends_before_a_data_set_begins_again(blended: tuple[JobConfig, RunDir]) -> None:
    config, run_dir = blended
    samples = open_samples(config, resolve_data(config, run_dir, "validation"), "validation")
    rows = [row.tobytes() for row in samples.batch(0, len(samples) + 1)]
    assert len(set(rows[:-1])) == len(samples)
    assert rows[-1] in rows[:-1]


@pytest.mark.parametrize("setting", ["reset_position_ids", "reset_attention_mask", "eod_mask_loss"])
def test_documents_that_end_otherwise_are_refused(blended: tuple[JobConfig, RunDir], setting: str) -> None:
    config, run_dir = blended
    prefixes = resolve_data(config, run_dir)
    for eod, fits in ((None, True), (256, True), (5, False)):
        data = dataclasses.replace(config.data, eod=eod, **{setting: True})
        if fits:
            open_samples(dataclasses.replace(config, data=data), prefixes)
        else:
            with pytest.raises(BadInput, match=r"text-0 ends with token 256, not with 5, .*; set data\.eod"):
                open_samples(dataclasses.replace(config, data=data), prefixes)


def test_a_token_beyond_the_vocabulary_is_named_where_it_lies(blended: tuple[JobConfig, RunDir]) -> None:
    config, run_dir = blended
    small = dataclasses.replace(config, model=ModelSection(vocab_size=256))
    with pytest.raises(RunIsOver, match=r"text-(0\.bin, token 20|1\.bin, token 44|2\.bin, token 12): token 256 is"):
        open_samples(small, resolve_data(config, run_dir)).batch(0, 100)
