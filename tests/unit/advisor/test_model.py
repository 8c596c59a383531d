"""A model's file: what it says is what the learned rule says, and a broken one is refused in one line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.advisor import rules
from liver_slurm.advisor.model import Column, Constant, Model, RuleDocument, read_model, write_model
from liver_slurm.base.errors import BadInput

COLUMNS = tuple(Column(feature=name, low=-2.0, high=2.0) for name in "abc")


def model(rule: RuleDocument, **changes: object) -> Model:
    fields: dict[str, object] = {
        "features_version": 1, "columns": COLUMNS, "rule": rule, "advises": True, "verdict": "yes", "window_s": 300.0,
        "rule_class": "linear", "learned_by": "plug-in", "decisions": 1, "runs": 1,
    }  # fmt: skip
    return Model(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", rules.CLASSES)
def test_the_file_says_what_the_rule_says(tmp_path: Path, name: str) -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(600, 3)) * (1.0, 20.0, 0.1) + (0.0, 5.0, 1.0)
    rule = rules.CLASSES[name](x, x[:, 0] + 0.1 * np.abs(x[:, 1]) - 0.7 + random.normal(size=600))
    write_model(tmp_path / "m.json", model(rules.document(rule)))
    read = read_model(tmp_path / "m.json", 1)
    assert [float(read.takes(tuple(row))) for row in x.tolist()] == rule(x).tolist()
    assert 0.1 < rule(x).mean() < 0.9


def test_constant_rules_are_known_by_what_they_do() -> None:
    assert rules.document(rules.always) == Constant(take=True)
    assert rules.document(rules.never) == Constant(take=False)


@given(value=st.floats(allow_nan=False, allow_infinity=False), sd=st.floats(0.1, 10.0))
def test_what_is_far_is_outside_of_what_was_seen(value: float, sd: float) -> None:
    column = Column(feature="a", low=-1.0, high=2.0, sd=sd)
    assert column.is_far(value) == (value < -1.0 - 3 * sd or value > 2.0 + 3 * sd)


def test_what_is_not_known_is_the_mean_and_a_flag() -> None:
    columns = (Column(feature="a", fill=3.0), Column(feature="a", missing=True))
    made = model(Constant(take=True), columns=columns)
    assert made.values({"a": None}) == (3.0, 1.0)
    assert made.values({}) == (3.0, 1.0)
    assert made.values({"a": 5.0}) == (5.0, 0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"advisor_model": 7}, "of version 7, not 1"),
        ({"rule": {"type": "oracle"}}, "is no advisor's model"),
        ({"columns": []}, "its plane does not fit 0 columns"),
        ({"features_version": 2}, "learned from features of version 2, this is 1"),
        (
            {"rule": {"type": "tree", "nodes": [{"column": 0, "below": 0, "above": 0}]}},
            "node 0 of its tree leads nowhere",
        ),
        ({"rule": {"type": "tree", "nodes": []}}, "its tree is empty"),
    ],
)
def test_broken_models_are_refused_in_one_line(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = tmp_path / "m.json"
    x = np.random.default_rng(0).normal(size=(50, 3))
    document = json.loads(msgspec.json.encode(model(rules.document(rules.linear(x, x[:, 0])))))
    path.write_text(json.dumps(document))
    read_model(path, 1)
    path.write_text(json.dumps({**document, **change}))
    with pytest.raises(BadInput, match=said) as raised:
        read_model(path, 1)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", '{"advisor_model": 1}', "\x00\xff"])
def test_other_files_are_no_models(tmp_path: Path, content: str) -> None:
    (tmp_path / "m").write_text(content)
    with pytest.raises(BadInput, match="is no advisor's model"):
        read_model(tmp_path / "m")
    with pytest.raises(BadInput, match="cannot be read"):
        read_model(tmp_path / "none")


def test_a_rule_is_applied_in_far_less_than_a_millisecond() -> None:
    """T16: 30 columns that bend at three knots; the median of many, as the machine may be busy."""
    x = np.random.default_rng(0).normal(size=(400, 30))
    made = model(
        rules.document(rules.hinge(x, x[:, 0] - 0.1)), columns=tuple(Column(feature=str(n)) for n in range(30))
    )
    features = {str(number): 0.1 * number for number in range(30)}
    took = []
    for _ in range(200):
        began = time.perf_counter()
        values = made.values(features)
        made.takes(values)
        made.far(values)
        took.append(time.perf_counter() - began)
    assert sorted(took)[100] < 1e-3


def test_applying_imports_nothing_heavy() -> None:
    import subprocess

    code = "import sys, liver_slurm.advisor.model; print({'numpy', 'sklearn', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
