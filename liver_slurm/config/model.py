"""Section of a job file about the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from liver_slurm.config.types import Count, Decay, Flag, FunctionName, NonNegative, PathText, Positive, Share


@dataclass(frozen=True)
class ModelSection:
    """The GPT to train."""

    num_layers: Count = 0
    """Transformer layers."""
    hidden_size: Count = 0
    """Width of the residual stream."""
    num_attention_heads: Count = 0
    """Attention heads. The tp of each layout must divide them."""
    ffn_hidden_size: Count | None = None
    """Width of the MLP. Default: 4 × hidden_size."""
    num_query_groups: Count | None = None
    """Key/value heads of grouped-query attention. Default: num_attention_heads."""
    kv_channels: Count | None = None
    """Width of one head. Default: hidden_size / num_attention_heads."""
    vocab_size: Count | None = None
    """Tokens in the vocabulary, padded to a multiple of 128; at least the tokenizer's, which is the default."""
    share_embeddings_and_output_weights: Flag = True
    """Tie the output layer to the input embedding."""
    normalization: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    """Normalization layer."""
    layernorm_epsilon: Positive = 1e-5
    """Epsilon of the normalization layers."""
    gated_linear_unit: Flag = True
    """Gate the MLP; with activation_func silu that is SwiGLU."""
    activation_func: Literal["silu", "gelu", "gelu-tanh", "relu"] = "silu"
    """Activation function of the MLP; ``gelu-tanh`` is GELU's approximation by a hyperbolic tangent."""
    add_bias_linear: Flag = False
    """Give the linear layers biases."""
    add_qkv_bias: Flag = False
    """Give the fused query/key/value projection a bias, and no other layer."""
    qk_layernorm: Flag = False
    """Normalize each head's queries and keys, before positions are applied."""
    position_embedding_type: Literal["rope", "learned_absolute"] = "rope"
    """Positions by rotation of queries and keys, or by a table of vectors that are learned."""
    max_position_embeddings: Count | None = None
    """Rows of that table. Default: train.seq_length."""
    rotary_base: Count = 10000
    """Base of the rotary position embedding's frequencies."""
    rotary_percent: Share = 1.0
    """Share of each head's width that the position embedding rotates."""
    rope_scaling_factor: Positive | None = None
    """Factor by which Llama 3.1's scaling stretches the slow frequencies of the position embedding, for contexts beyond
    8192 tokens. Default: no scaling."""
    num_moe_experts: Count | None = None
    """Experts of each layer, which take the place of its MLP. Default: there is one MLP, for all tokens."""
    moe_router_topk: Count = 2
    """Experts that each token goes to."""
    moe_router_pre_softmax: Flag = False
    """Weigh experts by a softmax over all of them, and not over the chosen ones alone."""
    moe_router_score_function: Literal["softmax", "sigmoid"] = "softmax"
    """What makes experts' weights of the router's logits; ``sigmoid``: each by itself, then the chosen ones relative to
    their sum."""
    moe_router_enable_expert_bias: Flag = False
    """Balance the experts' load without a loss: a bias for each expert is added to its score when a token chooses, not
    to its weight, and after each step rises where the load was below the mean, and falls where it was above."""
    moe_router_bias_update_rate: Positive = 0.001
    """How far a step moves these biases."""
    moe_ffn_hidden_size: Count | None = None
    """Width of one expert. Default: ffn_hidden_size."""
    moe_aux_loss_coeff: NonNegative = 0.0
    """Weight of the loss that balances the experts' load in each microbatch. The loss in the metrics is without it."""
    moe_z_loss_coeff: NonNegative = 0.0
    """Weight of the router's z-loss, which keeps its logits small. The loss in the metrics is without it."""
    moe_shared_expert_intermediate_size: Count | None = None
    """Width of the shared expert that all tokens go to, besides those that they choose. Default: there is none."""
    moe_shared_expert_gate: Flag = False
    """Weigh the shared expert by a gate, token by token."""
    hidden_dropout: Decay = 0.0
    """Share of the elements of the embedding and of what each layer's halves add to it that a training step drops. By
    seed, sample, layer and place alone, so that no change of layout changes what is dropped."""
    attention_dropout: Decay = 0.0
    """Share of the attention weights that a training step drops, likewise by seed, sample, layer, head and places. It
    takes the place of fused attention: memory and time with the square of the sequence."""
    init_method_std: Positive = 0.02
    """Standard deviation of the initial weights."""
    from_hf: PathText | None = None
    """Folder of a Hugging Face model whose config.json gives the keys of this section; those that are written next to
    it must say the same. Its tokenizer.json is the default of data.tokenizer. For its weights see train.start_from."""
    provider: FunctionName | None = None
    """Function ``package.module:function`` that builds your own model of the keys above. See docs/models.md."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of megatron-core's TransformerConfig, passed on unchanged."""

    @property
    def query_groups(self) -> int:
        """Groups of query heads, each with a key and value head of its own; without grouping one for each head."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def ffn_width(self) -> int:
        """Width inside a layer's MLP, where experts do not take its place."""
        return self.ffn_hidden_size or 4 * self.hidden_size
