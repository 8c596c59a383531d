"""Floating-point operations of a training step, and what a card can do at most: the two sides of MFU.

Model FLOPs utilization (Chowdhery et al. 2022, PaLM, appendix B): what the model's arithmetic takes, recomputation not
counted, over what the card's matrix units could do in the same time. For a dense decoder::

    operations of a token = 6 · parameters + 6 · layers · heads · width of a head · sequence

six for each weight in forward and backward pass, and attention's two products over the causal half of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H800": 989.0,
    "GH200": 989.0,
    "B200": 2250.0,
    "B100": 1800.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10": 125.0,
    "V100": 125.0,
}
"""Dense bf16 (fp16 on V100) TFLOP/s of NVIDIA's data sheets, by a part of the card's name; the longest that fits."""


@dataclass(frozen=True)
class Rates:
    """How fast a world trained; None: not known."""

    tokens_per_s: float | None = None
    """Of the whole world."""
    tflops: float | None = None
    """Model TFLOP/s of each rank's card, in the mean."""
    mfu: float | None = None
    """``tflops`` over the card's peak."""


@dataclass(frozen=True)
class FlopsMeter:
    """Turns tokens and seconds into rates; knows what does not change from step to step."""

    token_flops: float | None = None
    """Operations of one token; None: not known, or no card does them."""
    peak_tflops: float | None = None
    """Of one card; None: not known."""

    def rates(self, tokens: int, seconds: float, ranks: int) -> Rates:
        """Return the rates of a world of ``ranks`` that trained so many tokens.

        None where the clock did not go forward.
        """
        if seconds <= 0.0:
            return Rates()
        tokens_per_s = tokens / seconds
        if self.token_flops is None:
            return Rates(tokens_per_s)
        tflops = tokens_per_s * self.token_flops / ranks / 1e12
        return Rates(tokens_per_s, tflops, tflops / self.peak_tflops if self.peak_tflops else None)


def token_flops(parameters: int, layers: int, attention_width: int, sequence: int) -> float:
    """Return the operations of one token; ``attention_width``: heads times the width of a head."""
    return 6.0 * parameters + 6.0 * layers * attention_width * sequence


def peak_tflops(card: str) -> float | None:
    """Return what a card of this name (``torch.cuda.get_device_name``) can do at most; None: it is not in the table."""
    fitting = [name for name in PEAK_TFLOPS if all(word in card for word in name.split())]
    return PEAK_TFLOPS[max(fitting, key=len)] if fitting else None
