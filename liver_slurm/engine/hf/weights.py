"""Safetensors files of a Hugging Face model's folder, which are read tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import torch

from liver_slurm.base.errors import BadInput
from liver_slurm.config.problem import one_line

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""What weights may be stored in."""
_BUFFERS = re.compile(r".*\.(attn\.(masked_)?bias|rotary_emb\.inv_freq)")
"""Tensors that old files have and no model needs: masks, and frequencies of rotary positions."""


class Weights:
    """All tensors of a folder; names begin with ``model.`` or ``transformer.``, whether they do in the files or not."""

    def __init__(self, files: Mapping[str, tuple[Any, str]]) -> None:
        """``files``: of each tensor the open file that it is in, and its name there."""
        self._files = files

    def names(self) -> set[str]:
        """Name all tensors."""
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Give a tensor's shape without reading it."""
        file, own = self._files[name]
        return tuple(file.get_slice(own).get_shape())

    def dtype(self, name: str) -> str:
        """Name a tensor's dtype as safetensors does, such as ``BF16``."""
        file, own = self._files[name]
        return str(file.get_slice(own).get_dtype())

    def read(self, name: str) -> torch.Tensor:
        """Read a tensor."""
        file, own = self._files[name]
        tensor: torch.Tensor = file.get_tensor(own)
        return tensor


def check_installed() -> None:
    """Check that safetensors is installed.

    Raises:
        BadInput: it is not.
    """
    if find_spec("safetensors") is None:
        raise BadInput("safetensors is not installed: pip install 'liver-slurm[hf]'")


@contextmanager
def opened(folder: Path, prefix: str) -> Iterator[Weights]:
    """Open a folder's safetensors files.

    Args:
        prefix: that names of this family have, but for those of the output layer; files of a bare model lack it.

    Raises:
        BadInput: it has none, or one that cannot be read.
    """
    check_installed()
    from safetensors import SafetensorError, safe_open

    files: dict[str, tuple[Any, str]] = {}
    with ExitStack() as stack:
        for path in _paths(folder):
            try:
                file = stack.enter_context(safe_open(str(path), framework="pt"))
                found = list(file.keys())
            except (OSError, SafetensorError) as error:
                raise BadInput(f"{path} cannot be read: {one_line(error)}") from None
            for name in found:
                if not _BUFFERS.fullmatch(name):
                    bare = not name.startswith((prefix, "lm_head."))
                    files[prefix + name if bare else name] = (file, name)
        yield Weights(files)


def _paths(folder: Path) -> list[Path]:
    """Return the files of a folder's weights; where there are some both in one and in several, those in one, as
    transformers does.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise BadInput(f"{folder} has neither {SINGLE} nor {INDEX}: weights in other formats are not read")
    try:
        document = msgspec.json.decode((folder / INDEX).read_bytes(), type=dict[str, Any])
        names = sorted(set(msgspec.convert(document.get("weight_map"), dict[str, str]).values()))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{folder / INDEX} cannot be read: {one_line(error)}") from None
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise BadInput(f"{folder / INDEX} names {name!r}, which is no file of {folder}")
    return [folder / name for name in names]
