"""The architectures headwater knows, as data: one record a family, module paths and nothing else.

A record says where the parts of a decoder are and which module outputs are *writes*, that is, are
added to the residual stream. Nobody has to trust it: the self-proof at load runs the model on
random tokens and refuses a record that does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

NO_INTERFACE = "its attention never calls transformers' attention interface, so they have no hook"
ROUTED = "its MLP routes each token to a few experts, so there is no fixed list of neurons"


@dataclass(frozen=True)
class Family:
    """One architecture: where its parts are and what it lacks.

    Paths of the model start at the causal language model, paths of a layer at the layer.
    """

    name: str
    """What people call it, for example `GPT-2`."""
    model_types: tuple[str, ...]
    """`config.model_type` of the checkpoints (of the text part, in a multimodal model)."""
    example: str
    """A class of this family in transformers."""
    backbone: str = "model"
    """The decoder inside the causal language model."""
    layers: str = "layers"
    """The list of layers, from the backbone."""
    final_norm: str = "norm"
    """The norm after the last layer, from the backbone."""
    attn: str = "self_attn"
    """The attention module of a layer, the one that calls the attention interface."""
    o_proj: str = "self_attn.o_proj"
    """The output projection; its input is the heads' `z`, heads contiguous."""
    attn_write: str = "self_attn"
    """The module whose output attention adds to the residual stream."""
    mid: str | None = "post_attention_layernorm"
    """The module whose input is the residual stream after attention (None: parallel blocks)."""
    mid_is_output: bool = False
    """True if `mid` is a module whose *output* is that residual stream (BLOOM)."""
    mlp_reads: str = "mlp"
    """The module whose input the MLP reads."""
    mlp_norm: str | None = "post_attention_layernorm"
    """The norm of a layer whose output the MLP reads, if there is one in every variant."""
    mlp_write: str = "mlp"
    """The module whose output the MLP adds to the residual stream."""
    pre: str | None = None
    """The up projection of an MLP without a gate."""
    gate: str | None = "mlp.gate_proj"
    """The gate projection of a gated MLP."""
    up: str | None = "mlp.up_proj"
    """What the gate multiplies."""
    fused_gate_up: bool = False
    """True if `gate` and `up` are the two halves of one output."""
    down: str | None = "mlp.down_proj"
    """The down projection; its input is the neurons."""
    mixer: str | None = None
    """The state-space mixer of a layer; then there is neither attention nor MLP."""
    in_proj: str | None = None
    """The mixer's input projection; a part of its output enters the convolution."""
    x_proj: str | None = None
    """What reads the activated convolution beside the scan (None: the mixer only splits it)."""
    ssm_norm: str | None = None
    """The norm between scan and output projection; its input is the heads, contiguous."""
    interface: bool = True
    """Whether attention calls transformers' attention interface (else no q, k, v, pattern)."""
    parallel_if: tuple[str, ...] = ()
    """Attention and MLP read the same residual if any of these config fields is true."""
    write_scale: str | None = None
    """The config field by which writes are multiplied when they are added (Granite)."""
    post_norm: bool = False
    """True if the writes are the outputs of norms after attention and MLP."""
    mutates: tuple[str, ...] = ()
    """Sites whose tensor the model changes in place afterwards."""
    refuses: dict[str, tuple[object, str]] = field(default_factory=dict)
    """Config field -> (value, reason): variants whose blocks do not add up from writes."""
    returns_tuple: bool = False
    """True if a layer returns a tuple (hidden states first)."""
    missing: dict[str, str] = field(default_factory=dict)
    """What this family cannot offer -> why, in words for the error message."""


_LLAMA = Family("Llama", ("llama",), "LlamaForCausalLM")


def _like_llama(name: str, model_types: tuple[str, ...], example: str, **changes: Any) -> Family:
    return replace(_LLAMA, name=name, model_types=model_types, example=example, **changes)


_POST_NORM: dict[str, Any] = {
    "attn_write": "post_attention_layernorm",
    "mlp_write": "post_feedforward_layernorm",
    "post_norm": True,
}
_PRE_AND_POST_NORM: dict[str, Any] = {
    **_POST_NORM,
    "mid": "pre_feedforward_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
}
_ROUTED_MLP: dict[str, Any] = {
    "gate": None,
    "up": None,
    "down": None,
    "missing": {"neurons": ROUTED},
}
_UNGATED: dict[str, Any] = {"gate": None, "up": None}
_NO_INTERFACE: dict[str, Any] = {
    "interface": False,
    "returns_tuple": True,
    "missing": {"q/k/v/pattern": NO_INTERFACE},
}

