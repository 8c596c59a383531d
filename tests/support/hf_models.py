"""Tiny models of Hugging Face's transformers with random weights, one of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCABULARY, SEQUENCE = 300, 32
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {**_LLAMA, "tie_word_embeddings": False, "num_key_value_heads": 8}),
    "llama3": ("Llama", {**_LLAMA, "tie_word_embeddings": True, "rope_parameters": _LLAMA3, "rms_norm_eps": 1e-5}),
    "llama-biases": ("Llama", {**_LLAMA, "attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "mistral": ("Mistral", {**_LLAMA, "tie_word_embeddings": False, "sliding_window": 48}),
    "qwen2": ("Qwen2", {**_LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3", {**_LLAMA, "tie_word_embeddings": False, "head_dim": 16}),
    "mixtral": (
        "Mixtral",
        {**_LLAMA, "tie_word_embeddings": False, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen2-moe": (
        "Qwen2Moe",
        {**_LLAMA, **_EXPERTS, "tie_word_embeddings": True, "shared_expert_intermediate_size": 80},
    ),
    "qwen3-moe": (
        "Qwen3Moe",
        {**_LLAMA, **_EXPERTS, "tie_word_embeddings": False, "head_dim": 16, "norm_topk_prob": True},
    ),
    "gpt2": ("GPT2", {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 8, "n_positions": 48}),
    "gpt2-untied": (
        "GPT2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 32,
            "n_inner": 96,
            "tie_word_embeddings": False,
            "activation_function": "relu",
        },
    ),
}
"""Names of configuration classes, and what is told them."""
EXPERTS = ("mixtral", "qwen2-moe", "qwen3-moe")
"""Those with experts."""


def save_model(name: str, folder: Path, *, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Any:
    """Save one of them as its users would find it; returns the model, in evaluation."""
    import transformers

    kind, settings = MODELS[name]
    torch.manual_seed(7)
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too: ones and zeros would hide that two are exchanged
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model = model.to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    return model
