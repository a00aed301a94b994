"""One tiny random model of every family: two layers, dimensions of a dozen.

Norm weights and biases are randomized: at their initial ones and zeros many mistakes are invisible.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import transformers
from torch import nn

VOCAB = 61


def _llama_like(name: str, config_name: str = "", **fields: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        config = getattr(transformers, config_name or f"{name}Config")(
            **{
                "vocab_size": VOCAB,
                "hidden_size": 24,
                "intermediate_size": 40,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 64,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "tie_word_embeddings": False,
                **fields,
            }
        )
        return getattr(transformers, f"{name}ForCausalLM")(config)

    return build


def _own(config: str, model: str, **fields: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        settings = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        return getattr(transformers, model)(getattr(transformers, config)(**settings, **fields))

    return build


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "GPT-2": _own("GPT2Config", "GPT2LMHeadModel", n_embd=24, n_layer=2, n_head=4, n_positions=64),
    "GPT-NeoX": _own(
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=64,
    ),
    "GPT-NeoX sequential": _own(
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=64,
        use_parallel_residual=False,
    ),
    "Llama": _llama_like("Llama"),
    "Mistral": _llama_like("Mistral", sliding_window=4),
    "Qwen2": _llama_like("Qwen2"),
    "Qwen3": _llama_like("Qwen3", head_dim=8),
    "Gemma": _llama_like("Gemma", head_dim=8),
    "Gemma 2": _llama_like("Gemma2", head_dim=8, sliding_window=4, query_pre_attn_scalar=8),
    "Gemma 3": _llama_like(
        "Gemma3",
        "Gemma3TextConfig",
        head_dim=8,
        sliding_window=4,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "OLMo 2": _llama_like("Olmo2"),
    "Phi-3": _llama_like("Phi3"),
    "Phi": _llama_like("Phi", hidden_size=32),
    "OPT": _own(
        "OPTConfig",
        "OPTForCausalLM",
        hidden_size=24,
        word_embed_proj_dim=24,
        ffn_dim=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "Granite": _llama_like(
        "Granite",
        residual_multiplier=0.22,
        embedding_multiplier=3.0,
        logits_scaling=2.0,
        attention_multiplier=0.4,
    ),
    "Cohere": _llama_like("Cohere", logit_scale=0.25),
    "StableLM": _llama_like("StableLm", hidden_size=32, use_qkv_bias=True),
    "StableLM parallel": _llama_like(
        "StableLm", hidden_size=32, use_parallel_residual=True, qk_layernorm=True
    ),
    "Mixtral": _llama_like("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "gpt-oss": _llama_like(
        "GptOss",
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=4,
    ),
    "GPT-J": _own(
        "GPTJConfig",
        "GPTJForCausalLM",
        n_embd=24,
        n_layer=2,
        n_head=4,
        rotary_dim=4,
        n_positions=64,
        tie_word_embeddings=False,
    ),
    "BLOOM": _own("BloomConfig", "BloomForCausalLM", hidden_size=24, n_layer=2, n_head=4),
    "Falcon": _own(
        "FalconConfig",
        "FalconForCausalLM",
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        bias=True,
    ),
    "Falcon sequential": _own(
        "FalconConfig",
        "FalconForCausalLM",
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        alibi=True,
        bias=True,
        multi_query=False,
        parallel_attn=False,
    ),
    "Falcon new": _own(
        "FalconConfig",
        "FalconForCausalLM",
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        new_decoder_architecture=True,
    ),
    "GPT-Neo": _own(
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        hidden_size=24,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=64,
    ),
    "Mamba": _own(
        "MambaConfig",
        "MambaForCausalLM",
        hidden_size=24,
        num_hidden_layers=2,
        state_size=4,
        time_step_rank=2,
    ),
    "Mamba-2": _own(
        "Mamba2Config",
        "Mamba2ForCausalLM",
        hidden_size=24,
        num_hidden_layers=2,
        state_size=4,
        num_heads=6,
        head_dim=8,
        n_groups=2,
        chunk_size=8,
    ),
}
"""Every family of the table, some in two variants: builder of an untouched model."""


def build(
    name: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
) -> nn.Module:
    """Build the tiny model `name` in evaluation mode, with every parameter away from its default.

    Args:
        name: A key of `BUILDERS`.
        seed: Of the weights.
        dtype: Of the weights.
        attention: The implementation, for example `"eager"`; by default transformers' choice.

    Returns:
        The Hugging Face causal language model.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = BUILDERS[name]()
        with torch.no_grad():
            for path, parameter in module.named_parameters():
                noise = torch.randn_like(parameter)
                if parameter.ndim > 1 and "A_log" not in path:
                    # larger than the usual 0.02: attention patterns and gates must matter
                    parameter.copy_(noise * 0.35)
                else:
                    parameter.add_(noise * 0.2)
    if attention is not None:
        module.config._attn_implementation = attention
    return module.to(dtype).eval()


@functools.cache
def shared(name: str) -> nn.Module:
    """The float32 model `name`, built once; tests must leave it as it is."""
    return build(name)


def tokens(batch: int = 2, positions: int = 7, *, seed: int = 1) -> torch.Tensor:
    """Random token ids without the special ones, [batch, positions]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, positions), generator=generator)
