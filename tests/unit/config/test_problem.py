"""Keys and values of job files as messages show them."""

from __future__ import annotations

from liver_slurm.config.problem import join, nearest, one_line, shown


def test_keys_are_joined_as_toml_has_them() -> None:
    assert join("", "train") == "train"
    assert join("train", "lr") == "train.lr"
    assert join("train", "a.b") == 'train."a.b"'
    assert join("train", "") == 'train.""'
    assert join("train", "a\nb") == r'train."a\nb"'
    assert len(join("train", "x" * 1000)) < 100


def test_values_are_shown_as_toml_has_them_in_one_line() -> None:
    assert [shown(one) for one in (True, 3, "x", [1, "y", {}], {"a": 1})] == [
        "true", "3", '"x"', '[1, "y", a table]', "a table",
    ]  # fmt: skip
    assert shown("a\n\x1bb") == r'"a\n\x1bb"'
    assert len(shown("x" * 1000)) < 70
    assert shown("größe") == '"größe"'
    assert one_line(ValueError("two\n  lines")) == "two lines"


def test_nearest_key() -> None:
    known = ["train", "train.lr", "train.steps", "model", "model.num_layers", "live", "live.time", "standby.time"]
    assert nearest("train.setps", known) == "train.steps"
    assert nearest("train.num_layers", known) == "model.num_layers"
    assert nearest("lvie", known) == "live"
    assert nearest("train.nothing_like_it", known) is None
