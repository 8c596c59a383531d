"""Reading a checkpoint layer by layer: a mixture of many experts has tens of thousands of boxes in one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from liver_slurm.base.errors import BadInput
from liver_slurm.engine.checkpoint_files import Box
from liver_slurm.engine.checkpoint_reading import fill_boxes
from liver_slurm.rundir.checkpoint_index import DamagedError, Index, StoredBox, StoredTensor


class LayerReader:
    """Reads boxes whose first index is one, without looking at those that lie elsewhere in a stack of layers."""

    def __init__(self, path: Path, index: Index) -> None:
        """``path``: folder of the files that the index speaks of."""
        self._path, self._index = path, index
        self._rows: dict[str, dict[int, list[StoredBox]]] = {}

    def fill(self, boxes: Sequence[Box], shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        """Fill boxes, in each tensor those of one first index or of many.

        Args:
            shapes: that their tensors have by the model; default: they were compared.

        Raises:
            BadInput: a file is damaged, or a tensor has another shape.
        """
        by_tensor: dict[str, list[Box]] = {}
        for box in boxes:
            by_tensor.setdefault(box[0].tensor, []).append(box)
        index = {name: self._near(name, wanted) for name, wanted in by_tensor.items()}
        try:
            fill_boxes(self._path, index, list(boxes), shapes or {name: one.shape for name, one in index.items()})
        except DamagedError as error:
            raise BadInput(str(error)) from None

    def _near(self, name: str, wanted: Sequence[Box]) -> StoredTensor:
        """Return a tensor with the stored boxes that may have something of the wanted ones."""
        stored = self._index[name]
        firsts = {piece.offset[0] for piece, _ in wanted}
        if len(firsts) > 1 or any(piece.shape[0] > 1 for piece, _ in wanted):
            return stored
        if name not in self._rows:
            rows: dict[int, list[StoredBox]] = {}
            for box in stored.boxes:
                for row in range(box.offset[0], box.offset[0] + box.shape[0]):
                    rows.setdefault(row, []).append(box)
            self._rows[name] = rows
        return StoredTensor(stored.dtype, stored.shape, self._rows[name].get(firsts.pop(), []))
