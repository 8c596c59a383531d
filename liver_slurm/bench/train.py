"""``bench train``: tokens a second of a whole run of ours, beside what else would train the same model.

That is plain compiled PyTorch (:mod:`~liver_slurm.bench.plain_gpt`) and Megatron
(:mod:`~liver_slurm.bench.megatron_gpt`), each on one device, in the same call. For a layout of several workers a ratio
is per worker: what one of them trains beside what one device trains with the other.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from liver_slurm.app.local_run import run_local
from liver_slurm.base.errors import LiverError
from liver_slurm.base.flops import peak_tflops, token_flops
from liver_slurm.bench import machine
from liver_slurm.bench.jobs import samples as samples  # what data.provider names
from liver_slurm.bench.plain_gpt import Shape
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
    TrainSection,
)
from liver_slurm.parallel.layout import Layout
from liver_slurm.rundir.metrics import read_metrics
from liver_slurm.rundir.registry import create_run

WARM = 4
"""Steps before measuring begins: graphs are compiled and the allocator has settled."""


@dataclass(frozen=True)
class Case:
    """One model in one layout."""

    name: str
    shape: Shape
    layout: Layout


_SMALL = Shape(6, 384, 8, 4, 1024, 16384, 256, 2, 8, 8, tied=True, bf16=False)
_BILLION = Shape(24, 2048, 16, 16, 5632, 50257, 2048, 4, 16, 12, tied=True, bf16=True)
_SEVEN = Shape(32, 4096, 32, 32, 11008, 32000, 2048, 1, 16, 8, tied=False, bf16=True)
ONE = Layout(1, 1, 1)


def cases(quick: bool, cards: int, fp8: bool) -> list[Case]:
    """Return what is measured here; ``fp8``: cards have matrix products in it."""
    if not cards:
        return [Case("15M", replace(_SMALL, steps=6 if quick else 20), ONE)]
    one = [Case("1.3B", _BILLION, ONE)]
    if not quick:
        one.append(Case("7B", _SEVEN, ONE))
    if not quick and fp8:
        one += [Case(f"{case.name} FP8", replace(case.shape, fp8=True), ONE) for case in one]
    two = [Case(f"1.3B {text}", _BILLION, Layout.parse(text)) for text in ("tp2pp1dp1", "tp1pp2dp1", "tp1pp1dp2")]
    # Four microbatches leave the host too little time for what it has to launch.
    two.append(Case("1.3B tp2pp1dp1, micro batch 16", replace(_BILLION, micro_batch=16), two[0].layout))
    return one + (two if cards > 1 and not quick else [])


def run(quick: bool) -> dict[str, Any]:
    """Measure; ``quick``: one case, few steps."""
    return measure(cases(quick, machine.count_gpus(), machine.has_fp8()))


def measure(todo: Sequence[Case]) -> dict[str, Any]:
    """Measure these cases; the document. One that fails is written down, and the others go on."""
    begun = time.monotonic()
    document: dict[str, Any] = {"bench": "train", "machine": machine.describe(machine.has_gpu())}
    found, others = [], Others()
    for number, case in enumerate(todo, start=1):
        print(f"{number}/{len(todo)} {case.name}", file=sys.stderr)
        try:
            found.append(_case(case, others, document["machine"]["device"]))
            said = f"{found[-1]['tokens_per_s']:,.0f} tokens/s, ratio {found[-1]['ratio']}"
        except LiverError as error:
            found.append({"name": case.name, "layout": str(case.layout), "failed": str(error)})
            said = f"failed: {error}"
        print(f"    {said}", file=sys.stderr)
    return document | {"cases": found, "seconds": time.monotonic() - begun}


def _case(case: Case, others: Others, device: str) -> dict[str, Any]:
    shape = case.shape
    plain, megatron = others.plain(shape), others.megatron(shape)
    with machine.memory_folder() as folder:
        seconds, parameters = _ours(case, folder)
    rate = shape.global_batch * shape.sequence / statistics.median(seconds) / case.layout.size
    peak = peak_tflops(device)
    flops = token_flops(parameters, shape.layers, shape.hidden, shape.sequence)
    engine, precision = machine.has_transformer_engine(), "bf16" if shape.bf16 else "fp32"
    theirs = "FP8" if shape.fp8 and engine else precision
    return {
        "name": case.name,
        "parameters": parameters,
        "layout": str(case.layout),
        "device": device,
        "tokens_per_s": rate * case.layout.size,
        "tflops": rate * flops / 1e12,
        "mfu": rate * flops / (peak * 1e12) if peak else None,
        "reference": f"{'torch.compile' if peak else 'PyTorch'} in {precision}, one device",
        "reference_tokens_per_s": plain,
        "ratio": rate / plain if plain else None,
        "megatron": f"megatron-core with{'' if engine else 'out'} Transformer Engine, one device",
        "megatron_precision": theirs,
        "megatron_tokens_per_s": megatron,
        "ratio_to_megatron": rate / megatron if megatron else None,
        "step_s": statistics.median(seconds),
        "each_s": seconds,
    }


class Others:
    """What else trains a model, measured once for each shape."""

    def __init__(self) -> None:
        self._rates: dict[tuple[str, Shape], float | None] = {}

    def plain(self, shape: Shape) -> float | None:
        """Return plain PyTorch's tokens a second, in bf16 where ours are in FP8; None: it does not fit."""
        return self._rate("plain_gpt", replace(shape, fp8=False))

    def megatron(self, shape: Shape) -> float | None:
        """Return Megatron's, likewise; without Transformer Engine it has no FP8."""
        return self._rate("megatron_gpt", shape if machine.has_transformer_engine() else replace(shape, fp8=False))

    def _rate(self, module: str, shape: Shape) -> float | None:
        if (module, shape) not in self._rates:
            seconds = _seconds(module, shape)
            tokens = shape.global_batch * shape.sequence
            self._rates[module, shape] = tokens / statistics.median(seconds[WARM:]) if seconds else None
        return self._rates[module, shape]


