"""The kernel of digests against its reference: the same numbers for every type, stride and offset.

Without a card, but with Triton installed, its interpreter runs the kernel on the CPU in some minutes:
``TRITON_INTERPRET=1 pytest tests/gpu/test_digest_kernel.py``.
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
on_card = pytest.mark.skipif(not ON_CARD, reason="no CUDA card")

from digest_boxes import DTYPES, boxes, like, random_bytes  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from liver_slurm.transfer import digest_kernel, digest_plan, digest_table, multilinear  # noqa: E402
from liver_slurm.transfer.checksum import digest, digests  # noqa: E402
from liver_slurm.transfer.digest_plan import DigestPlan  # noqa: E402
from liver_slurm.transfer.digest_table import UNITS, digest_tables  # noqa: E402

EXAMPLES = 200 if ON_CARD else 30
SPARE = 1 << 24
"""Words of a big box beyond its first block."""


def of_kernel(views: list[torch.Tensor]) -> list[int]:
    """Digests by the kernel, on the card or in Triton's interpreter."""
    if ON_CARD:
        return DigestPlan(views).launch().result()
    sums = torch.zeros(len(views), dtype=torch.int64)
    for table in digest_tables(views, digest_kernel.TILE_BYTES):
        digest_kernel.add_digests(table, sums)
    return [(view.nbytes + found) % (1 << 64) for view, found in zip(views, sums.tolist(), strict=True)]


@settings(deadline=None, max_examples=EXAMPLES)
@given(views=st.lists(boxes(), min_size=1, max_size=8))
def test_small_boxes(views: list[torch.Tensor]) -> None:
    assert of_kernel([like(view, DEVICE) for view in views]) == [multilinear.multilinear(view) for view in views]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 7, 8, 129, 1000, 4096, 70_001])
def test_rows_and_tiles_of_any_length(length: int, dtype: torch.dtype) -> None:
    """Tiles that end inside a row, rows that end inside what a program reads at a time, and both together."""
    rows = max(2, 200_000 // length)
    flat = random_bytes((rows * (length + 3) + 16) * dtype.itemsize).view(dtype)
    whole = flat[1 : 1 + rows * (length + 3)].view(rows, length + 3)
    views = [
        whole[:, 1 : 1 + length],
        whole[:, :length],
        whole[1],
        flat[: rows * length],
        flat[16:],
        whole[::2, :length],
    ]
    assert of_kernel([like(view, DEVICE) for view in views]) == [multilinear.multilinear(view) for view in views]


def test_blocks_have_their_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (multilinear, digest_table):
        monkeypatch.setattr(module, "BLOCK_WORDS", 1 << 10)
    monkeypatch.setattr(digest_table, "_PART_BYTES", 1 << 11)
    whole = random_bytes(100_000).view(100, 1000)
    views = [whole, whole[:, 16:992], whole[:, 1:998], whole.view(-1)[2:], whole.view(torch.int16)[:, ::2]]
    assert of_kernel([like(view, DEVICE) for view in views]) == [multilinear.multilinear(view) for view in views]


def test_boxes_of_all_kinds_in_one_launch() -> None:
    views = []
    for number in range(500 if ON_CARD else 40):
        dtype = DTYPES[number % len(DTYPES)]
        whole = random_bytes(9 * 40 * 8, number).view(dtype).view(9, -1)
        views.append((whole, whole[:, number % 5 : 20 + number % 7], whole[number % 9], whole[:, ::3])[number % 4])
    assert of_kernel([like(view, DEVICE) for view in views]) == [multilinear.multilinear(view) for view in views]


@on_card
def test_a_launch_sees_what_the_boxes_hold_then() -> None:
    box = torch.zeros(1 << 20, device=DEVICE)
    plan = DigestPlan([box, box[:0], box[1:2]])
    before = plan.launch()
    box.fill_(1.5)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    after = plan.launch(stream)
    assert before.result() == digests([torch.zeros(1 << 20), torch.zeros(0), torch.zeros(1)], "mix")
    assert after.result() == digests([torch.full((1 << 20,), 1.5), torch.zeros(0), torch.full((1,), 1.5)], "mix")
    assert before.done()
    assert after.done()


@on_card
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_and_a_cpu_agree(dtype: torch.dtype) -> None:
    whole = torch.randn(40, 50, 60).to(dtype)
    for view in (whole, whole[1:30, :, 2:50]):
        assert digest(view.cuda()) == digest(view.cuda(), "mix") == digest(view, "mix")
        assert digest(view.cuda(), "xxh3") == digest(view, "xxh3")
    assert digests([whole.cuda(), whole], "mix") == digests([whole, whole.cuda()], "mix")


@on_card
def test_after_the_warm_up_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    digest_plan.warm_up(torch.device("cuda"))
    compiled = digest_kernel._add.device_caches[torch.cuda.current_device()][0]
    before = len(compiled)
    assert before >= 2 * len(UNITS)
    data = random_bytes(1 << 20).cuda()
    for offset in range(9):
        for step in (16, 17, 18, 20):
            of_kernel([data[offset : offset + 999 * step], data[offset:][: 999 * step].view(999, step)[:, : step // 2]])
    assert len(compiled) == before


def big_box(dtype: torch.dtype) -> torch.Tensor:
    """Zeros of more words than a signed number of 32 bits counts: a block and a bit."""
    count = (multilinear.BLOCK_WORDS + SPARE) * 4 // dtype.itemsize
    free, _ = torch.cuda.mem_get_info()
    if free < 2 * count * dtype.itemsize + SPARE:
        pytest.skip(f"{free / 1e9:.1f} GB are free on the card, two boxes of 8.7 GB are needed")
    return torch.zeros(count, dtype=dtype, device=DEVICE)


@on_card
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_words_of_a_second_block(dtype: torch.dtype) -> None:
    box = big_box(dtype)
    per_word = 4 // dtype.itemsize
    last = multilinear.BLOCK_WORDS * per_word - 1
    places = [0, 1, box.numel() // 3, last, last + 1, box.numel() - 1]
    values = random_bytes(len(places) * dtype.itemsize, 5).view(dtype)
    box[torch.tensor(places, device=DEVICE)] = values.to(DEVICE)
    expected = box.nbytes
    for place, value in zip(places, values, strict=True):
        block, at = divmod(place // per_word, multilinear.BLOCK_WORDS)
        word = int.from_bytes(value.view(1).view(torch.uint8).numpy().tobytes(), "little")
        factor = int(multilinear._finalize(torch.tensor([at + 1]))) * multilinear.block_factor(block)
        expected += (word << place % per_word * 8) * factor
    assert digest(box) == expected % (1 << 64)


@on_card
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_second_block_that_begins_inside_a_row(dtype: torch.dtype) -> None:
    box = big_box(dtype)
    integers = box if dtype == torch.uint8 else box.view(torch.int32)
    integers.random_()
    width = 1009  # a prime
    strided = box[: box.numel() // width * width].view(-1, width)[:, : width - 1]
    assert strided.nbytes > multilinear.BLOCK_WORDS * 4
    assert digest(strided) == digest(strided.contiguous())
