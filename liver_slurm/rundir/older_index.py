"""The index of checkpoints that older versions wrote: torch's ``.metadata``, which is a pickle.

A pickle is a program. So no class that it names is ever looked up: each is read as plain data, and names that torch's
metadata does not have are refused.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from liver_slurm.rundir.checkpoint_index import DamagedError, Index, StoredBox, StoredTensor, read_file

METADATA = ".metadata"
_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"Path", "PosixPath"},
    "pathlib._local": {"Path", "PosixPath"},
}
_DTYPES = {"bfloat16", "bool", "float16", "float32", "float64", "int16", "int32", "int64", "int8", "uint8"}


class _Plain:
    """What an object of the pickle was made of."""

    arguments: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *arguments: Any) -> _Plain:
        self = super().__new__(cls)
        self.arguments = arguments
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __getattr__(self, name: str) -> Any:
        if isinstance(state := self.__dict__.get("state"), dict) and name in state:
            return state[name]
        raise AttributeError(name)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _CLASSES.get(module, ()):
            return _Plain
        if module == "torch" and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}, which torch's metadata does not have")


def read_older_index(path: Path) -> Index:
    """Read what lies where in a checkpoint of an older version.

    Raises:
        DamagedError: its ``.metadata`` is missing or damaged.
    """
    file = path / METADATA
    content = read_file(file)
    try:
        metadata = _Unpickler(io.BytesIO(content)).load()
        return _as_index(metadata)
    except Exception as error:  # noqa: BLE001 - damaged bytes may raise anything
        raise DamagedError(f"{file} is damaged: {type(error).__name__}: {error}") from None


def _as_index(metadata: Any) -> Index:
    places = {(key.fqn, _numbers(key.offset)): place for key, place in metadata.storage_data.items()}
    index: Index = {}
    for name, tensor in metadata.state_dict_metadata.items():
        boxes = []
        for chunk in tensor.chunks:
            offset = _numbers(chunk.offsets)
            place = places[name, offset]
            boxes.append(
                StoredBox(offset, _numbers(chunk.sizes), str(place.relative_path), place.offset, place.length, "")
            )
        index[name] = StoredTensor(str(tensor.properties.state[0]), _numbers(tensor.size), boxes)
    return index


def _numbers(size: Any) -> tuple[int, ...]:
    return tuple(int(number) for number in (size.arguments[0] if size.arguments else ()))
