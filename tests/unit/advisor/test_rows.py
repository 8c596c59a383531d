"""Tables on disk: read as written, and bad ones refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.advisor.rows import Header, Row, Rows, _fault, read_rows, write_rows
from liver_slurm.base.errors import BadInput

HEADER = Header(features_version=1, windows_s=(300.0, 1800.0))


def row(number: int = 0, **changes: object) -> Row:
    fields: dict[str, object] = {
        "decision": f"r:{number}", "run": "r", "time": 1.0, "policy": "explore", "action": "take", "propensity": 0.5,
        "features": {"room": 1.0, "speedup": None}, "gain_s": (1.0, None), "reason": "the log ends",
    }  # fmt: skip
    return Row(**{**fields, **changes})  # type: ignore[arg-type]


def test_read_as_written_and_doubles_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    write_rows(one, HEADER, [row(0), row(1)])
    write_rows(two, HEADER, [row(1), row(2, reason="not followed up", gain_s=(None, None))])
    found = read_rows([one, two])
    assert [each.decision for each in found.rows] == ["r:0", "r:1", "r:2"]
    assert (found.header, found.doubled, len(set(found.digests))) == (HEADER, 1, 2)
    assert found.rows[:2] == (row(0), row(1))
    assert len(found.followed) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is no table of decisions"),
        ('{"a": 1}\n', "is no table of decisions"),
        ('{"advisor_table": 9, "features_version": 1, "windows_s": [1]}\n', "is a table of version 9, not 1"),
        ('{"features_version": 1, "windows_s": [1]}\n{"decision": 3}\n', "line 2: is no decision"),
        ('{"features_version": 1, "windows_s": [1]}\n{"deci', "line 2: is no decision"),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(BadInput, match=said) as raised:
        read_rows([path])
    assert "\n" not in str(raised.value)
    with pytest.raises(BadInput, match="cannot be read"):
        read_rows([tmp_path / "none"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gain_s": (None, 1.0)}, "r:0: a later outcome is seen though an earlier one is not"),
        ({"gain_s": (1.0,)}, "has 1 outcomes for 2 windows"),
        ({"action": "half"}, "its action is 'half', neither take nor leave"),
        ({"propensity": 1.5}, "its propensity is 1.5, which is no chance"),
    ],
)
def test_rows_that_cannot_be_are_named(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    write_rows(tmp_path / "t", HEADER, [row(**changes)])
    with pytest.raises(BadInput, match=said):
        read_rows([tmp_path / "t"])


def test_tables_of_other_windows_do_not_go_together(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", HEADER, [row()])
    write_rows(tmp_path / "b", Header(features_version=1, windows_s=(60.0,)), [row(gain_s=(1.0,))])
    with pytest.raises(BadInput, match=r"windows of 60 s, but .* 300 s, 1800 s; collect them together"):
        read_rows([tmp_path / "a", tmp_path / "b"])


@given(seen=st.lists(st.booleans(), min_size=2, max_size=2))
def test_only_monotone_rows_pass(seen: list[bool]) -> None:
    made = row(gain_s=tuple(1.0 if one else None for one in seen))
    assert bool(_fault(made, HEADER)) == (seen == [False, True])
    assert Rows(HEADER, (made,)).followed == (made,)
