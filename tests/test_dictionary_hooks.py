"""Names of places in other libraries, as sites."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headwater.dictionaries.dictionary import Dictionary, Origin
from headwater.dictionaries.hooks import (
    hook_of,
    is_module_in_norm,
    named_by,
    read_site,
    site_of,
    written_site,
)
from headwater.errors import DictionaryError
from headwater.sites import LAYER_NAMES, Site

NAMES = {
    # TransformerLens and SAELens
    "hook_embed": "embed",
    "blocks.0.hook_resid_pre": "embed",
    "blocks.4.hook_resid_pre": "layers.3.resid_post",
    "blocks.3.hook_resid_mid": "layers.3.resid_mid",
    "blocks.3.hook_resid_post": "layers.3.resid_post",
    "blocks.11.hook_attn_out": "layers.11.attn.out",
    "blocks.3.hook_mlp_out": "layers.3.mlp.out",
    "blocks.3.attn.hook_z": "layers.3.attn.z",
    "blocks.3.mlp.hook_post": "layers.3.mlp.post",
    "blocks.3.ln2.hook_normalized": "layers.3.mlp.in",
    "blocks.3.mlp.hook_in": "layers.3.mlp.in",
    # TransformerLens 3 reports these for some of the above
    "blocks.0.hook_in": "embed",
    "blocks.3.hook_out": "layers.3.resid_post",
    "blocks.3.attn.hook_out": "layers.3.attn.out",
    "blocks.3.mlp.hook_out": "layers.3.mlp.out",
    # dictionary_learning and feature-circuits
    "embed": "embed",
    "attn_out_layer3": "layers.3.attn.out",
    "mlp_out_layer12": "layers.12.mlp.out",
    "resid_out_layer3": "layers.3.resid_post",
    "resid_post_layer_3": "layers.3.resid_post",
    "resid_pre_layer_3": "layers.2.resid_post",
    "attention_out_layer_3": "layers.3.attn.out",
    "resid_5": "layers.5.resid_post",
    "attn_0": "layers.0.attn.out",
    # paths of modules
    "gpt_neox.layers.3": "layers.3.resid_post",
    "gpt_neox.layers.3.output": "layers.3.resid_post",
    "gpt_neox.layers.3.input": "layers.2.resid_post",
    "gpt_neox.layers.0.input": "embed",
    "gpt_neox.layers.3.attention": "layers.3.attn.out",
    "model.layers.3.mlp": "layers.3.mlp.out",
    "model.layers.3.mlp.input": "layers.3.mlp.in",
    "transformer.h.3.attn": "layers.3.attn.out",
    "transformer.h.3.ln_2.output": "layers.3.mlp.in",
    "model.layers.45.pre_feedforward_layernorm.output": "layers.45.mlp.in",
    "model.layers.45.post_feedforward_layernorm": "layers.45.mlp.out",
    "model.layers.3.self_attn.o_proj.input": "layers.3.attn.z",
    "layers.10": "layers.10.resid_post",
    "layers.10.mlp": "layers.10.mlp.out",
    "h.7": "layers.7.resid_post",
    "gpt_neox.embed_in": "embed",
    # headwater
    "layers.3.mlp.out": "layers.3.mlp.out",
    "layers.3.attn.z": "layers.3.attn.z",
    "layers.3.resid_pre": "layers.2.resid_post",
    "layers.0.resid_pre": "embed",
}

NO_SITES = [
    "",
    "ae.pt",
    "blocks.3",
    "blocks.3.attn.hook_q",
    "blocks.3.hook_mlp_in",  # before the norm or after it, by version
    "blocks.x.hook_mlp_out",
    "mlp_out",
    "trainer_0",
    "model.layers.3.input_layernorm",
    "model.layers.3.mlp.gate_proj",
    "layers.3.mlp.outs",
    "10_32768",
    "layer_3",
]


@pytest.mark.parametrize(("hook", "path"), NAMES.items())
def test_a_name_of_another_library_is_a_site(hook, path):
    assert str(site_of(hook)) == path


@pytest.mark.parametrize("hook", NO_SITES)
def test_what_stands_for_no_site_is_none(hook):
    assert site_of(hook) is None


@pytest.mark.parametrize("name", [*LAYER_NAMES, "embed"])
def test_a_written_name_is_read_as_the_same_site(name):
    site = Site(None if name == "embed" else 3, name)
    expected = Site(2, "resid_post") if name == "resid_pre" else site
    assert site_of(hook_of(site)) == expected


@pytest.mark.parametrize(
    ("path", "hook"),
    [
        ("layers.3.mlp.out", "blocks.3.hook_mlp_out"),
        ("layers.3.resid_post", "blocks.3.hook_resid_post"),
        ("layers.3.resid_pre", "blocks.3.hook_resid_pre"),
        ("layers.3.attn.z", "blocks.3.attn.hook_z"),
        ("layers.3.mlp.in", "blocks.3.mlp.hook_in"),
        ("embed", "hook_embed"),
        ("layers.3.mixer.out", "layers.3.mixer.out"),
    ],
)
def test_sites_are_written_in_the_words_of_saelens(path, hook):
    assert hook_of(Site.parse(path)) == hook


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/d/pythia/mlp_out_layer3/10_32768/ae.pt", "mlp_out_layer3"),
        ("/d/pythia/embed/10_32768/ae.pt", "embed"),
        ("/d/resid_out_layer1/attn_out_layer2/ae.pt", "attn_out_layer2"),
        ("/d/layers.1.mlp.out/sae_weights.safetensors", "layers.1.mlp.out"),
        ("/d/mlp_out_layer3.pt", None),
        ("/d/other/ae.pt", None),
    ],
)
def test_a_place_is_taken_from_the_innermost_folder_that_names_one(path, name):
    assert named_by(Path(path)) == name


def test_modules_whose_output_a_norm_may_change_are_told_apart():
    changed = ["model.layers.3.mlp", "model.layers.3.mlp.output", "transformer.h.0.attn"]
    unchanged = ["model.layers.3", "model.layers.3.mlp.input", "blocks.3.hook_mlp_out", None]
    assert all(is_module_in_norm(hook) for hook in changed)
    assert not any(is_module_in_norm(hook) for hook in unchanged)


def dictionary(**origin: str) -> Dictionary:
    eye = torch.eye(2)
    return Dictionary(
        encoder=eye,
        encoder_bias=torch.zeros(2),
        decoder=eye,
        decoder_bias=torch.zeros(2),
        transcoder="hook_out" in origin,
        origin=Origin(**origin),
    )


def test_a_dictionary_reads_and_writes_one_site_and_a_transcoder_two():
    plain = dictionary(hook="blocks.1.hook_mlp_out")
    assert read_site(plain) == written_site(plain) == Site(1, "mlp.out")
    crossing = dictionary(hook="blocks.1.mlp.hook_in", hook_out="blocks.1.hook_mlp_out")
    assert (read_site(crossing), written_site(crossing)) == (Site(1, "mlp.in"), Site(1, "mlp.out"))


def test_a_dictionary_without_a_place_is_refused_with_what_to_write():
    with pytest.raises(DictionaryError) as caught:
        read_site(dictionary(path="runs/first/ae.pt"))
    assert str(caught.value) == (
        "runs/first/ae.pt does not name its place.\n"
        "Say which: hw.Dictionaries.read(..., sites={'first': 'layers.3.mlp.out'}); on the "
        "command line -d runs/first=layers.3.mlp.out, or for `dictionaries inspect` --site. "
        "`headwater sites MODEL` lists a model's sites."
    )


def test_a_place_that_is_no_site_is_refused_by_its_name():
    with pytest.raises(DictionaryError) as caught:
        read_site(dictionary(path="first/ae.pt", hook="blocks.1.attn.hook_q"))
    assert str(caught.value).startswith(
        "first/ae.pt names 'blocks.1.attn.hook_q' as its place, which is no site of headwater.\n"
    )
    with pytest.raises(DictionaryError, match="as the place that it writes"):
        written_site(dictionary(path="a/b.pt", hook="embed", hook_out="blocks.1.odd"))
