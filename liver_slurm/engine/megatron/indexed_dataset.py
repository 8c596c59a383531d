"""megatron-core's indexed datasets: token files PREFIX.bin with an index PREFIX.idx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from liver_slurm.base.errors import BadInput
from liver_slurm.engine.megatron import compat


def open_dataset(prefix: str, key: str) -> Any:
    """Open ``prefix.bin`` and ``prefix.idx`` as megatron's ``IndexedDataset``; ``key`` is where a job file names it.

    Raises:
        BadInput: they are no indexed dataset, or an empty one.
    """
    with compat.imports():
        from megatron.core.datasets.indexed_dataset import IndexedDataset

    header = compat.index_header()
    try:
        # Checked first: megatron leaves half-built objects behind that complain when they are collected.
        with open(f"{prefix}.idx", "rb") as index, open(f"{prefix}.bin", "rb") as data:
            if index.read(len(header)) != header or not data.read(1):
                raise BadInput(f"{key}: {prefix} is not an indexed dataset, or an empty one")
        return IndexedDataset(prefix)
    except (AssertionError, OSError, ValueError) as error:
        raise BadInput(f"{key}: {prefix} is not a readable indexed dataset: {error}") from None


def document_lengths(dataset: Any) -> Any:
    """Return the tokens of each document of an indexed dataset, int64, in their order."""
    import numpy as np

    ends = np.cumsum(dataset.sequence_lengths, dtype=np.int64)
    return np.diff(np.concatenate([[0], ends])[dataset.document_indices])


def last_token(prefix: str, key: str) -> int:
    """Return the last token of the last document; errors as :func:`open_dataset`."""
    dataset = open_dataset(prefix, key)
    dtype = dataset.index.dtype
    tokens = int(dataset.sequence_lengths.sum(dtype="int64"))
    offset = int(dataset.index.sequence_pointers[0]) + (tokens - 1) * dtype().itemsize
    return int(dataset.bin_reader.read(dtype=dtype, count=1, offset=offset)[0])


def dataset_builder(bin_file: Path, vocab_size: int) -> Any:
    """Return megatron's ``IndexedDatasetBuilder`` for tokens of a vocabulary of ``vocab_size``."""
    with compat.imports():
        from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    return IndexedDatasetBuilder(str(bin_file), dtype=DType.optimal_dtype(vocab_size))
