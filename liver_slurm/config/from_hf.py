"""``model.from_hf``: the section ``[model]`` from the ``config.json`` of a Hugging Face model's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from liver_slurm.base.errors import BadInput
from liver_slurm.config.hf_config import HfModel, UnknownModelError, read_config
from liver_slurm.config.problem import Problem, one_line, shown
from liver_slurm.config.types import expand_path

Table = dict[str, Any]
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"


def read_hf_config(folder: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a model's folder.

    Raises:
        BadInput: there is none, or it is no table.
    """
    file = folder / CONFIG
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise BadInput(f"{folder} is no folder of a Hugging Face model: it has no {CONFIG}") from None
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{file} cannot be read: {one_line(error)}") from None


def read_hf_model(folder: Path) -> HfModel:
    """Read what a model's folder says of its model.

    Raises:
        BadInput: it has no ``config.json``, or that is of a model that this product cannot train.
    """
    try:
        return read_config(read_hf_config(folder))
    except UnknownModelError as error:
        raise BadInput(f"{folder / CONFIG}: {error}") from None


def filled(tables: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[Table, list[Problem]]:
    """Fill ``[model]`` of a job's tables from the folder that ``model.from_hf`` names, if it names one.

    The tokenizer of that folder is the default of ``data.tokenizer``.

    Args:
        own: the keys of ``[model]`` that the job's author has written; they are compared with the folder's.

    Returns:
        the tables, and what is wrong with them.
    """
    model, data, train = (_table(tables, name) for name in ("model", "data", "train"))
    named = model.get("from_hf")
    if not isinstance(named, str):
        return dict(tables), []  # decoding refuses what is no path
    try:
        folder = Path(expand_path(named))
        found = read_hf_model(folder)
    except ValueError:
        return dict(tables), []
    except BadInput as error:
        return dict(tables), [Problem("model.from_hf", str(error))]
    problems = [
        Problem(f"model.{key}", f"{shown(own[key])} is not that of {folder / CONFIG}; allowed: {_said(value)}")
        for key, value in found.section.items()
        if key in own and own[key] != value
    ]
    if own.get("provider") is not None:
        problems.append(Problem("model.provider", "has no place beside model.from_hf; allowed: one of the two"))
    if own.get("num_moe_experts") is not None and "num_moe_experts" not in found.section:
        problems.append(Problem("model.num_moe_experts", f"is not that of {folder / CONFIG}; allowed: leave it out"))
    length = train.get("seq_length")
    if found.window is not None and isinstance(length, int) and length > found.window:
        text = f"{length} is above the sliding window of {folder / CONFIG}; allowed: at most {found.window}"
        problems.append(Problem("train.seq_length", text))
    tokenizer = folder / TOKENIZER
    defaults = {"tokenizer": str(tokenizer)} if tokenizer.is_file() else {}
    values = {key: value for key, value in found.section.items() if value is not None}
    return {**tables, "model": {**model, **values}, "data": {**defaults, **data}}, problems


def _said(value: object) -> str:
    return "leave it out" if value is None else f"{shown(value)}, or leave it out"


def _table(tables: Mapping[str, Any], name: str) -> Table:
    table = tables.get(name, {})
    return table if isinstance(table, dict) else {}
