"""Read samples by their number in the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from liver_slurm.base.errors import BadInput, RunIsOver
from liver_slurm.config.blend import blend_parts
from liver_slurm.config.providers import load_function
from liver_slurm.config.schema import DataSection, JobConfig
from liver_slurm.config.validation import DataKey, ValidationSection
from liver_slurm.engine.api import Samples
from liver_slurm.engine.data.blend import Blend
from liver_slurm.engine.data.order import sample_numbers
from liver_slurm.engine.data.packing import Packing, pack
from liver_slurm.engine.data.tokenizers import end_of_document, load_tokenizer
from liver_slurm.engine.megatron.indexed_dataset import document_lengths, last_token, open_dataset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class _Source(ABC):
    """Samples from indexed datasets, in an order that is a function of (seed, samples consumed).

    Each epoch is shuffled again. Datasets are read through memory maps.
    """

    def __init__(self, prefixes: Sequence[str], seq_length: int, seed: int, key: str = "data.paths") -> None:
        """``key``: where a job file names the prefixes."""
        self._prefixes, self._seq_length, self._seed, self._key = tuple(prefixes), seq_length, seed, key
        self._datasets = [open_dataset(prefix, key) for prefix in prefixes]
        self._ends = list(accumulate(map(self._count, range(len(prefixes)))))
        if not self._ends or not self._ends[-1]:
            raise BadInput(f"{key}: {self._too_few()} in {', '.join(prefixes)}")

    def __len__(self) -> int:
        """Return the samples of one epoch."""
        return self._ends[-1]

    def batch(self, first: int, count: int) -> NDArray[np.int64]:
        import numpy as np

        tokens = np.empty((count, self._seq_length + 1), dtype=np.int64)
        for row, number in enumerate(sample_numbers(first, count, len(self), self._seed)):
            self._fill(tokens[row], *self._inside(int(number)))
        return tokens

    def place_of(self, consumed: int, place: int) -> str:
        """Say, for people, where a token lies: the ``place``-th of the run's sample ``consumed``."""
        which, inside = self._inside(int(sample_numbers(consumed, 1, len(self), self._seed)[0]))
        return f"{self._key}: {self._prefixes[which]}.bin, token {self._token(which, inside, place)}"

    def _inside(self, number: int) -> tuple[int, int]:
        """Return which dataset a sample is in, and its number there."""
        which = bisect_right(self._ends, number)
        return which, number - (self._ends[which - 1] if which else 0)

    def _read(self, which: int, start: int, count: int) -> Any:
        """Return tokens of a dataset, across ends of documents, which lie end to end in the file."""
        dataset = self._datasets[which]
        dtype = dataset.index.dtype
        offset = int(dataset.index.sequence_pointers[0]) + start * dtype().itemsize
        return dataset.bin_reader.read(dtype=dtype, count=count, offset=offset)

    @abstractmethod
    def _count(self, which: int) -> int:
        """Return the samples of a dataset."""

    @abstractmethod
    def _too_few(self) -> str:
        """Say what a sample needs that there is not."""

    @abstractmethod
    def _fill(self, tokens: NDArray[np.int64], which: int, inside: int) -> None:
        """Fill in a sample of a dataset."""

    @abstractmethod
    def _token(self, which: int, inside: int, place: int) -> int:
        """Return which token of the dataset is at a place of a sample."""


class SampleSource(_Source):
    """Documents laid end to end: sample k of a dataset is ``tokens[k * L : k * L + L + 1]``.

    One token after a sample's last is its last label, so neighbours share it.
    """

    def _count(self, which: int) -> int:
        tokens = int(self._datasets[which].sequence_lengths.sum(dtype="int64"))
        return max(0, tokens - 1) // self._seq_length

    def _too_few(self) -> str:
        return f"fewer than the {self._seq_length + 1} tokens of one sample"

    def _fill(self, tokens: NDArray[np.int64], which: int, inside: int) -> None:
        tokens[:] = self._read(which, inside * self._seq_length, self._seq_length + 1)

    def _token(self, which: int, inside: int, place: int) -> int:
        return inside * self._seq_length + place


class PackedSource(_Source):
    """Whole documents, as many to a sample as fit; see :mod:`liver_slurm.engine.data.packing`."""

    def __init__(
        self, prefixes: Sequence[str], seq_length: int, seed: int, key: str = "data.paths", *, window: int, eod: int
    ) -> None:
        """
        Args:
            window: documents that are packed together.
            eod: what fills a sample up.
        """
        self._window, self._eod = window, eod
        self._packed: list[Packing] = []
        super().__init__(prefixes, seq_length, seed, key)

    def _count(self, which: int) -> int:
        self._packed.append(pack(document_lengths(self._datasets[which]), self._seq_length, self._window))
        return len(self._packed[which].ends)

    def _too_few(self) -> str:
        return "no document of two tokens"

    def _fill(self, tokens: NDArray[np.int64], which: int, inside: int) -> None:
        tokens[:] = self._eod
        place = 0
        for start, length in self._packed[which].parts(inside):
            tokens[place : place + length] = self._read(which, start, length)
            place += length

    def _token(self, which: int, inside: int, place: int) -> int:
        token = 0
        for start, length in self._packed[which].parts(inside):
            if place < 0:
                break
            token = start + min(place, length - 1)
            place -= length
        return token


