"""The text formats, read by Prometheus' own parsers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from liver_slurm.observability.openmetrics import Family, exposition

FAMILIES = (
    Family("a_run", "info", "Which.", (({"name": 'quo"te\nback\\slash'}, 1),)),
    Family("b_seconds", "gauge", "A gauge\nin two lines, with \\.", (({}, 0.25), ({"kind": "x"}, math.nan))),
    Family("c_bytes", "counter", "A counter.", (({"kind": "x"}, 1 << 40),)),
    Family("d", "gauge", "Not known.", ()),
)


def test_openmetrics_is_read_as_it_was_meant() -> None:
    text = exposition(FAMILIES)
    found = {family.name: family for family in openmetrics(text)}
    assert [(name, family.type) for name, family in found.items()] == [
        ("a_run", "info"), ("b_seconds", "gauge"), ("c_bytes", "counter"),
    ]  # fmt: skip
    assert found["a_run"].samples[0].labels == {"name": 'quo"te\nback\\slash'}
    assert found["b_seconds"].documentation == "A gauge\nin two lines, with \\."
    assert found["b_seconds"].samples[0].value == 0.25
    assert math.isnan(found["b_seconds"].samples[1].value)
    assert (found["c_bytes"].samples[0].name, found["c_bytes"].samples[0].value) == ("c_bytes_total", 2.0**40)
    assert text.endswith("\n# EOF\n")


def test_the_older_format_has_the_same_samples() -> None:
    text = exposition(FAMILIES, "prometheus")
    samples = [sample for family in prometheus(text) for sample in family.samples]
    assert [sample.name for sample in samples] == [family.exported for family in FAMILIES[:3] for _ in family.samples]
    assert {family.name: family.type for family in prometheus(text)} == {
        "a_run_info": "gauge", "b_seconds": "gauge", "c_bytes": "counter",
    }  # fmt: skip
    assert "EOF" not in text


@given(st.floats(), st.text(max_size=20))
def test_any_value_and_label_is_read_back(value: float, label: str) -> None:
    if not all(character.isprintable() or character == "\n" for character in label):
        return  # a parser of lines takes some of these for ends of lines
    (family,) = openmetrics(exposition([Family("x", "gauge", "X.", (({"a": label}, value),))]))
    assert family.samples[0].value == pytest.approx(value, nan_ok=True)
    assert family.samples[0].labels == {"a": label}
