"""An import hook for machines without CUDA: megatron-core as it is, but for the CPU.

megatron-core names the ``cuda`` device in its sources. Where CUDA is absent the hook rewrites these names before its
modules are compiled; where CUDA is present its code is not changed. :func:`liver_slurm.engine.megatron.compat.imports`
installs it before anything of ``megatron.core`` is imported.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import marshal
import re
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from liver_slurm.base.files import replace_file

PREFIX = "megatron.core."

# The default device, not "cpu", where megatron asks for the current one: a model built under
# ``torch.device("meta")`` must get its buffers there too.
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"torch\.cuda\.current_device\(\)"), "torch.get_default_device()"),
    (re.compile(r"""device=(['"])cuda\1"""), 'device="cpu"'),
    (re.compile(r"""(['"])torch\.cuda\.(\w*Tensor)\1"""), r'"torch.\2"'),
    (re.compile(r"\.cuda\([^()]*(\([^()]*\))?[^()]*\)"), ".cpu()"),
    (re.compile(r"torch\.cuda\.(synchronize|empty_cache)\(\)"), "None"),
    (re.compile(r"torch\.cuda\.current_stream\(\)"), "torch.cpu.current_stream()"),
    (re.compile(r"torch\.cuda\.(manual_seed|get_rng_state|set_rng_state)\("), r"torch.\1("),
    (re.compile(r"""torch\.autocast\((['"])cuda\1"""), 'torch.autocast("cpu"'),
)

# Functions whose body, not only a name in it, is about CUDA; appended to the module, so they replace the originals.
_REPLACEMENTS = {
    "megatron.core.tensor_parallel.random": """

def _get_cuda_rng_state(device="cpu", clone=False, graph_safe=False):
    return torch.get_rng_state()


def _set_cuda_rng_state(new_state, device=-1, graph_safe=False):
    torch.set_rng_state(new_state)


# It warns at each fork that it uses the CPU's generator, which is the only one here.
logging.getLogger(__name__).addFilter(lambda record: "CPU RNG state" not in record.getMessage())
""",
    # Its fused functions are not used on a CPU; only to decorate them with torch.compile imports the compiler, which
    # takes two fifths of the time that a worker needs to start.
    "megatron.core.jit": """

disable_jit_fuser()
""",
}


# What newer versions log, by logger: that the distributed optimizer's buffers are laid out as ever; that there is a
# successor of this model; and, of torch's extensions, that a machine with CUDA's tools has no card.
_LOGGED = {
    f"{PREFIX}distributed.distributed_data_parallel": "full_param_layout not provided",
    f"{PREFIX}models.gpt.gpt_model": "GPTModel IS DEPRECATED",
    "torch.utils.cpp_extension": "No CUDA runtime is found",
}

# Modules that megatron-core 0.18 and newer import for every model, whatever it has, and that want triton, which comes
# with torch's builds for CUDA only.
_WANT_TRITON = ("megatron.core.transformer.moe.paged_stash", "megatron.core.transformer.moe.ops.paged_stash")
_IMPORT_OF_TRITON = re.compile(r"^import triton(?:\.language as (\w+))?$", re.MULTILINE)


class _NoTriton:
    """What stands in for triton, its language and its kernels while modules are imported; no kernel can be run."""

    def __getattr__(self, _name: str) -> _NoTriton:
        return self

    def __call__(self, *_arguments: Any, **_options: Any) -> _NoTriton:
        return self

    def __getitem__(self, _grid: Any) -> Any:
        raise RuntimeError("this part of megatron-core needs triton, which is not installed")


NO_TRITON = _NoTriton()


def rewrite(name: str, source: str) -> str:
    """Rewrite ``source`` of megatron-core's module ``name`` for machines without CUDA."""
    if "cuda" in source:
        for pattern, replacement in _REWRITES:
            source = pattern.sub(replacement, source)
    if name in _WANT_TRITON and importlib.util.find_spec("triton") is None:
        source = _IMPORT_OF_TRITON.sub(
            lambda found: f"from {__name__} import NO_TRITON as {found[1] or 'triton'}", source
        )
    return source + _REPLACEMENTS.get(name, "")


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        original = self.get_data(path).decode()
        rewritten = rewrite(fullname, original)
        if rewritten == original:
            return super().get_code(fullname)
        return compiled(rewritten, path)


def compiled(source: str, path: str) -> CodeType:
    """Compile a rewritten module, with a cache file beside the one that Python keeps of the original."""
    kept = Path(importlib.util.cache_from_source(path, optimization="liver"))
    version = importlib.util.MAGIC_NUMBER + importlib.util.source_hash(source.encode())
    with contextlib.suppress(OSError):  # no cache file yet
        content = kept.read_bytes()
        if content.startswith(version):
            known: CodeType = marshal.loads(content[len(version) :])
            return known
    code: CodeType = compile(source, path, "exec", dont_inherit=True)
    if not sys.dont_write_bytecode:
        with contextlib.suppress(OSError):  # a read-only folder: compiled each time, as Python does too
            replace_file(kept, version + marshal.dumps(code))
    return code


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(PREFIX):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Install the hook where CUDA is absent, and silence megatron-core's warnings at import; idempotent.

    Raises:
        RuntimeError: CUDA is absent and megatron-core was already imported, unchanged.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    _silence()
    import torch

    if torch.cuda.is_available():
        return
    early = next((name for name in sys.modules if name.startswith(PREFIX)), None)
    if early is not None:
        raise RuntimeError(f"{early} was imported before liver_slurm.engine.megatron.compat")
    sys.meta_path.insert(0, _Finder())


def _silence() -> None:
    """Silence what megatron-core says at each start about itself, which no user can do anything about."""
    # Five times over, that Transformer Engine and Apex are missing, as they are meant to be here, and absl with them.
    warnings.filterwarnings("ignore", message=r"(Transformer Engine and )?Apex (is|are) not installed")
    warnings.filterwarnings("ignore", message=r"absl\.logging is not installed")
    warnings.filterwarnings("ignore", message="full scope is deprecated", module="megatron.core")
    # Of experts that are whole where all else is cut.
    warnings.filterwarnings("ignore", message="`sequence_parallel` is set to `True`, but", module="megatron.core")
    # Backslashes in its docstrings.
    warnings.filterwarnings("ignore", message="invalid escape sequence", module=r".*megatron.core")
    for logger, said in _LOGGED.items():
        logging.getLogger(logger).addFilter(partial(_without, said))


def _without(said: str, record: logging.LogRecord) -> bool:
    return said not in record.getMessage()
