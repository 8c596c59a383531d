"""The jobs that benchmarks train: models of three sizes, with steps that cost little beside their state, and of one
that is large enough for cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from liver_slurm.config.schema import (
    CheckpointSection,
    ComponentSection,
    DataSection,
    ElasticSection,
    JobConfig,
    JobSection,
    LiveSection,
    ModelSection,
    StandbySection,
    StreamSection,
    TrainSection,
)
from liver_slurm.parallel.layout import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENDLESS = 1_000_000
"""Steps of a run that is ended once it has shown what it should."""


@dataclass(frozen=True)
class Size:
    """One of the models."""

    name: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    vocabulary: int
    groups: int | None = None
    """Default: half the heads."""
    sequence: int = 16
    micro_batch: int = 1
    global_batch: int = 4
    """In any layout four microbatches: enough for four replicas or to fill two pipeline stages."""
    precision: Literal["fp32", "bf16"] = "fp32"


SIZES = (
    Size("15M", layers=6, hidden=384, feed_forward=1024, heads=8, vocabulary=16384),
    Size("110M", layers=12, hidden=768, feed_forward=2048, heads=12, vocabulary=32768),
    Size("400M", layers=24, hidden=1024, feed_forward=3072, heads=16, vocabulary=32768),
)
"""For CPUs, and for cards that several ranks share."""
BILLION = Size(
    "1.3B", layers=24, hidden=2048, feed_forward=5632, heads=16, vocabulary=50257, groups=16,
    sequence=2048, micro_batch=4, global_batch=16, precision="bf16",
)  # fmt: skip
"""For a card a rank: the model of ``bench train``, with the steps that a user would train."""
BY_NAME = {size.name: size for size in (*SIZES, BILLION)}


def job(
    size: Size,
    folder: Path,
    initial: Layout,
    *,
    distributed_optimizer: bool,
    mode: Literal["overlap", "pause"] = "pause",
    gpus: Literal[0, 1] = 0,
    layouts: Sequence[Layout] = (),
) -> JobConfig:
    """Return a run of plain processes in ``folder`` that starts in ``initial`` and changes its layout only when asked
    to.

    Args:
        layouts: all that it will be asked for, so that nothing else is compiled; none: whatever the model can have.
    """
    allowed = tuple(map(str, dict.fromkeys((initial, *layouts))))
    return JobConfig(
        job=JobSection(name=f"bench-{size.name}", run_root=str(folder), prepare_timeout=600.0),
        model=ModelSection(
            num_layers=size.layers,
            hidden_size=size.hidden,
            num_attention_heads=size.heads,
            num_query_groups=size.groups or size.heads // 2,
            ffn_hidden_size=size.feed_forward,
            vocab_size=size.vocabulary,
        ),
        data=DataSection(provider=f"{__name__}:samples"),
        train=TrainSection(
            steps=ENDLESS,
            seq_length=size.sequence,
            micro_batch_size=size.micro_batch,
            global_batch_size=size.global_batch,
            lr=1e-4,
            lr_decay_style="constant",
            precision=size.precision,
            distributed_optimizer=distributed_optimizer,
        ),
        live=LiveSection(component=(ComponentSection(tasks_per_node=initial.size, gpus_per_task=gpus),)),
        standby=StandbySection(gpus_per_task=gpus, poll=0.5),
        elastic=ElasticSection(layouts=allowed if layouts else "auto", initial=str(initial), settle=0.1),
        stream=StreamSection(mode=mode),
        checkpoint=CheckpointSection(every=0, at_end=False),
    )


class RandomSamples:
    """Tokens that are a function of the sample's number."""

    def __init__(self, length: int, vocabulary: int) -> None:
        self._length, self._vocabulary = length, vocabulary

    def __len__(self) -> int:
        return 1 << 20

    def batch(self, first: int, count: int) -> NDArray[Any]:
        """Return samples, as :meth:`liver_slurm.engine.data.samples.Samples.batch` does."""
        import numpy as np

        rows = [
            np.random.default_rng(n).integers(0, self._vocabulary, self._length) for n in range(first, first + count)
        ]
        return np.stack(rows).astype(np.int64)


def samples(config: JobConfig) -> RandomSamples:
    """Make the samples of these jobs; their ``data.provider``."""
    assert config.model.vocab_size is not None
    return RandomSamples(config.train.seq_length + 1, config.model.vocab_size)


def parameters(config: JobConfig) -> int:
    """Return the parameters of the job's model, tied ones once."""
    from liver_slurm.engine.megatron.spec import parameter_count

    return parameter_count(config)


def rank_bytes(parameters: int, layout: Layout, distributed_optimizer: bool) -> int:
    """About what one rank holds of an fp32 model: weights, gradients and Adam's two moments."""
    moments = 8 / layout.dp if distributed_optimizer else 8
    return int(parameters / (layout.tp * layout.pp) * (4 + 4 + moments))
