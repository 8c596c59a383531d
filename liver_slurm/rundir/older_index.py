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
_DTYPES = {"bfloat16", "bool", "float16", "float32", "float64", "int16", "int32", "int64", "int8", "uint8"}


def read_older_index(path: Path) -> Index:
    """Read what lies where in a checkpoint, by its ``.metadata``; what is no tensor is left out.

    Raises:
        DamagedError: its ``.metadata`` is missing or damaged.
    """
    file = path / METADATA
    content = read_file(file)
    try:
        return _as_index(read_pickle(content, _known))
    except Exception as error:  # noqa: BLE001 - damaged bytes may raise anything
        raise DamagedError(f"{file} is damaged: {type(error).__name__}: {error}") from None


def _known(module: str, name: str) -> Any:
    if module == "torch" and name in _DTYPES:
        return name
    return Plain if name in _CLASSES.get(module, ()) else None


def _as_index(metadata: Any) -> Index:
    tensors = (one for one in metadata.storage_data.items() if getattr(one[0], "offset", None) is not None)
    places = {(key.fqn, _numbers(key.offset)): place for key, place in tensors}
    index: Index = {}
    for name, tensor in metadata.state_dict_metadata.items():
        if tensor.state is None:
            continue  # bytes
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
