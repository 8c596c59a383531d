"""docs/protocol.md: its invariants are numbered without gaps, and each is cited by a test that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents import generate


def test_invariants_are_numbered_without_gaps() -> None:
    numbers = generate.invariants()
    assert numbers == [f"LS-{number}" for number in range(1, len(numbers) + 1)]


def test_each_invariant_is_cited_by_a_test_and_no_other_number_is() -> None:
    assert set(generate.cited()) == set(generate.invariants())


def test_a_number_counts_only_inside_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text('''"""LS-1"""\n# LS-2\ndef helper():\n    """LS-3"""\n
def test_it():
    # LS-4, LS-5
    assert True\n''')
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    assert {number: [name for _, name in tests] for number, tests in generate.cited().items()} == {
        "LS-4": ["test_it"],
        "LS-5": ["test_it"],
    }
