"""The biases that balance experts' load (Wang et al. 2024): how the optimizer, and who replays it, updates them.

To all that holds, cuts and moves state such a bias is one more parameter, of a group whose learning rate is zero. Its
gradient is how much more than the mean went to its expert, of which the sign alone counts: clipping, or by how many
tokens gradients are divided, changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def balance(biases: Sequence[torch.Tensor], excess: Sequence[torch.Tensor], rate: float) -> None:
    """Lower the biases of experts that more than the mean went to, and raise those of others: ``-= rate * sign``.

    Element by element, so that any slice of it is the same bit for bit.
    """
    if biases and rate:
        torch._foreach_sub_(list(biases), [each.sign() for each in excess], alpha=rate)
