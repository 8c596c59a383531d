"""What things take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulation_lab import COSTS, elastic_job

from liver_slurm.base.errors import BadInput
from liver_slurm.parallel.layout import Layout
from liver_slurm.policy.cost_model import estimate
from liver_slurm.simulation.costs import MEANINGS, Costs, StepTimes, assumed, read_costs, to_document


def test_a_layout_that_was_not_measured_takes_the_models_ratio() -> None:
    config = elastic_job()
    times = StepTimes(config, {"tp1pp1dp2": 2.0, "tp1pp1dp8": 0.6})
    assert times(Layout.parse("tp1pp1dp8")) == 0.6
    near, asked = Layout.parse("tp1pp1dp8"), Layout.parse("tp1pp1dp6")
    assert times(asked) == pytest.approx(0.6 * estimate(asked, config) / estimate(near, config))


def test_assumed_costs_say_so() -> None:
    costs = assumed(elastic_job())
    figures = list(costs.figures())
    assert {name for name, *_ in figures} == {"step_s tp1pp1dp8", *MEANINGS}
    assert all("assumed" in note for *_, note in figures)
    with pytest.raises(BadInput, match=r"elastic\.layouts"):
        assumed(replace(elastic_job(), elastic=replace(elastic_job().elastic, layouts=("tp1pp1dp64",))))


def write(folder: Path, document: Any) -> Path:
    path = folder / "costs.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    read = read_costs(write(tmp_path, to_document(COSTS)), Costs(step_s={"tp1pp1dp1": 9.0}))
    assert replace(read, notes={}) == COSTS
    some = read_costs(write(tmp_path, {"join_s": 7}), COSTS)
    assert (some.join_s, some.prepare_s) == (7, COSTS.prepare_s)
    assert (some.note("join_s"), some.note("prepare_s")) == ("from costs.json", COSTS.note("prepare_s"))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("no json", "cannot be read as JSON"),
        ([1], "it is no JSON object"),
        ({"speed": 1}, "there is no figure 'speed'"),
        ({"join_s": -1}, "join_s is -1; write a number of seconds"),
        ({"join_s": True}, "join_s is True"),
        ({"save_every_s": 0}, "save_every_s is 0"),
        ({"step_s": {}}, 'write {"tp2pp1dp2": SECONDS'),
        ({"step_s": {"two": 1}}, "'two' is not a layout"),
        ({"step_s": {"tp1pp1dp2": 0}}, "step_s of tp1pp1dp2 is 0"),
        ({"notes": {"join_s": 3}}, "notes is no object of texts"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path: Path, document: Any, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_costs(write(tmp_path, document), COSTS)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