class BlendedSource:
    """Samples of several indexed datasets, mixed by weight; each is shuffled by itself, in epochs of its own."""

    def __init__(
        self,
        prefixes: Sequence[str],
        weights: Sequence[float],
        seq_length: int,
        seed: int,
        key: str = "data.paths",
        make: Callable[[Sequence[str], int, int, str], _Source] = SampleSource,
    ) -> None:
        """
        Args:
            weights: of each prefix.
            key: where a job file names the prefixes.
            make: makes what there is of one of them.
        """
        self._seq_length = seq_length
        self._blend = Blend(blend_parts(weights))
        # Far from the seeds that people choose for other runs; the first has the run's own.
        self._sources = [
            make([prefix], seq_length, seed + (number << 40), key) for number, prefix in enumerate(prefixes)
        ]

    def __len__(self) -> int:
        """Return the samples until one of the datasets begins again."""
        return min(self._blend.place(which, len(source)) for which, source in enumerate(self._sources))

    def batch(self, first: int, count: int) -> NDArray[np.int64]:
        import numpy as np

        tokens = np.empty((count, self._seq_length + 1), dtype=np.int64)
        sets = self._blend.sets(first, count)
        for which in np.unique(sets):
            rows = np.flatnonzero(sets == which)
            tokens[rows] = self._sources[which].batch(self._blend.taken(int(which), first), len(rows))
        return tokens

    def place_of(self, consumed: int, place: int) -> str:
        """Say, for people, where a token lies; see :meth:`SampleSource.place_of`."""
        which = int(self._blend.sets(consumed, 1)[0])
        return self._sources[which].place_of(self._blend.taken(which, consumed), place)


class KnownTokens:
    """Samples whose tokens are all in the model's vocabulary.

    Layers that tensor parallelism divides mask a token that no rank holds: training would go on with losses that depend
    on the layout.
    """

    def __init__(self, samples: Samples, vocabulary: int, told: str) -> None:
        """``told``: where the samples come from, for people."""
        self._samples, self._vocabulary, self._told = samples, vocabulary, told

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, first: int, count: int) -> NDArray[np.int64]:
        """Return the samples of these numbers, as :meth:`liver_slurm.engine.api.Samples.batch` says.

        Raises:
            RunIsOver: there is another token; every world would meet it.
        """
        import numpy as np

        tokens = self._samples.batch(first, count)
        strange = (tokens < 0) | (tokens >= self._vocabulary)
        if strange.any():
            row, place = (int(number) for number in np.argwhere(strange)[0])
            where = f"{self._told}, sample {first + row} of the run"
            if isinstance(self._samples, (_Source, BlendedSource)):
                where = self._samples.place_of(first + row, place)
            raise RunIsOver(
                f"{where}: token {int(tokens[row, place])} is not in the vocabulary of {self._vocabulary}; the data is "
                "of another tokenizer, or model.vocab_size is too small"
            )
        return tokens


def open_samples(config: JobConfig, prefixes: Sequence[str], section: DataKey = "data") -> Samples:
    """Open a section's samples: from the job's own provider, or else from indexed datasets.

    Where the vocabulary is known, that of the job file or of a model that is not the user's own, tokens beyond it are
    refused when they are read.

    Args:
        prefixes: what :func:`liver_slurm.engine.data.prepare.resolve_data` returned.

    Raises:
        BadInput: there is no such provider, it returns something else, or the data is not an indexed dataset.
    """
    chosen: DataSection | ValidationSection = getattr(config, section)
    provider, key, train = chosen.provider, f"{section}.provider", config.train
    if provider is None:
        paths = f"{section}.paths"
        make = _maker(config.data)
        source: _Source | BlendedSource = (
            BlendedSource(prefixes, chosen.weights, train.seq_length, train.seed, paths, make)
            if chosen.weights
            else make(prefixes, train.seq_length, train.seed, paths)
        )
        _check_ends(config.data, prefixes, paths)
        return _known(config, source, paths)
    samples: Any = load_function(provider)(config)
    if not hasattr(samples, "batch") or not hasattr(samples, "__len__"):
        raise BadInput(f"{key}: {provider} returned {type(samples).__name__}, without batch or len")
    found = samples.batch(0, 1)
    expected = (1, config.train.seq_length + 1)
    if tuple(getattr(found, "shape", ())) != expected:
        shape = getattr(found, "shape", type(found).__name__)
        raise BadInput(f"{key}: {provider}: batch(0, 1) has shape {shape}; allowed: {expected}")
    return _known(config, samples, f"{key} {provider}")


def _maker(data: DataSection) -> Callable[[Sequence[str], int, int, str], _Source]:
    """Return what makes samples of indexed datasets."""
    if data.packing == "none":
        return SampleSource
    return partial(PackedSource, window=data.packing_window, eod=end_of_document(data))


def _check_ends(data: DataSection, prefixes: Sequence[str], key: str) -> None:
    """Refuse data whose documents end with another token than settings about documents look for, or with none.

    Raises:
        BadInput: that is so.
    """
    if not data.resets and not data.eod_mask_loss:
        return
    eod = end_of_document(data)
    for prefix in prefixes:
        if (last := last_token(prefix, key)) != eod:
            raise BadInput(
                f"{key}: {prefix} ends with token {last}, not with {eod}, which ends a document by data.eod or "
                "data.tokenizer; set data.eod, or prepare the data again (Megatron's tool: with --append-eod)"
            )


def _known(config: JobConfig, samples: Samples, told: str) -> Samples:
    if config.model.provider is not None and config.model.vocab_size is None:
        return samples  # what its model takes is its own business
    vocabulary = config.model.vocab_size or load_tokenizer(config.data.tokenizer).vocab_size
    return KnownTokens(samples, vocabulary, told)