def _seconds(module: str, shape: Shape) -> list[float] | None:
    """Return the steps of a baseline, in a process of its own; None: it does not fit on this device."""
    done = subprocess.run(
        [sys.executable, "-m", f"liver_slurm.bench.{module}"], input=json.dumps(asdict(shape)), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        seconds: list[float] = json.loads(done.stdout.splitlines()[-1])["seconds"]
        return seconds
    if "OutOfMemoryError" in done.stderr:
        return None
    said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise LiverError(f"the baseline {module} failed: {said}")


def _ours(case: Case, folder: Path) -> tuple[list[float], int]:
    """Return the seconds of each step of a whole run, as its metrics say, and the model's parameters."""
    from liver_slurm.bench.jobs import parameters

    config = _job(case, folder)
    run_dir = create_run(config)
    code = run_local(config, run_dir, case.layout.size, 0)
    if code:
        raise LiverError(f"{case.name}: the run ended with {code}; see {run_dir.logs}")
    starts = [line.start for line in read_metrics(run_dir.metrics)]
    return [later - earlier for earlier, later in zip(starts[WARM:], starts[WARM + 1 :], strict=False)], parameters(
        config
    )


def _job(case: Case, folder: Path) -> JobConfig:
    shape, gpus = case.shape, 1 if machine.has_gpu() else 0
    return JobConfig(
        job=JobSection(name="bench-train", run_root=str(folder), prepare_timeout=600.0, start_timeout=600.0),
        model=ModelSection(
            num_layers=shape.layers,
            hidden_size=shape.hidden,
            num_attention_heads=shape.heads,
            num_query_groups=shape.groups,
            ffn_hidden_size=shape.feed_forward,
            vocab_size=shape.vocabulary,
            share_embeddings_and_output_weights=shape.tied,
        ),
        data=DataSection(provider=f"{__name__}:samples"),
        train=TrainSection(
            steps=shape.steps,
            seq_length=shape.sequence,
            micro_batch_size=shape.micro_batch,
            global_batch_size=shape.global_batch,
            lr=1e-4,
            lr_decay_style="constant",
            precision="bf16" if shape.bf16 else "fp32",
            fp8=shape.fp8,
        ),
        live=LiveSection(component=(ComponentSection(tasks_per_node=case.layout.size, gpus_per_task=gpus),)),
        standby=StandbySection(max_jobs=0, gpus_per_task=gpus),
        elastic=ElasticSection(initial=str(case.layout)),
        checkpoint=CheckpointSection(every=0, at_end=False),
    )


def table(document: dict[str, Any]) -> str:
    """Return the document for people."""
    rows: Sequence[Sequence[Any]] = [
        [
            case["name"],
            case["layout"],
            f"{case['tokens_per_s']:,.0f}",
            f"{case['mfu']:.3f}" if case["mfu"] is not None else "-",
            *_compared(case["reference_tokens_per_s"], case["ratio"]),
            *_compared(case["megatron_tokens_per_s"], case["ratio_to_megatron"]),
            case["megatron_precision"],
        ]
        for case in document["cases"]
        if "failed" not in case
    ]
    others = ["plain PyTorch", "ratio a worker", "Megatron", "ratio a worker", "in"]
    heads = ["model", "layout", "tokens/s", "MFU", *others]
    failed = [
        f"{case['name']} in {case['layout']} failed: {case['failed']}" for case in document["cases"] if "failed" in case
    ]
    return "\n".join([tabulate(rows, heads), *failed])


def _compared(rate: float | None, ratio: float | None) -> tuple[str, str]:
    if rate is None or ratio is None:
        return "does not fit", "-"
    return f"{rate:,.0f}", f"{ratio:.3f}"
