"""Compatibility with megatron-core: an import hook for machines without CUDA, and every private name that is used.

megatron-core names the ``cuda`` device in its sources. Where CUDA is absent an import hook rewrites these names before
its modules are compiled; where CUDA is present its code is not changed. Call :func:`install` before anything of
``megatron.core`` is imported::

    from liver_slurm.engine.megatron import compat

    compat.install()
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import marshal
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from liver_slurm.base.files import replace_file

_PREFIX = "megatron.core."

# The default device, not "cpu", where megatron asks for the current one: a model built under
# ``torch.device("meta")`` must get its buffers there too.
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"torch\.cuda\.current_device\(\)"), "torch.get_default_device()"),
    (re.compile(r"""device=(['"])cuda\1"""), 'device="cpu"'),
    (re.compile(r"""(['"])torch\.cuda\.(\w*Tensor)\1"""), r'"torch.\2"'),
    (re.compile(r"\.cuda\([^()]*(\([^()]*\))?[^()]*\)"), ".cpu()"),
    (re.compile(r"torch\.cuda\.(synchronize|empty_cache)\(\)"), "None"),
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


def rewrite(name: str, source: str) -> str:
    """Rewrite ``source`` of megatron-core's module ``name`` for machines without CUDA."""
    if "cuda" in source:
        for pattern, replacement in _REWRITES:
            source = pattern.sub(replacement, source)
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
        if not fullname.startswith(_PREFIX):
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
    # It warns, five times over, that Transformer Engine and Apex are missing, as they are meant to be here; and of one
    # of its own defaults.
    warnings.filterwarnings("ignore", message=r"(Transformer Engine and )?Apex (is|are) not installed")
    warnings.filterwarnings("ignore", message="full scope is deprecated", module="megatron.core")
    import torch

    if torch.cuda.is_available():
        return
    early = next((name for name in sys.modules if name.startswith(_PREFIX)), None)
    if early is not None:
        raise RuntimeError(f"{early} was imported before liver_slurm.engine.megatron.compat.install()")
    sys.meta_path.insert(0, _Finder())


# ---- private names -------------------------------------------------------------------------------------------------


def index_header() -> bytes:
    """First bytes of an indexed dataset's .idx file."""
    from megatron.core.datasets import indexed_dataset

    header: bytes = indexed_dataset._INDEX_HEADER
    return header


def fix_replica_of_embeddings() -> None:
    """Let a tied embedding's sharded state dict name data parallel replica 0, whatever megatron's globals are.

    It asks them for a replica id, which is not used here; they may be unset, or another world's.
    """
    from megatron.core import parallel_state
    from megatron.core.models.common.language_module import language_module

    class Replica0:
        def __getattr__(self, name: str) -> Any:
            return getattr(parallel_state, name)

        def get_data_parallel_rank(self, *_arguments: Any, **_options: Any) -> int:
            return 0

    language_module.parallel_state = Replica0()


def set_globals(groups: dict[str, Any], ranks: dict[str, list[int] | None]) -> None:
    """Set the globals of ``parallel_state`` that parts of megatron-core still read.

    Args:
        groups, ranks: process groups, and members of groups, by the name of the global, without its underscore.

    Raises:
        RuntimeError: this version of megatron-core has no such global.
    """
    from megatron.core import parallel_state

    state = vars(parallel_state)
    for name, value in (*groups.items(), *ranks.items()):
        if f"_{name}" not in state:
            raise RuntimeError(f"this megatron-core has no parallel_state._{name}; 0.16.1 has been tried")
        state[f"_{name}"] = value
    if parallel_state._GLOBAL_MEMORY_BUFFER is None:
        parallel_state._set_global_memory_buffer()


def distributed_state(optimizer: Any, parameter: Any) -> tuple[Any, dict[str, Any]] | None:
    """A distributed optimizer's share of a parameter; None: it has none on this rank.

    Returns:
        the range (``start``, ``end``) of the flat parameter, and by name the tensors ``param`` (fp32 master),
        ``exp_avg``, ``exp_avg_sq`` of these elements.
    """
    if parameter not in optimizer.model_param_gbuf_map:
        return None
    share = optimizer._get_model_param_range_map(parameter)["param"]
    tensors: dict[str, Any] = optimizer._get_main_param_and_optimizer_states(parameter)
    return share, tensors


def copy_masters_to_weights(optimizer: Any) -> None:
    """Copy an optimizer's fp32 masters to the model's weights, where it keeps them apart."""
    if hasattr(optimizer, "_copy_main_params_to_model_params"):
        optimizer._copy_main_params_to_model_params()


def norm_in_few_launches() -> None:
    """Have megatron-core norm and scale all gradients in one call each, where neither Apex nor Transformer Engine is.

    Its own replacement for their kernels launches two for each parameter.
    """
    import torch
    from megatron.core.optimizer import clip_grads

    if getattr(clip_grads.l2_norm_impl, "__name__", "") != "local_multi_tensor_l2_norm":
        return

    def applier(operation: Any, overflow: Any, tensors: Any, *arguments: Any) -> Any:
        return operation(overflow, tensors, *arguments)

    def l2_norm(_overflow: Any, tensors: Any, _per_tensor: bool) -> tuple[Any, None]:
        return torch.stack(torch._foreach_norm(tensors[0])).norm().view(1), None

    def scale(_overflow: Any, tensors: Any, factor: float) -> None:
        torch._foreach_mul_(tensors[1], factor)  # from and to are the same tensors

    clip_grads.multi_tensor_applier, clip_grads.l2_norm_impl, clip_grads.multi_tensor_scale_impl = (
        applier,
        l2_norm,
        scale,
    )
