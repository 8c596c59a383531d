"""Prepare megatron's indexed datasets (.bin and .idx) from text."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from liver_slurm.base import interrupts
from liver_slurm.base.errors import BadInput
from liver_slurm.base.files import move_into_place
from liver_slurm.config.data_checks import unreadable_data
from liver_slurm.config.schema import DataSection, JobConfig
from liver_slurm.config.validation import DataKey, ValidationSection
from liver_slurm.engine.data.documents import documents
from liver_slurm.engine.data.tokenizers import Tokenizer, load_tokenizer
from liver_slurm.engine.megatron.indexed_dataset import dataset_builder
from liver_slurm.rundir.paths import RunDir

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """An indexed dataset that was prepared."""

    prefix: str
    """``PREFIX.bin`` and ``PREFIX.idx`` are its files."""
    documents: int
    tokens: int
    """Ends of documents included."""
    vocab_size: int
    """Size of the tokenizer's vocabulary; a model that trains on the data has at least as many tokens."""


def prepare(paths: Sequence[Path], prefix: Path, tokenizer: Tokenizer) -> PreparedData:
    """Tokenize all documents at ``paths``, in order, into ``prefix.bin`` and ``prefix.idx``.

    The files appear whole or not at all, the .idx last; files of the same names are replaced. Their folder is made.

    Raises:
        BadInput: a path cannot be read, holds no text, or the output cannot be written.
    """
    for path in paths:
        if reason := unreadable_data(path):
            raise BadInput(f"{path} {reason}")
    fresh = prefix.with_name(f".{prefix.name}.{secrets.token_hex(4)}")
    bin_file, idx_file = Path(f"{fresh}.bin"), Path(f"{fresh}.idx")
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot make the folder {prefix.parent}: {error.strerror}") from None
    try:
        with interrupts.temporary(bin_file, idx_file):
            count, tokens = _write(paths, bin_file, idx_file, tokenizer)
            if not tokens:
                raise BadInput(f"there is no text in {', '.join(str(path) for path in paths)}")
            move_into_place(bin_file, Path(f"{prefix}.bin"))
            move_into_place(idx_file, Path(f"{prefix}.idx"))
    except OSError as error:
        raise BadInput(f"cannot write {prefix}.bin: {error.strerror}") from None
    return PreparedData(str(prefix), count, tokens, tokenizer.vocab_size)


def _write(paths: Sequence[Path], bin_file: Path, idx_file: Path, tokenizer: Tokenizer) -> tuple[int, int]:
    """Write the files; returns the number of documents and of tokens."""
    import numpy as np

    builder = dataset_builder(bin_file, tokenizer.vocab_size)
    count = tokens = 0
    try:
        for path in paths:
            for text in documents(path):
                document = np.append(tokenizer.encode(text), tokenizer.eod)
                builder.add_document(document, [len(document)])
                count += 1
                tokens += len(document)
    finally:
        builder.data_file.close()
    builder.finalize(str(idx_file))
    return count, tokens


def is_prefix(path: Path) -> bool:
    """Return whether ``path.bin`` and ``path.idx`` exist, and no file or folder ``path`` itself."""
    return not path.exists() and all(os.path.isfile(f"{path}{suffix}") for suffix in (".bin", ".idx"))


def resolve_data(config: JobConfig, run_dir: RunDir, section: DataKey = "data") -> list[str]:
    """Return the prefixes of a section's indexed datasets; text of the job file is prepared in the run directory first,
    once.

    Every worker may call it: the first one prepares, the others wait for it. In a blend there is one prefix for each
    path; else prepared text comes first, then prepared prefixes in the job file's order.

    Raises:
        BadInput: as :func:`prepare`.
    """
    chosen: DataSection | ValidationSection = getattr(config, section)
    if chosen.provider is not None:
        return []
    paths = [Path(text) for text in chosen.paths]
    text = run_dir.data / ("text" if section == "data" else section)
    if chosen.weights:
        named = [(path, text.with_name(f"{text.name}-{number}")) for number, path in enumerate(paths)]
        return [str(path) if is_prefix(path) else _prepared(config, [path], to) for path, to in named]
    texts = [path for path in paths if not is_prefix(path)]
    prefixes = [str(path) for path in paths if is_prefix(path)]
    return [_prepared(config, texts, text), *prefixes] if texts else prefixes


def _prepared(config: JobConfig, texts: Sequence[Path], prefix: Path) -> str:
    """Return the prefix, at which the texts are prepared if nobody has done it yet."""
    if not is_prefix(prefix):
        prefix.parent.mkdir(exist_ok=True)
        with _one_at_a_time(prefix.parent / ".lock"):
            if not is_prefix(prefix):
                prepare(texts, prefix, load_tokenizer(config.data.tokenizer))
    return str(prefix)


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Hold the lock, across nodes; the kernel releases it when its holder dies."""
    with lock.open("wb") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX)
        except OSError as error:
            # A file system without locks. All then make the same bytes, and each replaces the files as a whole.
            log.warning("%s cannot be locked (%s): data may be prepared more than once", lock, error.strerror)
        yield