FAMILIES: tuple[Family, ...] = (
    Family(
        "GPT-2",
        ("gpt2",),
        "GPT2LMHeadModel",
        backbone="transformer",
        layers="h",
        final_norm="ln_f",
        attn="attn",
        o_proj="attn.c_proj",
        attn_write="attn",
        mid="ln_2",
        mlp_norm="ln_2",
        **_UNGATED,
        pre="mlp.c_fc",
        down="mlp.c_proj",
        refuses={"add_cross_attention": (True, "its blocks also attend to an encoder")},
    ),
    Family(
        "GPT-NeoX",
        ("gpt_neox",),
        "GPTNeoXForCausalLM",
        backbone="gpt_neox",
        final_norm="final_layer_norm",
        attn="attention",
        o_proj="attention.dense",
        attn_write="attention",
        **_UNGATED,
        pre="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        parallel_if=("use_parallel_residual",),
    ),
    _LLAMA,
    _like_llama("Mistral", ("mistral",), "MistralForCausalLM"),
    _like_llama("Qwen2", ("qwen2",), "Qwen2ForCausalLM"),
    _like_llama("Qwen3", ("qwen3",), "Qwen3ForCausalLM"),
    _like_llama("Gemma", ("gemma",), "GemmaForCausalLM"),
    _like_llama("Gemma 2", ("gemma2",), "Gemma2ForCausalLM", **_PRE_AND_POST_NORM),
    _like_llama("Gemma 3", ("gemma3_text",), "Gemma3ForCausalLM", **_PRE_AND_POST_NORM),
    _like_llama("OLMo 2", ("olmo2",), "Olmo2ForCausalLM", **_POST_NORM, mid="mlp", mlp_norm=None),
    _like_llama(
        "Phi-3",
        ("phi3",),
        "Phi3ForCausalLM",
        gate="mlp.gate_up_proj",
        up="mlp.gate_up_proj",
        fused_gate_up=True,
    ),
    _like_llama(
        "Phi",
        ("phi",),
        "PhiForCausalLM",
        final_norm="final_layernorm",
        o_proj="self_attn.dense",
        mid=None,
        mlp_norm="input_layernorm",
        **_UNGATED,
        pre="mlp.fc1",
        down="mlp.fc2",
    ),
    Family(
        "OPT",
        ("opt",),
        "OPTForCausalLM",
        backbone="model.decoder",
        final_norm="final_layer_norm",
        o_proj="self_attn.out_proj",
        mid="final_layer_norm",
        mlp_reads="fc1",
        mlp_norm="final_layer_norm",
        mlp_write="fc2",
        **_UNGATED,
        pre="fc1",
        down="fc2",
        refuses={
            "do_layer_norm_before": (False, "its layers normalize the residual stream itself")
        },
    ),
    _like_llama("Granite", ("granite",), "GraniteForCausalLM", write_scale="residual_multiplier"),
    _like_llama("Cohere", ("cohere",), "CohereForCausalLM", mid=None, mlp_norm="input_layernorm"),
    _like_llama(
        "StableLM", ("stablelm",), "StableLmForCausalLM", parallel_if=("use_parallel_residual",)
    ),
    _like_llama("Mixtral", ("mixtral",), "MixtralForCausalLM", **_ROUTED_MLP),
    _like_llama("gpt-oss", ("gpt_oss",), "GptOssForCausalLM", **_ROUTED_MLP),
    Family(
        "GPT-J",
        ("gptj",),
        "GPTJForCausalLM",
        backbone="transformer",
        layers="h",
        final_norm="ln_f",
        attn="attn",
        o_proj="attn.out_proj",
        attn_write="attn",
        mid=None,
        mlp_norm="ln_1",
        **_UNGATED,
        pre="mlp.fc_in",
        down="mlp.fc_out",
        **_NO_INTERFACE,
    ),
    Family(
        "BLOOM",
        ("bloom",),
        "BloomForCausalLM",
        backbone="transformer",
        layers="h",
        final_norm="ln_f",
        attn="self_attention",
        o_proj="self_attention.dense",
        # the modules add the residual themselves: only the projections' outputs are writes
        attn_write="self_attention.dense",
        mid="self_attention",
        mid_is_output=True,
        mlp_write="mlp.dense_4h_to_h",
        **_UNGATED,
        pre="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        **_NO_INTERFACE,
        refuses={
            "apply_residual_connection_post_layernorm": (
                True,
                "its layers add to the normed residual stream",
            )
        },
    ),
    Family(
        "Falcon",
        ("falcon",),
        "FalconForCausalLM",
        backbone="transformer",
        layers="h",
        final_norm="ln_f",
        attn="self_attention",
        o_proj="self_attention.dense",
        attn_write="self_attention",
        **_UNGATED,
        pre="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        parallel_if=("parallel_attn", "new_decoder_architecture"),
        mlp_norm=None,  # another one in each variant
        mutates=("mlp.out",),  # `mlp_output += attention_output`
        **_NO_INTERFACE,
    ),
    Family(
        "GPT-Neo",
        ("gpt_neo",),
        "GPTNeoForCausalLM",
        backbone="transformer",
        layers="h",
        final_norm="ln_f",
        attn="attn.attention",
        o_proj="attn.attention.out_proj",
        attn_write="attn",
        mid="ln_2",
        mlp_norm="ln_2",
        **_UNGATED,
        pre="mlp.c_fc",
        down="mlp.c_proj",
        **_NO_INTERFACE,
    ),
    Family(
        "Mamba",
        ("mamba",),
        "MambaForCausalLM",
        backbone="backbone",
        final_norm="norm_f",
        mixer="mixer",
        o_proj="mixer.out_proj",
        in_proj="mixer.in_proj",
        x_proj="mixer.x_proj",
        missing={
            "attention": "its layers hold a state-space mixer: no heads, no attention, no MLP",
            "state-space heads": "each channel has a state of its own, so it has no heads: use "
            "mixer.post",
        },
    ),
    Family(
        "Mamba-2",
        ("mamba2",),
        "Mamba2ForCausalLM",
        backbone="backbone",
        final_norm="norm_f",
        mixer="mixer",
        o_proj="mixer.out_proj",
        in_proj="mixer.in_proj",
        ssm_norm="mixer.norm",
        missing={
            "attention": "its layers hold a state-space mixer: no attention, no MLP, and its heads "
            "(mixer.y) are mixed by a norm before the output projection"
        },
    ),
)
"""Every family, in the order `headwater models` prints them."""

BY_MODEL_TYPE: dict[str, Family] = {
    kind: family for family in FAMILIES for kind in family.model_types
}
"""`config.model_type` -> family."""
