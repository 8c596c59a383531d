"""Documents in a sequence: positions that begin again, and attention that is kept apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from one_rank import shard_of  # noqa: E402

from liver_slurm.config.schema import DataSection, JobConfig, ModelSection, TrainSection  # noqa: E402
from liver_slurm.engine.megatron.model import DecoderConfig, unwrap  # noqa: E402
from liver_slurm.engine.megatron.positions import (  # noqa: E402
    document_starts,
    in_embeddings,
    positions_of,
    seen_from,
)
from liver_slurm.engine.megatron.shard import MegatronShard  # noqa: E402

LENGTH, EOD = 24, 7
CONFIG = JobConfig(
    model=ModelSection(
        num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=48, vocab_size=61
    ),
    data=DataSection(eod=EOD, reset_position_ids=True, reset_attention_mask=True, eod_mask_loss=True),
    train=TrainSection(steps=1, seq_length=LENGTH, micro_batch_size=2, global_batch_size=2),
)
TOKENS = st.lists(st.lists(st.sampled_from([EOD, 1, 2, 3]), min_size=LENGTH, max_size=LENGTH), min_size=1, max_size=3)


class Ranks(NamedTuple):
    """Stands for a group of context parallel ranks."""

    ranks: int
    own: int

    def size(self) -> int:
        return self.ranks

    def rank(self) -> int:
        return self.own


@given(TOKENS)
def test_a_document_begins_behind_the_end_of_another(rows: list[list[int]]) -> None:
    found = document_starts(torch.tensor(rows), EOD)
    for row, starts in zip(rows, found.tolist(), strict=True):
        expected, start = [], 0
        for place, token in enumerate(row):
            expected.append(start)
            if token == EOD:
                start = place + 1
        assert starts == expected


@given(TOKENS, st.booleans(), st.booleans(), st.sampled_from([1, 2, 3, 4]))
def test_context_parallel_ranks_have_the_parts_of_one(
    rows: list[list[int]], places: bool, apart: bool, ranks: int
) -> None:
    angles = torch.arange(LENGTH * 3, dtype=torch.float32).view(LENGTH, 1, 1, 3)
    config = DecoderConfig(
        num_layers=1, hidden_size=4, num_attention_heads=1, reset_position_ids=places, reset_attention_mask=apart
    )

    def of(ranks: int, own: int) -> Any:
        starts = document_starts(torch.tensor(rows), EOD)
        return positions_of(angles, starts, torch.float32, Ranks(ranks, own), config)

    whole, parts = of(1, 0), [of(ranks, own) for own in range(ranks)]
    assert torch.equal(torch.cat([part.cos for part in parts]), whole.cos)
    assert torch.equal(torch.cat([part.sin for part in parts]), whole.sin)
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    if whole.seen is None:
        assert not apart
        assert ranks == 1 or torch.equal(torch.cat([part.seen for part in parts]), causal)
    else:
        assert torch.equal(torch.cat([part.seen for part in parts], -2), whole.seen)
        assert not (whole.seen & ~causal).any()
        assert whole.seen.diagonal(dim1=-2, dim2=-1).all(), "a token sees itself"


@given(TOKENS, st.booleans(), st.sampled_from([1, 2, 3, 4]))
def test_positions_in_the_embeddings_are_seen_by_the_same_tokens(
    rows: list[list[int]], apart: bool, ranks: int
) -> None:
    config = DecoderConfig(num_layers=1, hidden_size=4, num_attention_heads=1, reset_attention_mask=apart)
    for own in range(ranks):
        for starts in (None, document_starts(torch.tensor(rows), EOD)):
            angles, again = torch.zeros(LENGTH, 1, 1, 4), None if starts is None else starts.clone()
            turned = positions_of(angles, again, torch.float32, Ranks(ranks, own), config)
            found = in_embeddings(LENGTH, starts, torch.device("cpu"), Ranks(ranks, own), config)
            assert (found.cos, found.sin) == (None, None)
            assert found.seen is turned.seen is None or torch.equal(found.seen, turned.seen)


@pytest.fixture(scope="module")
def shard() -> Iterator[MegatronShard]:
    """A small model in a world of one."""
    with shard_of(CONFIG) as made:
        yield made


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, LENGTH), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_a_packed_document_has_the_logits_that_it_has_alone(
    shard: MegatronShard, lengths: list[int], random: Any
) -> None:
    model = unwrap(shard.chunks[0])
    documents = [[*(random.choice(range(8, 61)) for _ in range(length - 1)), EOD] for length in lengths]
    packed = torch.tensor([[token for document in documents for token in document]])

    def logits(tokens: Any) -> Any:
        with torch.no_grad():
            return model(tokens, None, document_starts(tokens, EOD))[0]

    found = logits(packed).split(lengths)
    for document, part in zip(documents, found, strict=True):
        torch.testing.assert_close(part, logits(torch.tensor([document])), rtol=1e-5, atol=1e-6)


class Rows(NamedTuple):
    """Samples that are given."""

    rows: list[list[int]]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, first: int, count: int) -> Any:
        return torch.tensor(self.rows[first : first + count]).numpy()


def test_the_loss_of_what_follows_the_end_of_a_document_is_left_out(shard: MegatronShard) -> None:
    """And a step of which no loss counts is one of loss 0."""
    row = [9, 10, 11, EOD, 12, EOD, EOD, *range(13, 13 + LENGTH - 6)]
    found = shard.evaluate(Rows([row, row]), 0, 2, False)
    assert found.tokens == 2 * (LENGTH - 3)
    model = unwrap(shard.chunks[0])
    tokens = torch.tensor([row])
    with torch.no_grad():
        losses = model(tokens[:, :-1], None, document_starts(tokens[:, :-1], EOD), labels=tokens[:, 1:])[0]
    expected = 2 * sum(loss for loss, token in zip(losses.tolist(), row, strict=False) if token != EOD)
    assert found.loss_sum == pytest.approx(expected, rel=1e-6)
    empty = shard.evaluate(Rows([[EOD] * (LENGTH + 1)] * 2), 0, 2, False)
    assert (empty.loss_sum, empty.tokens) == (0.0, 0)
    step = shard.train_step(Rows([[EOD] * (LENGTH + 1)] * 2), 0)
    assert (step.loss, step.tokens) == (0.0, 0)


def test_without_these_settings_nothing_is_asked_of_the_model() -> None:
    """What it is given is what it always was."""
    angles = torch.zeros(LENGTH, 1, 1, 4)
    config = DecoderConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
    alone = positions_of(angles, None, torch.float32, Ranks(1, 0), config)
    assert alone.seen is None
    assert alone.cos.shape == (LENGTH, 1, 1, 4)
    assert positions_of(angles, None, torch.float32, Ranks(1, 0), config) is alone, "made once"
    assert positions_of(angles, None, torch.bfloat16, Ranks(1, 0), config) is not alone
    assert not dataclasses.replace(CONFIG, data=DataSection(eod_mask_loss=True)).data.resets


def test_megatrons_mask_hides_what_is_not_seen() -> None:
    starts = document_starts(torch.tensor([[1, EOD, 2, 3]]), EOD)
    assert seen_from(starts, slice(None))[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
