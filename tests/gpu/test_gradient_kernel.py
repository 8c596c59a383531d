"""The kernel that adds gradients to their sums: bitwise what torch adds.

Without a card, but with Triton installed: ``TRITON_INTERPRET=1 pytest tests/gpu/test_gradient_kernel.py``.
"""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")

ON_CARD = torch.cuda.is_available()
DEVICE = "cuda" if ON_CARD else "cpu"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not ON_CARD and os.environ.get("TRITON_INTERPRET") != "1",
        reason="no CUDA card: torch.cuda.is_available() is False, and TRITON_INTERPRET is not 1",
    ),
]
pytest.importorskip("triton")

from liver_slurm.engine.megatron import gradient_kernel, gradients  # noqa: E402


def _numbers(count: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random bytes, so infinite and subnormal ones too, but no NaN: which of several is kept is open."""
    words = torch.Generator().manual_seed(seed)
    data = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=words).view(dtype)
    return torch.where(data.isnan(), torch.ones((), dtype=dtype), data).to(DEVICE)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all()) and torch.equal(one.signbit(), other.signbit())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [16, 4096, 4112, 70_000])
def test_sums_are_those_of_torch(count: int, dtype: torch.dtype) -> None:
    sums, gradient = _numbers(count, torch.float32, 1), _numbers(count, dtype, 2)
    wanted = sums + gradient
    gradient_kernel.add_to_sums(sums, gradient)
    assert _same(sums, wanted)


@pytest.mark.skipif(not ON_CARD, reason="no CUDA card")
@pytest.mark.parametrize("count", [1, 15, 4097])
def test_what_the_kernel_cannot_take_is_added_by_torch(count: int) -> None:
    sums, gradient = _numbers(count + 1, torch.float32, 3), _numbers(count + 1, torch.bfloat16, 4)
    for ours, theirs in ((sums[:-1], gradient[:-1]), (sums[1:], gradient[1:]), (sums[:-1], gradient[1:])):
        wanted = ours + theirs
        gradients.add_to_sums(ours, theirs)
        assert _same(ours, wanted)
    matrix = _numbers(64 * 32, torch.bfloat16, 5).view(64, 32).t()
    sums = _numbers(64 * 32, torch.float32, 6).view(32, 64)
    wanted = sums + matrix
    gradients.add_to_sums(sums, matrix)
    assert _same(sums, wanted)
