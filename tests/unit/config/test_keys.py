"""The keys of job files as the schema has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from liver_slurm.config.keys import allowed_values, known_keys, required_keys, sections
from liver_slurm.config.schema import JobConfig


def fields(kind: Any, prefix: str = "") -> Iterator[str]:
    """All dotted names of a dataclass's fields and of those inside them."""
    hints = get_type_hints(kind)
    for item in dataclasses.fields(kind):
        yield prefix + item.name
        for inner in (hints[item.name], *get_args(hints[item.name])):
            if dataclasses.is_dataclass(inner):
                yield from fields(inner, f"{prefix}{item.name}.")


def test_every_field_of_the_schema_is_a_key() -> None:
    assert sorted(known_keys()) == sorted(fields(JobConfig))


def test_tables_that_may_be_repeated() -> None:
    assert {one.name for one in sections() if one.repeated} == {"live.component", "standby.unit"}


def test_required_keys() -> None:
    assert required_keys() == {
        "model.num_layers",
        "model.hidden_size",
        "model.num_attention_heads",
        "train.steps",
        "train.seq_length",
        "train.global_batch_size",
    }


def test_allowed_values_in_words() -> None:
    allowed = allowed_values()
    assert allowed["train.lr"] == "a number > 0"
    assert allowed["train.precision"] == '"fp32", "bf16"'
    assert allowed["model.ffn_hidden_size"] == "a whole number >= 1"
    assert allowed["model.extra"] == "a table"
    assert allowed["elastic.layouts"] == 'a list, each a layout such as "tp2pp1dp2", or "auto"'
    assert allowed["elastic.layouts[]"] == 'a layout such as "tp2pp1dp2"'
    assert allowed["live.setup"] == "a list, each text"
    assert allowed["live.component"] == "a list of tables"
