"""Checks between the keys of a job, each a function from sections to problems; those of files are the only I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from liver_slurm.config import own_loop, sbatch
from liver_slurm.config.batch_sizes import batch_problems
from liver_slurm.config.blend import blend_problems
from liver_slurm.config.data_checks import file_problems, tokenizer_problems
from liver_slurm.config.experts import expert_problems
from liver_slurm.config.extra import extra_problems, unknown_fields
from liver_slurm.config.fp8 import fp8_problems
from liver_slurm.config.functions import function_problems
from liver_slurm.config.layouts import feasible_layouts, live_workers, refused
from liver_slurm.config.moments import moment_problems
from liver_slurm.config.outside import NotifySection
from liver_slurm.config.problem import Problem, shown
from liver_slurm.config.schema import (
    DataSection,
    JobConfig,
    JobSection,
    LiveSection,
    ModelSection,
    StandbySection,
    StreamSection,
    TrainSection,
)
from liver_slurm.config.shapes import head_width
from liver_slurm.config.units import most_workers, standby_units
from liver_slurm.config.validation import ValidationSection
from liver_slurm.parallel.layout import Layout

Check = Callable[[JobConfig], Iterator[Problem]]


def cross_check(config: JobConfig, bad_keys: set[str], files: bool = True) -> list[Problem]:
    """Find all problems between keys.

    A check that reads ``KEY[]`` judges the good elements of a list, whatever the others are.

    Args:
        bad_keys: keys that are wrong by themselves; a check that reads one is left out, as it would only echo that.
        files: also look at what only a run needs: data and tokenizer files, and a partition for standbys.
    """
    checks = _CHECKS if not files else (*_CHECKS, *_RUN_CHECKS)
    return [
        problem
        for keys, check in checks
        if not any(_spoils(bad, key) for bad in bad_keys for key in keys)
        for problem in check(config)
    ]


def _spoils(bad: str, key: str) -> bool:
    if key.endswith("[]"):
        return _inside(key[:-2], bad)
    return _inside(bad, key) or _inside(key, bad)


def _inside(key: str, section: str) -> bool:
    return key == section or key.startswith(section + ".")


def _heads(model: ModelSection) -> Iterator[Problem]:
    if model.num_attention_heads and model.kv_channels is None and model.hidden_size % model.num_attention_heads:
        yield Problem(
            "model.hidden_size",
            f"{model.hidden_size} is not a multiple of num_attention_heads {model.num_attention_heads}; "
            "allowed: a multiple, or give kv_channels",
        )


def _rotated_width(model: ModelSection) -> Iterator[Problem]:
    width = head_width(model)
    rotated = model.provider is None and model.position_embedding_type == "rope"
    if rotated and width % 2 and int(width * model.rotary_percent) == width:
        key = "model.hidden_size" if model.kv_channels is None else "model.kv_channels"
        text = f"makes heads of width {width}, all of it rotated in pairs"
        yield Problem(key, f"{getattr(model, key.removeprefix('model.'))} {text}; allowed: an even width of a head")


def _query_groups(model: ModelSection) -> Iterator[Problem]:
    heads, groups = model.num_attention_heads, model.num_query_groups
    if groups is not None and heads % groups:
        yield Problem(
            "model.num_query_groups",
            f"{groups} does not divide num_attention_heads {heads}; allowed: {_divisors(heads)}",
        )


def _positions(model: ModelSection, train: TrainSection) -> Iterator[Problem]:
    rows = model.max_position_embeddings
    if model.position_embedding_type == "learned_absolute" and rows is not None and train.seq_length > rows:
        text = f"{train.seq_length} is above model.max_position_embeddings; allowed: at most {rows}"
        yield Problem("train.seq_length", text)


def _learning_rate(train: TrainSection) -> Iterator[Problem]:
    if train.min_lr > train.lr:
        yield Problem("train.min_lr", f"{train.min_lr} is above lr; allowed: at most lr {train.lr}")
    end = train.lr_decay_steps
    if end is not None and train.lr_warmup_steps > end:
        yield Problem("train.lr_warmup_steps", f"{train.lr_warmup_steps} is past lr_decay_steps; allowed: <= {end}")
    if train.lr_decay_style != "wsd":
        if train.lr_wsd_decay_steps is not None:
            yield Problem("train.lr_wsd_decay_steps", 'has no use; allowed: lr_decay_style = "wsd" too')
    elif train.wsd_decay_steps > (most := (end or train.steps) - train.lr_warmup_steps):
        yield Problem("train.lr_wsd_decay_steps", f"{train.wsd_decay_steps} begin in the warm-up; allowed: <= {most}")


def _muon(train: TrainSection) -> Iterator[Problem]:
    """Find what does not go with Muon; see :mod:`liver_slurm.engine.megatron.muon`."""
    if train.optimizer != "muon" or train.loop is not None:
        return
    if train.distributed_optimizer:
        text = "true divides matrices among replicas, and train.optimizer muon updates whole ones; allowed: false"
        yield Problem("train.distributed_optimizer", text)
    if train.moments_precision != "fp32":
        text = f'{shown(train.moments_precision)} is for adam and sgd; allowed: "fp32" with train.optimizer muon'
        yield Problem("train.moments_precision", text)
    if train.muon_ns_steps % 5:
        yield Problem("train.muon_ns_steps", f"{train.muon_ns_steps} is not a multiple of 5; allowed: 5, 10, …")


def _data_given(data: DataSection, train: TrainSection) -> Iterator[Problem]:
    if not data.paths and data.provider is None and train.loop is None:
        yield Problem("data.paths", "is missing; allowed: a list of text files, folders or .bin/.idx prefixes")


def _documents(data: DataSection, model: ModelSection) -> Iterator[Problem]:
    """Find what keeps settings about documents from being heeded."""
    asked = [key for key in ("reset_position_ids", "reset_attention_mask", "eod_mask_loss") if getattr(data, key)]
    if asked and data.provider is not None and data.eod is None:
        yield Problem("data.eod", f"is missing; allowed: the token that ends a document, for data.{asked[0]}")
    if data.resets and model.extra and model.provider is None:
        yield Problem(f"data.{asked[0]}", "is for models without model.extra; allowed: false")


def _packing(data: DataSection) -> Iterator[Problem]:
    if data.packing == "none":
        if data.packing_window != DataSection().packing_window:
            text = f'{data.packing_window} has no use without packing; allowed: leave it out, or packing = "best_fit"'
            yield Problem("data.packing_window", text)
        return
    if data.provider is not None:
        yield Problem("data.packing", 'is for data.paths, and data.provider gives samples; allowed: "none"')
    elif not data.eod_mask_loss:
        text = "false would count the loss of what fills up samples, which are ends of documents; allowed: true"
        yield Problem("data.eod_mask_loss", f'{text}, or packing = "none"')


def _z_loss(train: TrainSection, model: ModelSection) -> Iterator[Problem]:
    if train.z_loss_coeff and model.provider is not None:
        text = f"{train.z_loss_coeff} has no effect with model.provider, whose model computes its loss; allowed: 0"
        yield Problem("train.z_loss_coeff", text)


def _dropout(model: ModelSection) -> Iterator[Problem]:
    for key, other in product(("hidden_dropout", "attention_dropout"), ("provider", "extra")):
        if (rate := getattr(model, key)) and getattr(model, other):
            text = f"{rate} is for this product's own layers, which model.{other} replaces; allowed: 0"
            yield Problem(f"model.{key}", text)


def _layouts_possible(config: JobConfig) -> Iterator[Problem]:
    if config.elastic.layouts == "auto":
        return
    if not config.elastic.layouts:
        yield Problem("elastic.layouts", '[] is not allowed; allowed: "auto", or at least one layout')
    for text in config.elastic.layouts:
        if reason := refused(Layout.parse(text), config):
            yield Problem("elastic.layouts", f'"{text}" is impossible for this model: {reason}')


def _initial(config: JobConfig) -> Iterator[Problem]:
    elastic, workers = config.elastic, live_workers(config.live)
    if not workers or not elastic.layouts:  # that is said already
        return
    if elastic.initial is None:
        if not feasible_layouts(config, workers):
            alone = refused(Layout(1, 1, 1), config)
            why = f": {alone}" if alone and elastic.layouts == "auto" else ""
            yield Problem("elastic.layouts", f"no layout is possible with the {workers} guaranteed workers{why}")
        return
    initial = Layout.parse(elastic.initial)
    if elastic.layouts != "auto" and elastic.initial not in elastic.layouts:
        listed = ", ".join(elastic.layouts)
        yield Problem("elastic.initial", f'"{initial}" is not in elastic.layouts; allowed: {listed}')
    elif reason := refused(initial, config):
        yield Problem("elastic.initial", f'"{initial}" is impossible for this model: {reason}')
    if initial.size > workers:
        text = f'"{initial}" needs {initial.size} workers, and the guaranteed job has {workers}'
        more = "more workers, by nodes and tasks_per_node of [[live.component]] (run: --workers)"
        yield Problem("elastic.initial", f"{text}; allowed: a smaller layout, or {more}")
    if elastic.max_workers is not None and initial.size > elastic.max_workers:
        yield Problem("elastic.initial", f'"{initial}" is larger than elastic.max_workers {elastic.max_workers}')


def _components(live: LiveSection) -> Iterator[Problem]:
    if not live.component:
        yield Problem("live.component", "[] is not allowed; allowed: at least one [[live.component]]")


def _one_device(live: LiveSection, standby: StandbySection) -> Iterator[Problem]:
    keys = [(f"live.component.{index}", one.gpus_per_task) for index, one in enumerate(live.component)]
    if standby.max_jobs:
        keys += [(key, unit.gpus_per_task) for key, unit in _unit_keys(standby)]
    for key, gpus in keys[1:]:
        first, expected = keys[0]
        if gpus != expected:
            text = f"{gpus} differs from {first}'s {expected}; allowed: one number for all, as they form one world"
            yield Problem(f"{key}.gpus_per_task", text)


def _standby_partitions(standby: StandbySection) -> Iterator[Problem]:
    if not standby.max_jobs:
        return
    text = f"is missing; allowed: at least one, here or in the site file, as standby.max_jobs is {standby.max_jobs}"
    for key, unit in _unit_keys(standby):
        if not unit.partitions:
            yield Problem(f"{key}.partitions", text)


def _spares(standby: StandbySection) -> Iterator[Problem]:
    most = most_workers(standby)
    if standby.spares > most:
        text = f"{standby.spares} is more than standby jobs can bring; allowed: at most {most}, see standby.max_jobs"
        yield Problem("standby.spares", text)


def _unit_keys(standby: StandbySection) -> list[tuple[str, StandbySection]]:
    """List each size of standby job, and where the job file has it."""
    units = standby_units(standby)
    if not standby.unit:
        return [("standby", units[0])]
    return [(f"standby.unit.{index}", unit) for index, unit in enumerate(units)]


def _lost_after(job: JobSection) -> Iterator[Problem]:
    if job.lost_after < 2 * job.heartbeat:
        text = f"{job.lost_after} is too short; allowed: at least twice job.heartbeat {job.heartbeat}"
        yield Problem("job.lost_after", text)


def _memory_limit(stream: StreamSection) -> Iterator[Problem]:
    if stream.memory_limit is not None and stream.memory_limit <= stream.staging_bytes:
        text = (
            f"{stream.memory_limit} leaves no room for state; allowed: more than staging_bytes {stream.staging_bytes}"
        )
        yield Problem("stream.memory_limit", text)


def _notify(notify: NotifySection) -> Iterator[Problem]:
    if notify.command and not notify.command[0].strip():
        yield Problem("notify.command", "its first word is empty; allowed: a command and its arguments")


def _interface_of_nothing(config: JobConfig) -> Iterator[Problem]:
    if config.prometheus.interface is not None and config.prometheus.port is None:
        yield Problem("prometheus.interface", "has no use without prometheus.port; allowed: both, or neither")


def _validation(validation: ValidationSection, train: TrainSection) -> Iterator[Problem]:
    if not validation.wanted:
        for key in ("samples", "patience", "keep_best"):
            if getattr(validation, key):
                yield Problem(f"validation.{key}", "has no use without data; allowed: validation.paths or provider too")
    elif validation.samples is not None and validation.samples < train.micro_batch_size:
        text = f"{validation.samples} is too few; allowed: at least train.micro_batch_size {train.micro_batch_size}"
        yield Problem("validation.samples", text)


def _divisors(number: int) -> str:
    return ", ".join(str(one) for one in range(1, min(number, 1024) + 1) if number % one == 0)


_SHAPE = ("model.num_attention_heads", "model.hidden_size")
_ROTATED = ("model.kv_channels", "model.rotary_percent", "model.provider", "model.position_embedding_type")
_POSITIONS = ("model.max_position_embeddings", "model.position_embedding_type")
_BATCH = ("train.global_batch_size", "train.micro_batch_size")
_STEPS = ("train.steps", "train.lr_warmup_steps", "train.lr_decay_steps", "train.lr_wsd_decay_steps")
_SCHEDULE = ("train.lr", "train.min_lr", "train.lr_decay_style", *_STEPS)
_LAYOUT = ("model", *_BATCH, "train.precision", "train.gpu_memory")
_MUON = (
    "train.optimizer",
    "train.distributed_optimizer",
    "train.moments_precision",
    "train.loop",
    "train.muon_ns_steps",
)
_ENVIRONMENT = ("live.setup", "live.python", "live.sbatch")
_CHECKS: tuple[tuple[tuple[str, ...], Check], ...] = (
    (_SHAPE, lambda job: _heads(job.model)),
    ((*_SHAPE, *_ROTATED), lambda job: _rotated_width(job.model)),
    ((*_POSITIONS, "train.seq_length"), lambda job: _positions(job.model, job.train)),
    (("model.num_attention_heads", "model.num_query_groups"), lambda job: _query_groups(job.model)),
    (("model",), lambda job: expert_problems(job.model)),
    ((*_BATCH, "train.rampup_batch_size", "train.earlier_batches"), lambda job: batch_problems(job.train)),
    (_SCHEDULE, lambda job: _learning_rate(job.train)),
    (("data.paths", "data.provider", "train.loop"), lambda job: _data_given(job.data, job.train)),
    (("data.paths", "data.weights"), lambda job: blend_problems("data", job.data)),
    (("validation.paths", "validation.weights"), lambda job: blend_problems("validation", job.validation)),
    (("data", "model.extra", "model.provider"), lambda job: _documents(job.data, job.model)),
    (("data",), lambda job: _packing(job.data)),
    (
        ("train.optimizer", "train.moments_precision", "train.adam_beta1", "train.adam_beta2", "train.sgd_momentum"),
        lambda job: moment_problems(job.train),
    ),
    (("model",), lambda job: _dropout(job.model)),
    (("model", "train.fp8", "train.precision"), lambda job: fp8_problems(job.model, job.train)),
    (("train.z_loss_coeff", "model.provider"), lambda job: _z_loss(job.train, job.model)),
    (_MUON, lambda job: _muon(job.train)),
    ((*_LAYOUT, "elastic.layouts[]"), _layouts_possible),
    ((*_LAYOUT, "elastic", "live.component"), _initial),
    (("model.extra", "model.provider"), lambda job: extra_problems(job.model)),
    (("live.component",), lambda job: _components(job.live)),
    (("live.component", "standby.gpus_per_task", "standby.unit"), lambda job: _one_device(job.live, job.standby)),
    (("live", "standby"), lambda job: sbatch.line_breaks(job.live, job.standby)),
    (("live.sbatch",), lambda job: sbatch.problems("live.sbatch", job.live.sbatch)),
    (("standby.sbatch",), lambda job: sbatch.problems("standby.sbatch", job.standby.sbatch)),
    (("standby.spares", "standby.max_jobs", "standby.unit"), lambda job: _spares(job.standby)),
    (("job.heartbeat", "job.lost_after"), lambda job: _lost_after(job.job)),
    (("stream.memory_limit", "stream.staging_bytes"), lambda job: _memory_limit(job.stream)),
    (("notify.command",), lambda job: _notify(job.notify)),
    (("validation", "train.micro_batch_size"), lambda job: _validation(job.validation, job.train)),
    (("prometheus.port", "prometheus.interface"), _interface_of_nothing),
    (("train", "stream", "recovery", "model", "data", "validation"), own_loop.problems),
)
_RUN_CHECKS: tuple[tuple[tuple[str, ...], Check], ...] = (
    (("standby.partitions", "standby.max_jobs", "standby.unit"), lambda job: _standby_partitions(job.standby)),
    (("data.paths[]",), lambda job: file_problems("data", job.data)),
    (("validation.paths[]",), lambda job: file_problems("validation", job.validation)),
    (("data.tokenizer",), lambda job: tokenizer_problems(job.data)),
    (("model.provider", *_ENVIRONMENT), lambda job: function_problems("model.provider", job.model.provider, job.live)),
    (("data.provider", *_ENVIRONMENT), lambda job: function_problems("data.provider", job.data.provider, job.live)),
    (
        ("validation.provider", *_ENVIRONMENT),
        lambda job: function_problems("validation.provider", job.validation.provider, job.live),
    ),
    (("train.loop", *_ENVIRONMENT), lambda job: function_problems("train.loop", job.train.loop, job.live)),
    (("model.extra", "model.provider", *_ENVIRONMENT), lambda job: unknown_fields(job.model, job.live)),
)
