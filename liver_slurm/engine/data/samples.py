"""Read samples by their number in the run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from liver_slurm.base.errors import BadInput
from liver_slurm.config.providers import load_function
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import Samples
from liver_slurm.engine.data.order import sample_numbers
from liver_slurm.engine.megatron.indexed_dataset import open_dataset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SampleSource:
    """Samples from indexed datasets, laid end to end: sample k of a dataset is ``tokens[k * L : k * L + L + 1]``.

    The order is a function of (seed, samples consumed); each epoch is shuffled anew. Datasets are read through memory
    maps; one token after a sample's last is its last label, so neighbours share it.
    """

    def __init__(self, prefixes: Sequence[str], seq_length: int, seed: int) -> None:
        self._seq_length, self._seed = seq_length, seed
        self._datasets = [open_dataset(prefix) for prefix in prefixes]
        tokens = [int(dataset.sequence_lengths.sum(dtype="int64")) for dataset in self._datasets]
        counts = [max(0, number - 1) // seq_length for number in tokens]
        self._ends = list(accumulate(counts))
        if not self._ends or not self._ends[-1]:
            raise BadInput(f"data.paths: fewer than the {seq_length + 1} tokens of one sample in {', '.join(prefixes)}")

    def __len__(self) -> int:
        """Samples of one epoch."""
        return self._ends[-1]

    def batch(self, first: int, count: int) -> NDArray[np.int64]:
        import numpy as np

        tokens = np.empty((count, self._seq_length + 1), dtype=np.int64)
        for row, number in enumerate(sample_numbers(first, count, len(self), self._seed)):
            tokens[row] = self._sample(int(number))
        return tokens

    def _sample(self, number: int) -> Any:
        which = bisect_right(self._ends, number)
        start = (number - (self._ends[which - 1] if which else 0)) * self._seq_length
        dataset = self._datasets[which]
        dtype = dataset.index.dtype
        # Not dataset[i]: a sample may span documents, which lie end to end in the file.
        offset = int(dataset.index.sequence_pointers[0]) + start * dtype().itemsize
        return dataset.bin_reader.read(dtype=dtype, count=self._seq_length + 1, offset=offset)


def open_samples(config: JobConfig, prefixes: Sequence[str]) -> Samples:
    """Open the run's samples: from the job's own provider, or else from indexed datasets.

    Args:
        prefixes: what :func:`liver_slurm.engine.data.prepare.resolve_data` returned.

    Raises:
        BadInput: there is no such provider, it returns something else, or the data is not an indexed dataset.
    """
    if config.data.provider is None:
        return SampleSource(prefixes, config.train.seq_length, config.train.seed)
    samples: Any = load_function(config.data.provider)(config)
    if not hasattr(samples, "batch") or not hasattr(samples, "__len__"):
        raise BadInput(f"data.provider: {config.data.provider} returned {type(samples).__name__}, without batch or len")
    found = samples.batch(0, 1)
    expected = (1, config.train.seq_length + 1)
    if tuple(getattr(found, "shape", ())) != expected:
        shape = getattr(found, "shape", type(found).__name__)
        raise BadInput(f"data.provider: {config.data.provider}: batch(0, 1) has shape {shape}; allowed: {expected}")
    return samples  # type: ignore[no-any-return]
