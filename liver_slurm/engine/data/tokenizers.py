"""Tokenizers: bytes as they are, or any Hugging Face ``tokenizer.json``."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from liver_slurm.base.errors import BadInput
from liver_slurm.config.data import DataSection
from liver_slurm.config.data_files import read_tokenizer
from liver_slurm.config.shapes import BYTE_VOCABULARY

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
"""Names that published tokenizers give the end of a document, most specific first."""


class Tokenizer(Protocol):
    """A tokenizer, as far as preparing data needs one."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens, ``eod`` included."""

    @property
    def eod(self) -> int:
        """Token at the end of each document."""

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the tokens of a text, without the end of document; shape [tokens]."""


class ByteTokenizer:
    """Tokenizer whose tokens are the bytes of the UTF-8 text; 256 ends a document."""

    vocab_size = BYTE_VOCABULARY
    eod = 256

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the bytes of the text."""
        import numpy as np

        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)


class FileTokenizer:
    """A Hugging Face ``tokenizer.json``.

    Documents end with the file's own end-of-text token; a tokenizer that has none gets a new one after its last token.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer: Any = read_tokenizer(path)
        except BadInput as error:
            raise BadInput(f"data.tokenizer: {error}") from None
        # For batches of short texts; here a document is its tokens, all of them and no others.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        known = [self._tokenizer.token_to_id(token) for token in _END_TOKENS]
        # Numbers of tokens may leave gaps, so that their count is less than the next number.
        following = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.eod: int = next((token for token in known if token is not None), following)
        self.vocab_size: int = max(following, self.eod + 1)

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the tokens of the text; the file's template (begin and end tokens) is not applied."""
        import numpy as np

        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)


def load_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer: ``byte``, or the path of a ``tokenizer.json``.

    Raises:
        BadInput: the file is not one.
    """
    return ByteTokenizer() if name == "byte" else FileTokenizer(Path(name))


@cache
def end_of_document(data: DataSection) -> int:
    """Return the token that ends a document: the job file's, else the tokenizer's.

    Raises:
        BadInput: as :func:`load_tokenizer`.
    """
    return load_tokenizer(data.tokenizer).eod if data.eod is None else data.eod


def vocab_size(model_vocab_size: int | None, tokenizer: str) -> int:
    """Return the size of the model's vocabulary: the job file's, else the tokenizer's.

    Raises:
        BadInput: what it says is smaller than the tokenizer's.
    """
    needed = load_tokenizer(tokenizer).vocab_size
    if model_vocab_size is not None and model_vocab_size < needed:
        raise BadInput(f"model.vocab_size: {model_vocab_size} is too small; allowed: >= {needed}, the tokenizer's")
    return model_vocab_size or needed
