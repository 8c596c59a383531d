"""What is no tensor in a checkpoint of Megatron-LM's: its arguments, and how far the optimizer has come.

It is in the file ``common.pt``, or, from megatron-core 0.19 on, in one of those with the tensors. It is a pickle, of
whatever objects the arguments had. Nothing is made of those, see :mod:`liver_slurm.base.plain_pickle`, and names of
modules that no argument is of are refused.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liver_slurm.base.errors import BadInput
from liver_slurm.base.plain_pickle import Plain, read_pickle
from liver_slurm.config.problem import one_line
from liver_slurm.rundir.checkpoint_index import StoredBox, file_of

COMMON = "common.pt"
_OBJECT = "common_state/shard_0_1"
"""What it is called where it lies among tensors."""
_MODULES = {
    "argparse",
    "collections",
    "copyreg",
    "datetime",
    "enum",
    "io",
    "megatron",
    "numpy",
    "pathlib",
    "signal",
    "torch",
    "transformer_engine",
    "types",
}
_NAMES = {"builtins.bytearray", "builtins.getattr", "builtins.object", "builtins.set", "_codecs.encode"}
"""Names that enumerations, sets and bytes have in pickles."""
_MOST_BYTES = 1 << 30
"""Of the pickle: plain state, no tensors. More is no such file."""


class _Table(dict):  # type: ignore[type-arg]
    """An ``OrderedDict``, which may have attributes."""


@dataclass(frozen=True)
class Common:
    """What the file says."""

    args: dict[str, Any] | None
    """None: it has none."""
    steps: int | None
    """That the optimizer has made; None: it does not say."""


def read_common(path: Path, objects: Mapping[str, StoredBox]) -> Common:
    """Read it from a checkpoint.

    Args:
        objects: what is no tensor, and where it lies.

    Raises:
        BadInput: there is none, or it cannot be read without running what it names.
    """
    file = path / COMMON
    try:
        if not file.exists() and _OBJECT in objects:
            file = file_of(path, objects[_OBJECT].file)
            return _read(io.BytesIO(_part(file, objects[_OBJECT])))
        return _read(file)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged bytes may raise anything
        raise BadInput(
            f"{file} cannot be read: {one_line(error)}; nothing of it was run; --job JOB.toml says which model it is"
        ) from None


def _part(file: Path, place: StoredBox) -> bytes:
    with file.open("rb") as stream:
        stream.seek(place.start)
        return stream.read(min(place.length, _MOST_BYTES))


def _read(file: Path | io.BytesIO) -> Common:
    with zipfile.ZipFile(file) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith("/data.pkl"))
        if archive.getinfo(name).file_size > _MOST_BYTES:
            raise ValueError("it is larger than any such file")
        found = read_pickle(archive.read(name), _known, persistent=lambda pid: pid)
        if isinstance(found, list):
            (found,) = found
        return _common(found, archive, name.removesuffix("data.pkl"))


def _known(module: str, name: str) -> Any:
    if (module, name) == ("collections", "OrderedDict"):
        return _Table
    if module == "torch" and name.endswith("Storage"):
        return name
    return Plain if module.partition(".")[0] in _MODULES or f"{module}.{name}" in _NAMES else None


def _common(found: Any, archive: zipfile.ZipFile, prefix: str) -> Common:
    if not isinstance(found, dict):
        raise ValueError("it is no table")
    args = getattr(found.get("args"), "state", None)
    steps = {_number(one, archive, prefix) for one in _steps(found.get("optimizer"))} - {None}
    if len(steps) > 1:
        raise ValueError(f"its optimizer has made {sorted(steps)} steps")  # type: ignore[type-var]
    iteration = found.get("iteration")
    last = iteration if isinstance(iteration, int) else None
    return Common(args if isinstance(args, dict) else None, next(iter(steps), last))


def _steps(state: Any) -> Iterator[Any]:
    """Yield what counts steps in the state of an optimizer."""
    if isinstance(state, dict):
        for key, value in state.items():
            if key in ("step", "common_step"):
                yield value
            else:
                yield from _steps(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _steps(value)


def _number(value: Any, archive: zipfile.ZipFile, prefix: str) -> int | None:
    """Return a counter, which torch keeps in a tensor."""
    if isinstance(value, (int, float)):
        return int(value)
    if not isinstance(value, Plain) or len(value.arguments) < 2:
        return None
    storage, offset = value.arguments[:2]
    if storage[:2] != ("storage", "FloatStorage"):
        return None
    (number,) = struct.unpack_from("<f", archive.read(f"{prefix}data/{storage[2]}"), 4 * offset)
    return int(number)
