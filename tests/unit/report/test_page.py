"""The page: everything in it, nothing fetched, and input is text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import msgspec
import pytest
from ledger_stories import facts
from report_stories import grown_and_shrunk, often_changed, report

from liver_slurm.observability.ledger.document import make_ledger
from liver_slurm.report import palette
from liver_slurm.report.model import make_report
from liver_slurm.report.page import render


@pytest.fixture(scope="module")
def page() -> str:
    return render(report(grown_and_shrunk(2), grown_and_shrunk(2)))


def test_the_first_screen_comes_first(page: str) -> None:
    order = [
        "The run grew twice",
        "With a checkpoint and a restart",
        'id="world"',
        "ETTR with restarts",
        'id="details"',
    ]
    places = [page.index(text) for text in order]
    assert places == sorted(places)


def test_each_mark_is_in_the_figure_with_its_cost(page: str) -> None:
    for text in (
        "▲ 2→3 at 1 min 15 s, cost 288 ms",
        "▼ 3→2 at 1 min 59 s, cost 46 ms",
        "seconds since the run was created",
        "standby-1-0",
    ):
        assert f">{text}</text>" in page.replace("&#160;", " ")
    assert "2 to 3 workers, training lost 288 ms: told" in page


def test_nothing_is_fetched_and_nothing_runs(page: str) -> None:
    addresses = set(re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page))
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert "<script" not in page
    assert "@import" not in page


def test_figures_are_well_formed_and_have_ids_of_their_own(page: str) -> None:
    figures = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert len(figures) == 4  # two, each wide and narrow
    for figure in figures:
        ElementTree.fromstring(figure)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_greys_follow_the_reader(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert "var(--ink)" in page
    assert not [stand_in for stand_in in vars(palette.STAND_INS).values() if stand_in in page]


def test_what_files_say_is_shown_as_text() -> None:
    page = render(report(grown_and_shrunk(1, reason="<script>alert('$x_1$')</script> & co")))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 2  # in the table, and at the marks


def test_the_same_run_gives_the_same_page() -> None:
    assert render(report(grown_and_shrunk(1))) == render(report(grown_and_shrunk(1)))


@pytest.mark.parametrize("outcome", ["queued", "training"])
def test_a_run_without_steps_has_a_page(outcome: str) -> None:
    page = render(make_report(make_ledger(facts([], [], until=30.0, outcome=outcome))))
    assert "The run never changed its size." in page
    assert "no end of it is on record" in page


def test_thousands_of_changes_stay_a_page() -> None:
    page = render(report(often_changed(600)))
    assert "400 further ones are in events.jsonl" in page
    assert len(page) < 600_000
    assert ">▲ 38</text>" in page.replace("&#160;", " ")
    assert "line: mean; band: least and most" in page


def test_what_is_drawn_does_not_grow_with_the_run() -> None:
    """So that a million steps with thousands of changes take no longer to draw than some hundred."""
    few, many = (
        figures_of(render(report(often_changed(number, steps=steps)))) for number, steps in ((80, 10), (800, 40))
    )
    assert many.count("<") < 1.5 * few.count("<")
    assert len(many) < 1.5 * len(few)


def figures_of(page: str) -> str:
    return "".join(re.findall(r"<svg .*?</svg>", page, re.DOTALL))


def _named(name: str, reason: str) -> str:
    """The page of a run in which a worker has this name, and a change this reason."""
    story = grown_and_shrunk(1, reason)

    def renamed(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(map(renamed, value))
        return name if value == "standby-1-0" else value

    story.events = [
        msgspec.structs.replace(event, **{field: renamed(getattr(event, field)) for field in event.__struct_fields__})
        for event in story.events
    ]
    return render(report(story))


@pytest.mark.parametrize(
    "words",
    [
        "hand-$\\bad{$", "$x$", "see font-family: Arial", "ask #010203 on font: 12px Mono", 'id="x" url(#a)', "<b>&",
        '<g id="mark-0">',
    ],
)  # fmt: skip
def test_names_and_reasons_stay_what_they_are(words: str) -> None:
    page = _named(f"hand-{words}", words)
    figures = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert len(figures) == 4
    titles = []
    for figure in figures:
        drawn = ElementTree.fromstring(figure)
        titles += [one.text for one in drawn.iter() if one.tag.endswith("title")]
        if 'id="details' in figure:
            labels = [one.text for one in drawn.iter() if one.tag.endswith("text")]
            assert f"hand-{words}" in [(label or "").replace("\u00a0", " ") for label in labels]
    assert titles == [
        f"{way} workers, training lost {cost}: {words}"
        for _ in (1, 2)
        for way, cost in (("2 to 3", "288 ms"), ("3 to 2", "46 ms"))
    ]


def test_a_run_that_was_created_this_moment_has_a_page() -> None:
    assert "The run never changed its size." in render(make_report(make_ledger(facts([], []))))
