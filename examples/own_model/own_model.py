"""A model and data of one's own: the functions that job.toml names as ``own_model:model`` and ``own_model:data``.

The model is megatron-core's GPT with two changes: squared ReLU in the MLP (So et al. 2021), and a learnt gain for each
channel of what an MLP adds to the residual stream (LayerScale, Touvron et al. 2021). The data are arithmetic
progressions modulo the vocabulary, made on the fly: their next term can be learnt from the terms before.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core.activations import squared_relu
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint


class ScaledMLP(MLP):
    """megatron-core's MLP, its output scaled by a gain for each channel."""

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        # On the meta device: values come later, by name. A vector starts at one, unless its name ends with "bias".
        self.gain = torch.nn.Parameter(torch.empty(config.hidden_size, dtype=config.params_dtype))

    def forward(self, hidden_states: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Output and bias, as MLP returns them. Every tensor parallel rank has the whole output, so equal gradients."""
        output, bias = super().forward(hidden_states, **options)
        return output * self.gain, bias

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """MLP's entries, and the gain's: whole on each tensor parallel rank, one of its layer by ``sharded_offsets``.

        A model with a parameter that is missing here is refused: that parameter could not be moved.
        """
        entries = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        entries |= make_sharded_tensors_for_checkpoint(
            {"gain": self.gain},
            prefix,
            sharded_offsets=sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        return entries


def model(*, pre_process: bool, post_process: bool, config: Any, pg_collection: Any, job: Any) -> GPTModel:
    """Return one rank's part of the model; ``model.provider`` of the job file.

    Args:
        pre_process: the first pipeline stage is built: it has the embedding.
        post_process: the last one: it has the output layer and returns losses.
        config: megatron-core's TransformerConfig for the layout, from the job file's [model]. It may be changed in
            place.
        pg_collection: the world's process groups. Modules must be handed these: megatron-core's global ones belong to
            the world that trains, which is another.
        job: the whole JobConfig.
    """
    config.activation_func = squared_relu
    spec = get_gpt_layer_local_spec(normalization=config.normalization)
    mlp = spec.submodules.mlp
    if isinstance(mlp, partial):  # megatron-core 0.18 and newer: what builds it
        spec.submodules.mlp = partial(ScaledMLP.as_mlp_submodule, **mlp.keywords)
    else:
        mlp.module = ScaledMLP
        # A TransformerLayer hands its group to a plain MLP only, and warns of any other; so it is handed over here.
        mlp.params = {"tp_group": pg_collection.tp, "ffn_hidden_size": config.ffn_hidden_size}
    return GPTModel(
        config,
        spec,
        vocab_size=job.model.vocab_size,
        max_sequence_length=job.train.seq_length,
        pre_process=pre_process,
        post_process=post_process,
        parallel_output=True,
        share_embeddings_and_output_weights=job.model.share_embeddings_and_output_weights,
        position_embedding_type="rope",
        pg_collection=pg_collection,
    )


class Progressions:
    """Sample n is ``start + stride * t`` modulo the vocabulary for t = 0, 1, …; start and stride follow from n."""

    STRIDES = 4

    def __init__(self, vocabulary: int, seq_length: int, seed: int) -> None:
        self._vocabulary, self._seq_length, self._seed = vocabulary, seq_length, seed

    def __len__(self) -> int:
        """Return the samples of one epoch: as many as there are progressions."""
        return self._vocabulary * self.STRIDES

    def batch(self, first: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the run's samples ``first`` to ``first + count - 1``: int64 [count, seq_length + 1].

        A function of the arguments alone: each rank asks for its part of a step, in whatever layout.
        """
        return np.stack([self._sample(number) for number in range(first, first + count)])

    def _sample(self, number: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        random = np.random.default_rng([self._seed, number])
        start, stride = random.integers(self._vocabulary), random.integers(1, self.STRIDES + 1)
        terms: np.ndarray[Any, np.dtype[np.int64]] = start + stride * np.arange(self._seq_length + 1, dtype=np.int64)
        return terms % self._vocabulary


def data(job: Any) -> Progressions:
    """Return the run's samples; ``data.provider`` of the job file."""
    return Progressions(job.model.vocab_size, job.train.seq_length, job.train.seed)
