"""From a table to a model: what is learned, what is refused, and that the value is that of runs not seen."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from liver_slurm.advisor.fitting import evaluate, fit
from liver_slurm.advisor.model import Constant, Figure, Plane
from liver_slurm.advisor.preparing import Wish, prepare
from liver_slurm.advisor.rows import NOT_FOLLOWED, Header, Row, Rows
from liver_slurm.base.errors import BadInput

HEADER = Header(features_version=1, windows_s=(300.0, 1800.0))
FAR = Wish(window_s=1800.0)


def made(n: int = 1200, effect: float = 20.0, seed: int = 0, runs: int = 60, digest: str = "d") -> Rows:
    """Taking gains ``effect`` for each standard deviation of ``life``; a third of the later outcomes are cut off."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(n):
        life, room = random.normal(), random.normal()
        take = bool(random.random() < 0.6)
        early = take * effect * life / 2 + random.normal() * 3.0
        late = take * effect * life + random.normal() * 10.0 + room
        cut = random.random() < 0.2 + 0.3 * (early > 0.0)
        known = {"life": life, "room": room if number % 7 else None}
        rows.append(
            Row(
                decision=f"r{seed}:{number}", run=str(number % runs), time=0.0, policy="explore",
                action="take" if take else "leave", propensity=0.6 if take else 0.4,
                features={**known, "still": 2.0, "never": None, "twin": -life},
                gain_s=(early, None if cut else late), reason="the log ends" if cut else "",
            )
        )  # fmt: skip
    return Rows(HEADER, tuple(rows), (digest,))


def test_a_rule_that_is_there_is_found_and_is_advice() -> None:
    found = fit(made(), None, FAR, 5.0)
    assert found.advises
    assert found.window_s == 1800.0
    assert [(one.feature, one.missing) for one in found.columns] == [("life", False), ("room", False), ("room", True)]
    assert found.notes == (
        "left out, the same in all decisions, or unknown: still, never",
        "left out, as good as equal to another: twin",
    )
    assert isinstance(found.rule, Plane)
    assert found.takes(found.values({"life": 1.0, "room": 0.0}))
    assert not found.takes(found.values({"life": -1.0, "room": None}))
    assert found.speaks(found.values({"life": -2.0, "room": 0.0}))[0] == "life low"
    assert found.gain is not None
    assert found.gain.low < 20.0 * 0.399 < found.gain.high, "E[max(0, -Z)] of what is avoided"
    assert found.effect is not None
    assert found.effect.low < 0.0 < found.effect.high
    assert found.far(found.values({"life": 50.0, "room": 0.0})) == ["life"]
    assert {one.action for one in found.weights} == {"leave", "take"}
    assert found.tipping_lost_s is not None
    takes, leaves, rule = found.worth
    assert (takes.name, leaves.name, rule.name) == ("take always", "leave always", "the learned rule")
    assert (takes.gain, rule.gain) == (Figure(value=0.0, low=0.0, high=0.0), found.gain)
    assert leaves.gain is not None
    assert leaves.gain.value == pytest.approx(-found.effect.value)
    assert rule.taken == pytest.approx(0.5, abs=0.1)
    assert [one.window_s for one in found.horizons] == [300.0, 1800.0]
    assert found.horizon == "it was asked for"
    assert sum(one.left + one.taken for one in found.overlap) == 1200
    assert all(min(one.left, one.taken) > 0 for one in found.overlap)


@pytest.mark.parametrize("rule_class", ["hinge", "tree"])
def test_other_classes(rule_class: str) -> None:
    found = fit(made(), None, replace(FAR, rule_class=rule_class), 0.0)
    assert found.advises
    assert not found.takes(found.values({"life": -1.5, "room": 0.0}))


def test_where_taking_does_not_matter_there_is_no_advice() -> None:
    found = fit(made(effect=0.0), None, FAR, 0.0)
    assert not found.advises
    assert found.verdict.startswith("take always")


def test_too_few_decisions_give_a_model_that_takes() -> None:
    found = fit(made(60, runs=10), None, FAR, 0.0)
    assert not found.advises
    assert "too few data" in found.verdict
    assert found.rule == Constant(take=True)
    assert found.gain is None


def test_a_nearer_outcome_counts_where_the_farthest_was_hardly_seen() -> None:
    table = made()
    near = tuple(msgspec.structs.replace(row, gain_s=(row.gain_s[0], None)) for row in table.rows)
    assert prepare(replace(table, rows=near), None, Wish()).window_s == 300.0
    assert prepare(table, None, Wish(window_s=300.0)).window_s == 300.0


