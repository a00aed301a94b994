"""The table of architectures and how a model is resolved into an adapter."""

from __future__ import annotations

import functools

import pytest
import torch
import transformers
from torch import nn

import headwater as hw
import tiny_models
from headwater.architectures.adapter import family_of, resolve
from headwater.architectures.norms import mlp_norm
from headwater.architectures.overview import models_table, site_rows
from headwater.architectures.table import FAMILIES
from headwater.architectures.widths import width
from headwater.errors import UnavailableSiteError, UnknownSiteError, UnsupportedModelError
from headwater.sites import LAYER_NAMES, Site
from headwater.taps import keeper

every_family = pytest.mark.parametrize("family", list(tiny_models.BUILDERS))


def adapter_of(family: str):
    return resolve(tiny_models.shared(family))


def test_the_table_has_the_families_the_documentation_promises():
    promised = (
        "GPT-2, GPT-NeoX, Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma 2, Gemma 3, OLMo 2, Phi-3, "
        "Phi, OPT, Granite, Cohere, StableLM, Mixtral, gpt-oss, GPT-J, BLOOM, Falcon, GPT-Neo, "
        "Mamba, Mamba-2"
    )
    assert set(promised.split(", ")) <= {family.name for family in FAMILIES}


def test_every_family_of_the_table_has_a_tiny_model_in_these_tests():
    built = {family_of(tiny_models.shared(name).config).name for name in tiny_models.BUILDERS}
    assert built == {family.name for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_example_class_of_a_family_exists(family):
    assert hasattr(transformers, family.example)


@every_family
def test_sizes_are_those_of_the_configuration(family):
    module, adapter = tiny_models.shared(family), adapter_of(family)
    assert adapter.n_layers == module.config.num_hidden_layers
    assert adapter.d_model == module.config.hidden_size
    assert adapter.vocab == tiny_models.VOCAB
    if adapter.n_heads is not None:
        assert adapter.n_heads == 4


def test_grouped_heads_and_explicit_head_sizes_are_read():
    adapter = adapter_of("Qwen3")
    assert (adapter.n_heads, adapter.n_kv_heads, adapter.d_head, adapter.d_mlp) == (4, 2, 8, 40)


@every_family
def test_a_layer_site_is_either_offered_or_refused_with_a_reason(family):
    adapter = adapter_of(family)
    for name in LAYER_NAMES:
        offered = Site(1, name) in adapter.sites()
        assert offered != (name in adapter.missing)
        if not offered:
            with pytest.raises(UnavailableSiteError, match=r"^no 'layers\.1\."):
                adapter.point(Site(1, name))


def test_what_a_family_lacks_is_refused_with_the_reason_and_what_it_offers():
    with pytest.raises(UnavailableSiteError) as caught:
        adapter_of("Mixtral").point(Site(1, "mlp.post"))
    assert str(caught.value) == (
        "no 'layers.1.mlp.post' in Mixtral: its MLP routes each token to a few experts, so there "
        "is no fixed list of neurons.\nA layer offers: resid_pre, attn.q, attn.k, attn.v, "
        "attn.pattern, attn.z, attn.out, resid_mid, mlp.in, mlp.out, resid_post."
    )


@pytest.mark.parametrize(
    ("family", "name", "reason"),
    [
        ("Falcon", "attn.q", "never calls transformers' attention interface"),
        ("Mamba", "attn.z", "state-space mixer"),
        ("Phi", "resid_mid", "read the same residual"),
        ("GPT-NeoX", "resid_mid", "read the same residual"),
        ("Llama", "mlp.pre", "use mlp.gate and mlp.up"),
        ("GPT-2", "mlp.gate", "use mlp.pre"),
        ("GPT-2", "mixer.out", "no mixer"),
        ("Mamba", "mlp.in", "no heads, no attention, no MLP"),
        ("Mamba-2", "mlp.in", "no attention, no MLP"),
    ],
)
def test_reasons_name_the_cause(family, name, reason):
    assert reason in adapter_of(family).missing[name]


@functools.cache
def wrapped(family: str) -> hw.Model:
    return hw.wrap(tiny_models.build(family, dtype=torch.float64))


def seen_at(family: str, names: list[str], **changes) -> dict[str, torch.Tensor]:
    """Values in the last layer of a run in which some sites of it are replaced."""
    kept: dict[str, torch.Tensor] = {}
    taps = {Site(1, name): keeper(kept, name) for name in names}
    taps |= {Site(1, name.replace("_", ".")): change for name, change in changes.items()}
    with torch.no_grad():
        wrapped(family).forward(tiny_models.tokens(), taps=taps)
    return kept


with_mlp = pytest.mark.parametrize(
    "family", [name for name in tiny_models.BUILDERS if "Mamba" not in name]
)


@with_mlp
def test_all_that_the_mlp_reads_comes_past_its_input(family):
    before = seen_at(family, ["mlp.in", "attn.out", "mlp.out"])
    assert before["mlp.in"].shape == (2, 7, adapter_of(family).d_model)
    after = seen_at(family, ["attn.out", "mlp.out"], mlp_in=torch.zeros_like)
    assert torch.equal(after["attn.out"], before["attn.out"])
    # without an input every position gets the same
    assert torch.equal(after["mlp.out"], after["mlp.out"][:1, :1].expand(2, 7, -1))
    assert not torch.allclose(after["mlp.out"], before["mlp.out"])


def normalized(residual: torch.Tensor, family: str, eps: float) -> torch.Tensor:
    """The residual as a norm divides it, before any weight."""
    layer_norms = ("GPT-2", "GPT-NeoX", "Phi", "OPT", "Cohere", "StableLM", "GPT-J", "BLOOM")
    if family.removesuffix(" sequential") in (*layer_norms, "GPT-Neo"):
        residual = residual - residual.mean(-1, keepdim=True)
    return residual / (residual.pow(2).mean(-1, keepdim=True) + eps).sqrt()


UNKNOWN_NORM = ["OLMo 2", "StableLM parallel", "Falcon", "Falcon sequential", "Falcon new"]


@with_mlp
def test_the_norm_before_the_mlp_is_known_by_its_factor_and_shift(family):
    adapter = adapter_of(family)
    if family in UNKNOWN_NORM:
        with pytest.raises(UnavailableSiteError, match="is known whose output the MLP reads"):
            mlp_norm(adapter, 1)
        return
    factor, shift = mlp_norm(adapter, 1)
    name = "resid_pre" if adapter.parallel else "resid_mid"
    seen = seen_at(family, [name, "mlp.in"])
    norm = getattr(adapter.layers[1], str(adapter.family.mlp_norm))
    eps = getattr(norm, "variance_epsilon", None) or norm.eps
    expected = normalized(seen[name], family, eps) * factor + shift
    torch.testing.assert_close(seen["mlp.in"], expected, rtol=1e-9, atol=1e-10)


@every_family
def test_widths_are_those_of_the_values_at_the_sites(family):
    adapter = adapter_of(family)
    inner = [site for site in adapter.sites() if site.layer == 1 and site.name != "attn.pattern"]
    for name, value in seen_at(family, [site.name for site in inner]).items():
        assert width(adapter, Site(1, name)) == value[0, 0].numel()
    assert width(adapter, Site(None, "logits")) == tiny_models.VOCAB
    assert width(adapter, Site(None, "embed")) == adapter.d_model


def test_a_pattern_has_no_width():
    assert width(adapter_of("Llama"), Site(1, "attn.pattern")) is None


def test_block_variants_are_told_apart_by_their_configuration():
    assert adapter_of("GPT-NeoX").parallel
    assert not adapter_of("GPT-NeoX sequential").parallel
    assert adapter_of("Falcon new").parallel
    assert "resid_mid" not in adapter_of("Falcon sequential").missing


def test_the_multiplier_of_granite_is_known():
    assert adapter_of("Granite").write_scale == 0.22
    assert adapter_of("Llama").write_scale == 1.0


def test_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(UnknownSiteError) as caught:
        adapter_of("Llama").point(Site(9, "attn.z"))
    assert str(caught.value) == (
        "no site 'layers.9.attn.z': LlamaForCausalLM has 2 layers, the last is 'layers.1.attn.z'."
    )


def test_variants_whose_blocks_are_no_sum_of_writes_are_refused():
    config = transformers.OPTConfig(
        vocab_size=9,
        hidden_size=8,
        ffn_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        do_layer_norm_before=False,
        word_embed_proj_dim=8,
    )
    with pytest.raises(UnsupportedModelError) as caught:
        resolve(transformers.OPTForCausalLM(config))
    assert str(caught.value) == (
        "OPTForCausalLM with do_layer_norm_before=False: its layers normalize the residual "
        "stream itself, so its residual stream is not a sum of writes. "
        "`headwater models` lists what is supported."
    )


def test_an_unknown_family_is_refused_with_the_closest_one():
    config = transformers.XGLMConfig(
        vocab_size=9, d_model=8, num_layers=1, attention_heads=2, ffn_dim=8
    )
    with pytest.raises(UnsupportedModelError) as caught:
        resolve(transformers.XGLMForCausalLM(config))
    message = str(caught.value)
    assert message.startswith("XGLMForCausalLM (model_type 'xglm') is not in headwater's table")
    assert "the closest family is" in message
    assert message.endswith("`headwater models` lists the families that can be attributed.")


def test_a_model_without_an_unembedding_is_refused():
    config = tiny_models.shared("Llama").config
    module = transformers.LlamaForSequenceClassification(config)
    with pytest.raises(UnsupportedModelError, match="no unembedding"):
        resolve(module)


def test_the_models_table_says_what_each_family_offers():
    rows = {row["family"]: row for row in models_table()}
    assert set(rows) == {family.name for family in FAMILIES}
    assert rows["Llama"] == {
        "family": "Llama",
        "class": "LlamaForCausalLM",
        "heads": "yes",
        "queries, keys, values": "yes",
        "patterns": "yes",
        "MLPs": "yes",
        "neurons": "yes",
        "refused": "",
    }
    assert rows["Mixtral"]["neurons"] == "no"
    assert rows["Mixtral"]["refused"].startswith("neurons: its MLP routes")
    assert rows["GPT-J"]["refused"].startswith("queries, keys, values, patterns: its attention")
    assert rows["Mamba"]["heads"] == rows["Mamba"]["MLPs"] == "no"
    assert "do_layer_norm_before=False" in rows["OPT"]["refused"]


def test_site_rows_say_shapes_in_words_and_why_a_site_is_missing():
    rows = {row["site"]: row for row in site_rows(adapter_of("Qwen3"))}
    assert rows["layers.0-1.attn.k"]["shape"] == "[batch, pos, 2 key/value heads, 8 d_head]"
    assert rows["logits"]["shape"] == "[batch, pos, 61 tokens]"
    assert rows["layers.0-1.mlp.pre"] == {
        "site": "layers.0-1.mlp.pre",
        "shape": "",
        "meaning": "no: its MLP is gated: use mlp.gate and mlp.up",
    }


class _Quantized(nn.Module):
    """A projection as quantization libraries leave it: no float weight, sizes as attributes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.detach().abs().max() / 127
        self.register_buffer("codes", (linear.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states @ (self.codes.to(hidden_states.dtype) * self.scale).T


def quantized_llama() -> nn.Module:
    module = tiny_models.build("Llama")
    for layer in module.model.layers:
        layer.self_attn.o_proj = _Quantized(layer.self_attn.o_proj)
        layer.mlp.down_proj = _Quantized(layer.mlp.down_proj)
    return module


def test_sizes_are_read_from_projections_without_float_weights():
    assert resolve(quantized_llama()).d_mlp == 40
