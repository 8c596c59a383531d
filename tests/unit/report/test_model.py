"""What the report shows, in numbers and words."""

from __future__ import annotations

import re

import numpy as np
import pytest
from ledger_stories import Story
from report_stories import grown_and_shrunk, report, validated

from liver_slurm.observability.ledger.sizes import Steps
from liver_slurm.report import model
from liver_slurm.report.model import comparison, cost, marks, parts, sentence, spread, tiles
from liver_slurm.report.page import render


def test_the_headline_says_what_became_of_the_world_and_what_it_cost() -> None:
    told = sentence(report(grown_and_shrunk(2)))
    assert told.startswith("The run grew twice and shrank twice, between 2 and 3 workers. That cost ")
    assert re.search(r" ms of training in all, 0\.\d+ % of \d min \d+ s\.$", told)


def test_the_headline_of_a_run_that_never_changed() -> None:
    story = Story()
    story.start(1.0, 1.0, 1.0)
    story.train(5)
    found = report(story)
    assert sentence(found) == "The run never changed its size."
    assert comparison(found) == ""
    assert [name for _, name, _ in tiles(found)] == ["ETTR", "capacity goodput"]


def test_changes_in_one_direction_that_lie_together_are_one_mark() -> None:
    story = Story()
    story.start(1.0, 1.0, 1.0)
    story.train(200)
    for _ in range(2):
        story.arrive(0, 0.0)
        story.change(0.25)
    story.train(200)
    found = report(story)
    assert sentence(found).startswith("The run grew twice, between 2 and 4 workers.")
    assert "2 changes" in comparison(found)
    (mark,) = marks(found)
    assert (mark.before, mark.after, len(mark.changes)) == (2, 4, 2)
    assert mark.cost_s == pytest.approx(2 * 0.2875)


def test_a_grow_and_a_shrink_are_two_marks_however_close() -> None:
    found = marks(report(grown_and_shrunk(1)))
    assert [(mark.before, mark.after) for mark in found] == [(2, 3), (3, 2)]
    assert [mark.grows for mark in found] == [True, False]


def test_the_comparison_has_this_runs_own_restart() -> None:
    found = report(grown_and_shrunk(1))
    assert "none of these 2 changes would be worth it: ETTR" in comparison(found)  # larger worlds are no faster here
    assert "0 ms lost, 0 restarts" in [words for _, _, words in tiles(found)]
    assert cost(found) < 1.0


def test_the_comparison_of_a_run_whose_growth_pays() -> None:
    story = Story()
    story.start(10.0, 16.0, 4.0)
    story.train(40)
    story.arrive(0, 3.0)
    story.change(0.25)
    story.train(200, seconds=0.5)
    found = report(story)
    assert "for each of these 1 change, training would stand still for 20.0 s: ETTR" in comparison(found)
    assert "20.0 s lost, 1 restart" in [words for _, _, words in tiles(found)]


def test_curves_have_few_points_and_keep_their_mean() -> None:
    story = Story()
    story.start(1.0, 1.0, 1.0)
    story.train(5000, seconds=0.01, gap=0.001)
    for index, row in enumerate(story.rows):
        row["loss"] = float(index)
    found = report(story)
    assert len(found.loss.values) == model.POINTS
    assert float(found.loss.values.mean()) == pytest.approx(2499.5, rel=1e-3)
    assert len(found.tokens.values) <= model.POINTS


def test_parts_of_a_run_have_all_of_its_changes_and_costs() -> None:
    found = report(grown_and_shrunk(7))
    cut = parts(found, 3)
    assert [part.grew + part.shrank for part in cut] == [4, 5, 5]
    assert sum(part.cost_s for part in cut) == pytest.approx(cost(found))
    assert [part.middle / found.length for part in cut] == pytest.approx([1 / 6, 1 / 2, 5 / 6])


def test_a_spread_keeps_the_mean_and_both_ends() -> None:
    found = spread(Steps((0.0, 1.0, 2.0, 2.5, 4.0), (0, 4, 2, 6)), 2)
    assert found.times.tolist() == [1.0, 3.0]
    assert found.least.tolist() == [0.0, 2.0]
    assert found.mean.tolist() == [2.0, 5.0]
    assert found.most.tolist() == [4.0, 6.0]


def test_a_spread_has_counts_that_begin_and_end_between_two_moments() -> None:
    found = spread(Steps((0.0, 10.0), (3,)), 4)
    assert found.least.tolist() == found.mean.tolist() == found.most.tolist() == [3.0] * 4


def test_all_tokens_are_in_the_curve_of_tokens() -> None:
    found = report(grown_and_shrunk(2))
    bins = np.diff(found.tokens.times)[0]
    assert float(found.tokens.values.sum() * bins) == pytest.approx(
        1024 * len(found.ledger.account.facts.steps), rel=1e-6
    )


def test_a_loss_that_is_not_finite_is_left_out() -> None:
    story = grown_and_shrunk(1)
    story.rows[3]["loss"] = np.nan
    assert len(report(story).loss.values) == len(story.rows) - 1


def test_validations_are_dots_at_their_time() -> None:
    story = grown_and_shrunk(1)
    created = report(story).ledger.account.facts.created
    found = report(story, None, [validated(created + 3.0, 4.0), validated(created + 5.0, np.nan)])
    assert (found.validations.times.tolist(), found.validations.values.tolist()) == ([3.0], [4.0])
    assert "dots: of validation" in render(found)
    assert "dots: of validation" not in render(report(story))


def test_the_undisturbed_run_is_compared_step_by_step() -> None:
    story, other = grown_and_shrunk(1), grown_and_shrunk(1)
    other.rows[7]["loss"] *= 1.001
    found = report(story, other)
    assert found.undisturbed is not None
    assert found.difference == pytest.approx(0.001, rel=0.01)
    other.rows = [{**row, "step": row["step"] + 10_000} for row in other.rows]
    assert report(story, other).undisturbed is None
