"""Order of samples: a keyed permutation of each epoch, computed sample by sample, so that nothing is stored.

The position of a run in its data is then one number, the samples consumed, which no change of layout affects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROUNDS = 6
_MASK = (1 << 64) - 1


def permute(indices: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Permute ``indices`` by the permutation of [0, size) that (seed, epoch) selects.

    A balanced Feistel network over the next even power of two, walked until the image lies in range (cycle walking:
    Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002), so it is bijective for any size below 2**62.

    Args:
        indices: each in [0, size), any shape.
    """
    import numpy as np

    if not 0 < size < 1 << 62:
        raise ValueError(f"size is {size}; allowed: 1 to 2**62 - 1")
    if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= size):
        raise ValueError(f"an index lies outside [0, {size})")
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = _round_keys(seed, epoch)
    image = _feistel(indices.astype(np.uint64), half, keys)
    while (outside := image >= np.uint64(size)).any():
        image[outside] = _feistel(image[outside], half, keys)
    return image.astype(np.int64)


def sample_numbers(first: int, count: int, size: int, seed: int) -> NDArray[np.int64]:
    """Return the numbers, below ``size``, of the run's samples ``first`` to ``first + count - 1``.

    Each epoch has its order.
    """
    import numpy as np

    consumed = np.arange(first, first + count, dtype=np.int64)
    epochs, indices = np.divmod(consumed, size)
    numbers = np.empty_like(indices)
    for epoch in np.unique(epochs):
        where = epochs == epoch
        numbers[where] = permute(indices[where], size, seed, int(epoch))
    return numbers


def _round_keys(seed: int, epoch: int) -> list[np.uint64]:
    import numpy as np

    state = _mix_int(_mix_int(seed) ^ epoch)
    return [np.uint64(_mix_int(state + number)) for number in range(1, _ROUNDS + 1)]


def _feistel(value: NDArray[np.uint64], half: np.uint64, keys: list[np.uint64]) -> NDArray[np.uint64]:
    import numpy as np

    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    image: NDArray[np.uint64] = (left << half) | right
    return image


def _mix(value: Any) -> Any:
    """Return the finaliser of splitmix64 (Steele, Lea, Flood 2014), elementwise.

    Unsigned arrays wrap around by themselves.
    """
    import numpy as np

    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _mix_int(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
