"""Where a rank's tokens are: in their sequences, and in the documents that a sequence may consist of.

Where documents are kept apart or counted for themselves, what layers are given as megatron's attention mask is, for
each token, at which token of the sequence its document begins, int64 [batch, sequence].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from liver_slurm.engine.megatron.dimensions import own_part


class Positions(NamedTuple):
    """Where in its sequences this rank's tokens are.

    ``cos``, ``sin``: of their rotary positions, [own, 1 or batch, 1, rotated width]; None: positions are in the
    embeddings. ``seen``: [own, sequence], or
    [batch, 1, own, sequence] if documents are kept apart, which tokens each of them attends to; None: the sequence is
    this rank's alone, and each attends to all before it.
    """

    cos: Tensor | None
    sin: Tensor | None
    seen: Tensor | None


def document_starts(tokens: Tensor, eod: int) -> Tensor:
    """Return at which token of its sequence each token's document begins, int64 [batch, sequence].

    The token ``eod`` is its document's last one. What a sequence begins with is a document, even if it was cut.
    """
    places = torch.arange(tokens.shape[1], device=tokens.device)
    begins = torch.zeros_like(tokens)
    begins[:, 1:] = torch.where(tokens[:, :-1] == eod, places[1:], 0)
    return begins.cummax(1).values


def seen_from(starts: Tensor, own: slice) -> Tensor:
    """Return which tokens those of the part ``own`` attend to: all before them in their documents.

    The mask is [batch, own, sequence].
    """
    places = torch.arange(starts.shape[1], device=starts.device)
    return (places[own, None] >= places) & (starts[:, own, None] == starts[:, None])


def positions_of(angles: Tensor, starts: Tensor | None, dtype: torch.dtype, cp: Any, config: Any) -> Positions:
    """Return the positions of a rank of the group ``cp``, made once for all layers.

    Megatron's angles are the same tensor in every layer and step, and ``starts`` is in every layer of a microbatch.

    Args:
        angles: of the whole sequence, [sequence, 1, 1, rotated width].
        starts: see :func:`document_starts`; None: documents do not matter.
        config: a :class:`liver_slurm.engine.megatron.model.DecoderConfig`, which says what documents are good for.
    """
    holder = angles if starts is None else starts
    made = getattr(holder, "liver_positions", None)
    if made is None or made.cos.dtype != dtype:
        own = own_part(len(angles), cp.size(), cp.rank())
        turned = angles[own]
        if starts is not None and config.reset_position_ids:
            everywhere = torch.arange(len(angles), device=angles.device)
            turned = angles[(everywhere - starts)[:, own].t()].flatten(2, 3)
        seen = _seen(len(angles), starts, angles.device, cp, config)
        made = Positions(turned.cos().to(dtype), turned.sin().to(dtype), seen)
        holder.liver_positions = made
    return made


def in_embeddings(sequence: int, starts: Tensor | None, device: torch.device, cp: Any, config: Any) -> Positions:
    """Return the same of a model whose embeddings have the positions; ``sequence``: its tokens, those of all ranks."""
    made: Positions | None = getattr(starts, "liver_positions", None)
    if made is None:
        made = Positions(None, None, _seen(sequence, starts, device, cp, config))
        if starts is not None:
            starts.liver_positions = made
    return made


def _seen(sequence: int, starts: Tensor | None, device: torch.device, cp: Any, config: Any) -> Tensor | None:
    """Return which tokens a rank's own attend to, see :class:`Positions`."""
    own = own_part(sequence, cp.size(), cp.rank())
    if starts is not None and config.reset_attention_mask:
        return seen_from(starts, own).unsqueeze(1)
    everywhere = torch.arange(sequence, device=device)
    return everywhere[own, None] >= everywhere if cp.size() > 1 else None