def test_the_value_elsewhere() -> None:
    here, there = made(2500), made(600, seed=1)
    lives = (
        msgspec.structs.replace(row, features={**row.features, "life": (row.features["life"] or 0.0) - 0.7})
        for row in there.rows
    )
    target = replace(there, rows=tuple(lives))
    found = fit(here, target, replace(FAR, features=("life", "room")), 0.0)
    assert found.target_decisions == 600
    assert found.advises
    assert found.tipping_concept_s is not None
    assert sum(one.there for one in found.overlap) == pytest.approx(1.0)
    assert any("the target differs most in life" in note for note in found.notes)
    _, values = evaluate(here, target, {"m": found}, replace(FAR, features=("life",)))
    by_name = {one.name: one for one in values}
    low, high = by_name["take always"].value.interval()
    assert low < -14.0 < high, "20 s for each of 0.7 standard deviations less"
    assert by_name["leave always"].value.value == pytest.approx(0.0, abs=3.0)
    assert by_name["take always"].gain.value == 0.0


def test_a_model_is_judged_by_decisions_that_it_has_not_seen() -> None:
    """Noise that was learned is worth nothing on another table, and is not said to be on its own."""
    table = made(400, effect=0.0, runs=40)
    model = fit(table, None, replace(FAR, learn_by="efficient"), 0.0)
    _, values = evaluate(table, None, {"m": model}, replace(FAR, learn_by="efficient"))
    own = values[-1]
    assert "learned from this table" in own.note
    assert own.gain.interval()[0] < 0.0
    _, elsewhere = evaluate(made(400, effect=0.0, seed=5, digest="other"), None, {"m": model}, FAR)
    assert elsewhere[-1].note == ""
    low, high = elsewhere[-1].gain.interval(0.999)
    assert low < 0.0 < high


def changed(**changes: object) -> Rows:
    table = made(100)
    return replace(table, rows=tuple(msgspec.structs.replace(row, **changes) for row in table.rows))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (changed(reason=NOT_FOLLOWED, policy="greedy"), "policy greedy states no chance"),
        (changed(action="take"), "policy explore always does the same .take."),
        (changed(propensity=1.0), "policy explore decides nothing by lot"),
        (changed(gain_s=(None, None)), "no outcome was seen for both actions"),
        (changed(features={"life": 1.0}), "no feature differs between decisions"),
        (replace(made(10), rows=(*made(5).rows, *changed(policy="mine").rows)), "of policies explore, mine are mixed"),
    ],
)
def test_what_nothing_can_be_learned_from(rows: Rows, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        fit(rows, None, FAR, 0.0)


def test_wishes_that_cannot_be() -> None:
    with pytest.raises(BadInput, match="there is no feature hope; known: life, room"):
        fit(made(100), None, Wish(features=("hope",)), 0.0)
    with pytest.raises(BadInput, match="there is no window of 7 s; there are 300, 1800 s"):
        fit(made(100), None, Wish(window_s=7.0), 0.0)
    with pytest.raises(BadInput, match="features are of another version"):
        fit(made(100), replace(made(100), header=Header(features_version=2, windows_s=(1.0,))), FAR, 0.0)


def test_chances_that_were_not_logged_are_estimated_and_said() -> None:
    found = fit(changed(propensity=None), None, FAR, 0.0)
    assert "100 decisions have no chance logged: it is estimated" in found.notes


def test_few_runs_are_judged_with_fewer_folds_and_one_is_refused() -> None:
    _, values = evaluate(made(200, runs=3), None, {}, FAR)
    assert values[0].value.groups == 3
    with pytest.raises(BadInput, match="decisions are of 1 run"):
        evaluate(made(200, runs=1), None, {}, FAR)
    with pytest.raises(BadInput, match="the table has no decisions"):
        fit(replace(made(10), rows=()), None, FAR, 0.0)


def test_cost_aware_is_valued_by_what_it_would_have_done() -> None:
    table = made()
    known = (replace_features(row, saved_s=row.features["life"], cost_s=0.0) for row in table.rows)
    found = fit(replace(table, rows=tuple(known)), None, FAR, 0.0)
    priced = next(one for one in found.worth if one.name == "cost-aware")
    assert priced.gain is not None
    assert priced.gain.low < 20.0 * 0.399 < priced.gain.high, "it takes where taking gains, and nowhere else"
    assert priced.taken == pytest.approx(0.5, abs=0.05)


def replace_features(row: Row, **more: float | None) -> Row:
    return msgspec.structs.replace(row, features={**row.features, **more})


def test_lives_say_which_windows_are_too_near() -> None:
    table = made(effect=0.0)
    lives = tuple(replace_features(row, log_life_s=math.log1p(number % 1000)) for number, row in enumerate(table.rows))
    assert prepare(table, None, Wish()).window_s == 300.0
    assert prepare(replace(table, rows=lives), None, Wish()).window_s == 1800.0, (
        "half live for 500 s, nine of ten for 1,660"
    )


def test_what_own_decisions_make_is_no_feature_unless_it_is_named() -> None:
    table = made()
    known = tuple(replace_features(row, taken_1h=float(number % 5)) for number, row in enumerate(table.rows))
    ready = prepare(replace(table, rows=known), None, FAR)
    assert "taken_1h" not in [one.feature for one in ready.columns]
    assert "left out, as a run's own decisions make them (--features takes them in): taken_1h" in ready.notes
    named = prepare(replace(table, rows=known), None, replace(FAR, features=("life", "taken_1h")))
    assert [one.feature for one in named.columns] == ["life", "taken_1h"]
