"""Units of ours in a checkpoint of Megatron-LM's: whether all are there, and what they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from liver_slurm.base.errors import BadInput
from liver_slurm.engine.checkpoint_files import Box
from liver_slurm.engine.hf.importing import box_of
from liver_slurm.engine.hf.tensors import Shape, Unit
from liver_slurm.engine.torch_dist.flattened import is_flattened, put_together
from liver_slurm.engine.torch_dist.layers import LayerReader
from liver_slurm.engine.torch_dist.sources import VOCABULARY, Source, find_sources, sources_of, spellings
from liver_slurm.reshard.tensors import ADAM, Piece
from liver_slurm.rundir.checkpoint_index import Index, uncovered

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What weights and moments may be stored in."""
_OPTIMIZER = "optimizer."
_STATE = f"{_OPTIMIZER}state."
_MASTERS = tuple(f"{_STATE}{name}." for name in ("fp32_param", "param"))
MOMENTS = {f"@{moment}": f"{_STATE}{moment}." for moment in ADAM}
_WITHOUT = ".router.expert_bias"
"""End of the names of tensors that no optimizer of Megatron-LM's has."""
ALONE = (
    "leave out --optimizer, and weights are taken alone, or have Megatron-LM save them with "
    "--dist-ckpt-optim-fully-reshardable"
)


class Reader:
    """Tensors of theirs as units of ours."""

    def __init__(self, path: Path, index: Index, units: Sequence[Unit], tokens: int, by: str) -> None:
        """``by``: who says which model it is, for people."""
        self.units = units
        self._path, self._index, self._tokens, self._by = path, index, tokens, by
        self._files = LayerReader(path, index)

    def check_weights(self) -> None:
        """Check that there are the model's weights and no others.

        Raises:
            BadInput: there are not.
        """
        self.check_kind("")
        known = {
            source.tensor
            for unit in self.units
            for name in spellings(unit.tensor)
            for source in sources_of(self._index, name, unit)
        }
        weights = (name for name in self._index if not name.startswith((_OPTIMIZER, "rng_state", "rerun_state")))
        if strange := sorted(set(weights) - known):
            more = f", nor {len(strange) - 1} more" if len(strange) > 1 else ""
            raise BadInput(f"{self._path}: by {self._by}, the model has no {strange[0]}{more}")

    def weight_kind(self, masters: bool) -> str:
        """Return what the names of the best weights begin with: those of masters, if they are wanted and there.

        Raises:
            BadInput: there are no moments, and no masters of weights that are rounded.
        """
        if not masters:
            return ""
        if not any(name.startswith(tuple(MOMENTS.values())) for name in self._index):
            raise BadInput(f"{self._path} has no moments that any layout can read; {ALONE}")
        for kind in _MASTERS:
            if any(name.startswith(kind) for name in self._index):
                return kind
        if rounded := [unit.tensor for unit in self.units if self.dtype(unit, "") != "float32"]:
            raise BadInput(f"{self._path} has no fp32 weights of {rounded[0]} in its optimizer's state; {ALONE}")
        return ""

    def check_kind(self, kind: str) -> None:
        """Check that there is what is wanted of each unit, in the right shape.

        Raises:
            BadInput: there is not.
        """
        what_to_do = f"; {ALONE}" if kind else ""
        used: set[str] = set()
        for unit in self.units:
            found = self._sources(unit, kind)
            if not found and not _is_zero(unit, kind):
                raise BadInput(
                    f"{self._path} has no {kind}{unit.tensor}, which the model has by {self._by}{what_to_do}"
                )
            for source in found:
                if problem := self._problem(unit, source, kind):
                    raise BadInput(f"{self._path}: {source.tensor} {problem}{what_to_do}")
                used.add(source.tensor)
        if gap := uncovered({name: self._index[name] for name in used}):
            raise BadInput(f"{self._path} is not whole: {gap}{what_to_do}")

    def _problem(self, unit: Unit, source: Source, kind: str) -> str:
        """Say why a tensor of theirs is not that of the model; empty: it is."""
        stored, shape = self._index[source.tensor], self._shape(unit, source)
        flat = kind and is_flattened(stored.shape[len(source.place) :], self._theirs(unit, source))
        spare = stored.shape[0] - shape[0] if unit.tensor in VOCABULARY and stored.shape else 0
        if not flat and stored.shape != (shape[0] + max(spare, 0), *shape[1:]):
            return f"has shape {stored.shape}, by {self._by} it is {shape}"
        return "" if stored.dtype in DTYPES else f"is {stored.dtype}; allowed: {', '.join(DTYPES)}"

    def _sources(self, unit: Unit, kind: str) -> list[Source]:
        if _is_zero(unit, kind):
            return []
        found = find_sources(self._index, unit, "" if unit.tensor.endswith(_WITHOUT) else kind)
        if unit.tensor in VOCABULARY:
            found = [source._replace(rows=self._tokens) for source in found]
        return found

    def _shape(self, unit: Unit, source: Source) -> Shape:
        """Return the shape that a tensor of theirs has by the model."""
        before = len(unit.place)
        return (*unit.whole[before - len(source.place) : before], source.rows, *unit.shape[1:])

    def _theirs(self, unit: Unit, source: Source) -> Shape:
        """Return the shape of a unit as they have it, with all their rows of a vocabulary."""
        (weight, *_) = find_sources(self._index, unit)
        rows = self._index[weight.tensor].shape[0] if unit.tensor in VOCABULARY else source.rows
        return (rows, *unit.shape[1:])

    def dtype(self, unit: Unit, kind: str) -> str:
        """Name the precision that a unit is stored in; fp32 of what is not there."""
        found = self._sources(unit, kind)
        return self._index[found[0].tensor].dtype if found else "float32"

    def boxes(self, ours: str, kind: str) -> Iterator[Box]:
        """Read all units, a layer's tensor at a time.

        Args:
            ours: what our names end with.

        Raises:
            BadInput: a file is damaged.
        """
        for _, group in itertools.groupby(self.units, key=lambda unit: (unit.tensor, unit.layer)):
            read: list[tuple[Unit, torch.Tensor]] = []
            wanted: list[Box] = []
            flat: list[tuple[torch.Tensor, Shape, torch.Tensor]] = []
            for unit in group:
                values = torch.zeros(unit.shape, dtype=DTYPES[self.dtype(unit, kind)])
                read.append((unit, values))
                for source in self._sources(unit, kind):
                    view = values[source.first : source.first + source.rows]
                    stored = self._index[source.tensor].shape[len(source.place) :]
                    if len(stored) > len(unit.shape):
                        flat.append((torch.empty(stored, dtype=values.dtype), self._theirs(unit, source), view))
                        view = flat[-1][0]
                    wanted.append(_box(source, view))
            self._files.fill(wanted)
            for parts, shape, view in flat:
                view.copy_(put_together(parts, shape)[: len(view)])
            yield from (box_of(unit, f"{unit.tensor}{ours}", values) for unit, values in read)


def _is_zero(unit: Unit, kind: str) -> bool:
    """Return whether these are the moments of what no optimizer of Megatron-LM's has."""
    return unit.tensor.endswith(_WITHOUT) and kind in MOMENTS.values()


def _box(source: Source, values: torch.Tensor) -> Box:
    shape = (*(1 for _ in source.place), *values.shape)
    return Piece(source.tensor, (*source.place, *(0 for _ in values.shape)), shape), values.view(shape)
