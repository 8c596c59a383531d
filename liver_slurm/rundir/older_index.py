"""The index of checkpoints that older versions wrote, or Megatron-LM: torch's ``.metadata``, which is a pickle.

It is read as plain data, and names that such metadata does not have are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from liver_slurm.base.plain_pickle import Plain, read_pickle
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
    "torch.distributed.checkpoint.planner": {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata", "MCoreSavePlan"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"Path", "PosixPath"},
    "pathlib._local": {"Path", "PosixPath"},
}
_DTYPES = {
    "bfloat16",
    "bool",
    "float16",
    "float32",
    "float64",
    "float8_e4m3fn",
    "float8_e5m2",
    "int16",
    "int32",
    "int64",
    "int8",
    "uint8",
}


def read_older_index(path: Path) -> Index:
    """Read what lies where in a checkpoint of an older version; errors as of :func:`read_torch_metadata`."""
    return read_torch_metadata(path)[0]


def read_torch_metadata(path: Path) -> tuple[Index, dict[str, StoredBox]]:
    """Read which tensors lie where by a checkpoint's ``.metadata``, and where what is no tensor but bytes.

    Raises:
        DamagedError: its ``.metadata`` is missing or damaged.
    """
    file = path / METADATA
    content = read_file(file)
    try:
        return _as_index(read_pickle(content, _known))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged bytes may raise anything
        raise DamagedError(f"{file} is damaged: {type(error).__name__}: {error}") from None


def _known(module: str, name: str) -> Any:
    if module == "torch" and name in _DTYPES:
        return name
    return Plain if name in _CLASSES.get(module, ()) else None


def _as_index(metadata: Any) -> tuple[Index, dict[str, StoredBox]]:
    places = {(key.fqn, _numbers(getattr(key, "offset", None))): one for key, one in metadata.storage_data.items()}
    index: Index = {}
    objects: dict[str, StoredBox] = {}
    for name, entry in metadata.state_dict_metadata.items():
        if entry.state is None:
            objects[name] = _box((), (), places[name, ()])
            continue
        chunks = [(_numbers(chunk.offsets), _numbers(chunk.sizes)) for chunk in entry.chunks]
        boxes = [_box(offset, shape, places[name, offset]) for offset, shape in chunks]
        index[name] = StoredTensor(str(entry.properties.state[0]), _numbers(entry.size), boxes)
    return index, objects


def _box(offset: tuple[int, ...], shape: tuple[int, ...], place: Any) -> StoredBox:
    return StoredBox(offset, shape, str(place.relative_path), place.offset, place.length, "")


def _numbers(size: Any) -> tuple[int, ...]:
    return tuple(int(number) for number in (size.arguments[0] if size is not None and size.arguments else ()))
