"""Dictionaries: derivatives against dense Jacobians, folding, and collections by site."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
import tiny_models
from dictionary_files import learning_tensors, write
from headwater.architectures.adapter import resolve
from headwater.dictionaries import (
    Dictionaries,
    Dictionary,
    Gated,
    JumpRelu,
    Origin,
    Relu,
    TopK,
    write_dictionary,
)
from headwater.dictionaries.folding import (
    centered,
    input_bias_folded,
    input_scale_folded,
    norm_weight_folded,
)
from headwater.dictionary_loading import load_dictionaries
from headwater.errors import DictionaryError, UnknownSiteError, UnsupportedDictionaryError
from headwater.sites import Site

D, F, O = 6, 9, 7  # noqa: E741
ACTIVATIONS = ["relu", "jumprelu", "topk", "topk by norm", "signed topk", "gated"]
SCALINGS = ["none", "layer_norm", "constant_norm"]

every = pytest.mark.parametrize("activation", ACTIVATIONS)
every_scaling = pytest.mark.parametrize("scaling", SCALINGS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(
    activation: str = "relu",
    d_in: int = D,
    d_out: int | None = None,
    features: int = F,
    **more: Any,
) -> Dictionary:
    """A random dictionary in memory, about half of its features on."""
    decoder = random(features, d_out or d_in, seed=3)
    kinds = {
        "relu": Relu(),
        "jumprelu": JumpRelu(random(features, seed=4).abs()),
        "topk": TopK(4),
        "topk by norm": TopK(4, decoder.norm(dim=1)),
        "signed topk": TopK(4, signed=True),
        "gated": Gated(random(features, seed=5), random(features, seed=6),
                       random(features, seed=7).mul(0.3).exp()),
    }  # fmt: skip
    return Dictionary(
        encoder=random(d_in, features, seed=1),
        encoder_bias=random(features, seed=2),
        decoder=decoder,
        decoder_bias=random(d_out or d_in, seed=8),
        activation=kinds[activation],
        transcoder=d_out is not None,
        **more,
    )


def x_at(*shape: int) -> Tensor:
    return random(*shape, D, seed=11) * 2 + 0.5


# derivatives


def jacobian(dictionary: Dictionary, x: Tensor) -> Tensor:
    """df/dx at each position by autograd, one feature after the other: [pos, feature, d_in]."""
    rows = []
    for position in x:
        leaf = position.clone().requires_grad_()
        f = dictionary.encode(leaf)
        rows.append(
            torch.stack([torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in f])
        )
    return torch.stack(rows)


@every_scaling
@every
def test_pulled_is_the_dense_jacobian_row_by_row(activation, scaling):
    dictionary, x = made(activation, scaling=scaling), x_at(5)
    columns = [7, 0, 3, 3]
    weights = random(5, len(columns), seed=12)
    dense = jacobian(dictionary, x)
    slopes = dictionary.slope(dictionary.pre(x), x)[..., columns]
    found = dictionary.pulled(x, columns, weights, slopes)
    expected = torch.stack([weights[:, i, None] * dense[:, j] for i, j in enumerate(columns)])
    assert (dense != 0).any()
    assert (dense == 0).any() or scaling != "none"
    assert_close(found, expected, rtol=1e-11, atol=1e-12)


@every_scaling
@every
def test_pulled_sum_is_the_dense_jacobian_summed_over_features(activation, scaling):
    dictionary, x = made(activation, scaling=scaling), x_at(5)
    weights = random(5, F, seed=12)
    slopes = dictionary.slope(dictionary.pre(x), x)
    expected = (weights[..., None] * jacobian(dictionary, x)).sum(1)
    assert_close(dictionary.pulled_sum(x, weights, slopes), expected, rtol=1e-11, atol=1e-12)


@every_scaling
def test_derivatives_keep_batch_and_position_apart(scaling):
    dictionary, x = made("gated", scaling=scaling), x_at(2, 3)
    weights = random(2, 3, 2, seed=12)
    slopes = dictionary.slope(dictionary.pre(x), x)[..., [1, 5]]
    found = dictionary.pulled(x, [1, 5], weights, slopes)
    assert found.shape == (2, 2, 3, D)
    for b in range(2):
        for s in range(3):
            alone = dictionary.pulled(x[b, s], [1, 5], weights[b, s], slopes[b, s])
            assert_close(found[:, b, s], alone, rtol=1e-13, atol=1e-14)


@every_scaling
@every
def test_an_activation_s_slope_is_the_central_difference_of_it(activation, scaling):
    dictionary, x = made(activation, scaling=scaling), x_at(4)
    pre, step = dictionary.pre(x), 1e-6
    for j in range(F):
        moved = torch.zeros(F, dtype=torch.float64)
        moved[j] = step
        up, down = (dictionary.activated(pre + sign * moved, x) for sign in (1, -1))
        slope = (up - down)[:, j] / (2 * step)
        assert_close(dictionary.slope(pre, x)[:, j], slope, rtol=1e-6, atol=1e-7)


@every_scaling
@every
def test_some_features_are_encoded_as_among_all(activation, scaling):
    dictionary, x = made(activation, scaling=scaling), x_at(5)
    columns = torch.tensor([8, 0, 2])
    expected = dictionary.encode(x)[..., columns]
    assert_close(dictionary.encode(x, columns), expected, rtol=1e-13, atol=1e-14)


@every_scaling
def test_pre_activations_move_as_their_central_difference(scaling):
    dictionary, x, change = made(scaling=scaling), x_at(5), random(5, D, seed=13)
    step = 1e-6
    expected = (dictionary.pre(x + step * change) - dictionary.pre(x - step * change)) / (2 * step)
    assert_close(dictionary.pre_along(x, change), expected, rtol=1e-7, atol=1e-7)


# identities


@every_scaling
@every
def test_features_decoded_and_the_error_are_the_input(activation, scaling):
    dictionary, x = made(activation, scaling=scaling), x_at(5)
    features = dictionary.encode(x)
    again = dictionary.decode(features) + dictionary.error(features, x)
    assert_close(again, x, rtol=1e-14, atol=1e-14)
    off = dictionary.error(features, x) - (x - features @ dictionary.decoder)
    assert_close(off, -dictionary.decoder_bias.expand(5, D), rtol=1e-13, atol=1e-13)


def test_a_skip_connection_is_in_the_error():
    dictionary = made(d_out=O, skip=random(D, O, seed=9))
    x, written = x_at(5), random(5, O, seed=10)
    features = dictionary.encode(x)
    error = dictionary.error(features, written)
    assert_close(dictionary.decode(features) + error, written, rtol=1e-14, atol=1e-14)
    unexplained = written - dictionary.reconstruct(x)
    assert dictionary.skip is not None
    assert_close(error, unexplained + x @ dictionary.skip, rtol=1e-13, atol=1e-13)


@every
def test_other_number_types_hold_the_same_dictionary(activation):
    dictionary, x = made(activation), x_at(5)
    found = dictionary.to(dtype=torch.float32)
    assert {
        t.dtype for t in (found.encoder, found.decoder, *found.activation.tensors.values())
    } == {torch.float32}
    assert_close(found.encode(x.float()).double(), dictionary.encode(x), rtol=1e-4, atol=1e-4)


# folding


@every_scaling
@every
def test_a_folded_input_bias_is_taken_from_the_scaled_input(activation, scaling):
    dictionary, x, bias = made(activation, scaling=scaling), x_at(5), random(D, seed=9)
    inside = dictionary._scaled(x) - bias
    expected = replace(dictionary, scaling="none").encode(inside)
    if scaling != "none":
        expected = expected * dictionary._scale(x)
    found = input_bias_folded(dictionary, bias).encode(x)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


@every
def test_a_folded_input_factor_is_that_of_training(activation):
    dictionary, x = made(activation), x_at(5)
    found = input_scale_folded(dictionary, 0.25)
    assert_close(found.encode(x), dictionary.encode(0.25 * x), rtol=1e-12, atol=1e-12)
    assert_close(found.reconstruct(x), 4 * dictionary.reconstruct(0.25 * x), rtol=1e-12, atol=1e-12)


def test_centering_twice_is_centering_once():
    once = centered(made(skip=random(D, D, seed=9)))
    twice = centered(once)
    assert_close(twice.encoder, once.encoder, rtol=1e-14, atol=1e-15)
    assert_close(twice.skip, once.skip, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("kind", ["ordinary", "transcoder", "skip transcoder"])
def test_a_folded_norm_weight_is_what_the_norm_multiplies(kind):
    crossing = {} if kind == "ordinary" else {"d_out": O}
    skip = {"skip": random(D, O, seed=9)} if kind == "skip transcoder" else {}
    dictionary = made(**crossing, **skip)
    normalized, factor, shift = x_at(5), random(D, seed=14) + 3, random(D, seed=15)
    found = norm_weight_folded(dictionary, factor, shift)
    site = normalized * factor + shift
    assert_close(found.encode(site), dictionary.encode(normalized), rtol=1e-12, atol=1e-12)
    expected = dictionary.reconstruct(normalized)
    expected = expected * factor + shift if kind == "ordinary" else expected
    assert_close(found.reconstruct(site), expected, rtol=1e-12, atol=1e-12)


def test_a_norm_weight_that_cannot_be_folded_is_refused():
    dictionary = made(origin=Origin(path="a/b.pt", hook="blocks.0.ln2.hook_normalized"))
    factor, shift = torch.ones(D, dtype=torch.float64), torch.zeros(D, dtype=torch.float64)
    factor[2] = 0
    with pytest.raises(UnsupportedDictionaryError) as caught:
        norm_weight_folded(dictionary, factor, shift)
    assert str(caught.value) == (
        "a/b.pt is of 'blocks.0.ln2.hook_normalized', which lies before the norm's weight, and "
        "that cannot be folded: it is zero somewhere."
    )
    with pytest.raises(UnsupportedDictionaryError, match=r"inputs are scaled again \(layer_norm\)"):
        norm_weight_folded(replace(dictionary, scaling="layer_norm"), factor + 1, shift)


# refusals of a dictionary itself


def test_tensors_that_do_not_fit_together_are_refused_with_both_shapes():
    dictionary = made(origin=Origin(path="a/b.pt"))
    with pytest.raises(DictionaryError) as caught:
        replace(dictionary, activation=JumpRelu(torch.zeros(F + 1)))
    assert str(caught.value) == (
        "a/b.pt: threshold has shape [10]; with an encoder of [d_in=6, feature=9] and a decoder of "
        "[feature=9, d_out=6] it must be [9]."
    )


def test_two_widths_are_those_of_a_transcoder():
    with pytest.raises(DictionaryError) as caught:
        replace(made(d_out=O), transcoder=False)
    assert str(caught.value) == (
        "it encodes 6 numbers and decodes 7: a dictionary of one site has one width.\n"
        "A transcoder is given as Dictionary(..., transcoder=True)."
    )


# collections


def save(folder: Path, site: str, d: int = 24, seed: int = 0, **more: Any) -> Path:
    """Write a dictionary of a site into a folder of its path."""
    dictionary = made(d_in=d, **more)
    dictionary = replace(dictionary, decoder_bias=random(d, seed=seed))
    return write_dictionary(dictionary, folder / site, hook=site, dtype=torch.float32)


SITES = ["layers.1.resid_post", "embed", "layers.1.attn.out", "layers.0.mlp.out"]


def test_a_folder_of_dictionaries_is_read_in_the_order_of_a_forward_pass(tmp_path):
    for place, site in enumerate(SITES):
        save(tmp_path / f"deep{place % 2}" / "deeper", site)
    found = Dictionaries.read(tmp_path)
    inorder = ["embed", "layers.0.mlp.out", "layers.1.attn.out", "layers.1.resid_post"]
    assert [str(site) for site in found] == inorder
    assert len(found) == 4
    assert found["embed"].features == F
    assert Site(None, "embed") in found
    assert "layers.0.mlp.out" in found
    assert "layers.0.attn.out" not in found
    assert all(found.reads(site) == site for site in found)


def test_one_dictionary_or_several_paths_are_read(tmp_path):
    paths = [save(tmp_path, site) for site in SITES[:2]]
    assert list(Dictionaries.read(paths[0])) == [Site(1, "resid_post")]
    assert list(Dictionaries.read(paths[0] / "sae_weights.safetensors")) == [Site(1, "resid_post")]
    assert list(Dictionaries.read([str(path) for path in paths])) == [
        Site(None, "embed"),
        Site(1, "resid_post"),
    ]


def test_a_folder_of_files_and_a_run_with_checkpoints_are_read(tmp_path):
    tensors = {
        "W_enc": random(F, D),
        "W_dec": random(F, D),
        "b_enc": random(F),
        "b_dec": random(D),
    }
    config = (
        "model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n"
        "feature_output_hook: hook_mlp_out\n"
    )
    for layer in range(2):
        write(tmp_path / "plt", f"layer_{layer}.safetensors", tensors, config_yaml=config)
    run = tmp_path / "runs" / "resid_out_layer1" / "10_9"
    write(run, "ae.pt", learning_tensors("AutoEncoder"))
    write(run / "checkpoints", "ae_100.pt", learning_tensors("AutoEncoder"))
    found = Dictionaries.read(tmp_path)
    assert {str(site): str(found.reads(site)) for site in found} == {
        "layers.0.mlp.out": "layers.0.mlp.in",
        "layers.1.mlp.out": "layers.1.mlp.in",
        "layers.1.resid_post": "layers.1.resid_post",
    }


def test_a_collection_is_frozen(tmp_path):
    found = Dictionaries.read(save(tmp_path, "embed"))
    with pytest.raises(AttributeError):
        found.found = {}  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        found["embed"] = made()  # pyright: ignore[reportIndexIssue]


def test_a_collection_is_made_of_dictionaries_in_memory_too():
    found = Dictionaries({"layers.1.mlp.out": made(), Site(None, "embed"): made()})
    assert [str(site) for site in found] == ["embed", "layers.1.mlp.out"]
    with pytest.raises(UnknownSiteError, match=r"no site 'layers\.1\.mlp\.outs'"):
        Dictionaries({"layers.1.mlp.outs": made()})


def test_a_site_without_a_dictionary_is_answered_with_those_that_have_one():
    found = Dictionaries({"layers.1.mlp.out": made(), "embed": made()})
    with pytest.raises(DictionaryError) as caught:
        found["layers.0.mlp.out"]
    assert str(caught.value) == (
        "no dictionary at 'layers.0.mlp.out'.\nThere are dictionaries at: embed, layers.1.mlp.out."
    )
    assert found.get("layers.0.mlp.out") is None


def test_two_dictionaries_of_one_site_are_refused_by_both_files(tmp_path):
    one, other = save(tmp_path / "a", "embed"), save(tmp_path / "b", "embed")
    with pytest.raises(DictionaryError) as caught:
        Dictionaries.read(tmp_path)
    assert str(caught.value) == (
        f"two dictionaries are of 'embed': {one / 'sae_weights.safetensors'} and "
        f"{other / 'sae_weights.safetensors'}.\n"
        "Name the ones you want: hw.load_dictionaries(model, [path, ...]); on the command line "
        "-d PATH -d PATH."
    )


def test_a_folder_without_dictionaries_is_refused(tmp_path):
    with pytest.raises(DictionaryError) as caught:
        Dictionaries.read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no dictionaries: no sae_weights.safetensors, ae.pt, sae.safetensors, "
        "params.npz or other file of tensors at any depth."
    )


def nameless(tmp_path: Path, *names: str) -> Path:
    for name in names:
        write(tmp_path / name, "ae.pt", learning_tensors("AutoEncoder"))
    return tmp_path


def test_places_that_files_do_not_name_are_given_by_the_caller(tmp_path):
    folder = nameless(tmp_path, "first", "second")
    with pytest.raises(DictionaryError, match=r"does not name its place\.\nSay which: hw\.Dict"):
        Dictionaries.read(folder)
    sites = {"first": "blocks.0.hook_mlp_out", str(folder / "second"): Site(None, "embed")}
    found = Dictionaries.read(folder, sites=sites)
    assert [str(site) for site in found] == ["embed", "layers.0.mlp.out"]
    assert list(Dictionaries.read(folder / "first", sites="layers.1.attn.out")) == [
        Site(1, "attn.out")
    ]


def test_a_transcoder_s_two_places_may_be_given(tmp_path):
    tensors = {
        "W_enc": random(F, D),
        "W_dec": random(F, D),
        "b_enc": random(F),
        "b_dec": random(D),
    }
    write(tmp_path, "layer_0.safetensors", tensors)
    found = Dictionaries.read(tmp_path, sites=("layers.0.mlp.in", "layers.0.mlp.out"))
    assert found.reads("layers.0.mlp.out") == Site(0, "mlp.in")


def test_places_for_dictionaries_that_are_not_there_are_refused(tmp_path):
    folder = nameless(tmp_path, "first", "second")
    with pytest.raises(DictionaryError) as caught:
        Dictionaries.read(folder, sites={"third": "embed"})
    assert str(caught.value) == (
        "sites names 'third', which is 0 of the dictionaries, not one.\n"
        f"There are: {folder / 'first' / 'ae.pt'}, {folder / 'second' / 'ae.pt'}."
    )
    with pytest.raises(DictionaryError, match="sites='embed' is one place, but there are 2 dict"):
        Dictionaries.read(folder, sites="embed")
    with pytest.raises(DictionaryError, match="which is 2 of the dictionaries, not one"):
        Dictionaries.read(folder, sites={"ae.pt": "embed"})


def test_a_collection_fits_on_one_screen(tmp_path):
    save(tmp_path, "layers.1.mlp.out")
    crossing = made("jumprelu", d_out=O, origin=Origin(path="x/y.pt", hook="layers.0.mlp.in"))
    found = Dictionaries(
        {**Dictionaries.read(tmp_path), "layers.0.mlp.out": crossing, "embed": made()}
    )
    assert repr(found) == (
        "Dictionaries at 3 sites\n"
        "site                                 kind      features  width   file\n"
        "embed                                standard  9         6       made here\n"
        "layers.0.mlp.in -> layers.0.mlp.out  jumprelu  9         6 -> 7  x/y.pt\n"
        "layers.1.mlp.out                     standard  9         24      "
        f"{tmp_path}/layers.1.mlp.out/sae_weights.safetensors"
    )
    for site in SITES:
        save(tmp_path / "deep", site)
    assert repr(Dictionaries.read(tmp_path / "deep")).splitlines()[:3] == [
        f"Dictionaries at 4 sites in {tmp_path}/deep/",
        "site                 kind      features  width  file",
        "embed                standard  9         24     embed/sae_weights.safetensors",
    ]
    many = Dictionaries({Site(layer, "mlp.out"): made() for layer in range(60)})
    assert repr(many).count("\n") == 26
    assert repr(many).endswith("\nand 36 more")


def test_the_list_of_a_collection_reads_it_again(tmp_path):
    for place, site in enumerate(SITES):
        save(tmp_path, site, activation=ACTIVATIONS[place])
    found = Dictionaries.read(tmp_path)
    listed = found.to_list()
    assert listed[0] == {
        "site": "embed",
        "reads": "embed",
        "format": "SAELens",
        "kind": "jumprelu",
        "features": F,
        "d_in": 24,
        "d_out": 24,
        "dtype": "float32",
        "centered": False,
        "scale": None,
        "sha256": found["embed"].origin.sha256,
        "path": str(tmp_path / "embed" / "sae_weights.safetensors"),
        "notes": [],
    }
    again = Dictionaries.from_list(listed)
    assert again.to_list() == listed
    assert torch.equal(again["embed"].encoder, found["embed"].encoder)


def test_a_file_that_changed_is_not_read_as_the_one_before(tmp_path):
    folder = save(tmp_path, "embed")
    listed = Dictionaries.read(folder).to_list()
    save(tmp_path / "other", "embed", seed=99)
    (tmp_path / "other" / "embed" / "sae_weights.safetensors").replace(
        folder / "sae_weights.safetensors"
    )
    with pytest.raises(DictionaryError, match="is another file than the one used before: its SHA-"):
        Dictionaries.from_list(listed)
    in_memory = Dictionaries({"embed": made()}).to_list()
    with pytest.raises(DictionaryError, match="'embed' was made in memory, so no file holds it"):
        Dictionaries.from_list(in_memory)


def test_a_collection_moves_as_a_whole(tmp_path):
    found = Dictionaries.read(save(tmp_path, "embed")).to(dtype=torch.float64)
    assert found["embed"].decoder.dtype == torch.float64


# against a model


def adapter_of(family: str):
    return resolve(tiny_models.shared(family))


WIDTHS = {"attn.z": 32, "mlp.post": 40, "mlp.in": 24, "attn.out": 24, "resid_post": 24}


def test_dictionaries_of_every_width_fit_their_sites():
    # Qwen3: 4 heads of 8 beside a residual of 24
    found = {Site(1, name): made(d_in=width) for name, width in WIDTHS.items()}
    Dictionaries({**found, "embed": made(d_in=24)}).check(adapter_of("Qwen3"))


@pytest.mark.parametrize(("name", "axes"), [("attn.z", "head * d_head"), ("mlp.post", "d_mlp")])
def test_another_width_is_refused_with_file_tensor_and_shape(name, axes):
    one = made(d_in=25, origin=Origin(path="a/b.pt", hook="x"))
    with pytest.raises(DictionaryError) as caught:
        Dictionaries({Site(1, name): one}).check(adapter_of("Qwen3"))
    assert str(caught.value) == (
        f"a/b.pt: encoder has shape [25, 9], so it is of 25 numbers, but 'layers.1.{name}' of this "
        f"Qwen3 has {WIDTHS[name]} numbers a position ({axes}).\n"
        "It was trained on another model or another site."
    )


def test_a_transcoder_that_writes_another_width_is_refused_by_its_decoder():
    one = made(d_in=24, d_out=25, origin=Origin(path="a/b.pt", hook="layers.1.mlp.in"))
    with pytest.raises(DictionaryError, match=r"a/b\.pt: decoder has shape \[9, 25\], so it is of"):
        Dictionaries({"layers.1.mlp.out": one}).check(adapter_of("Llama"))


def test_layers_and_sites_that_a_model_lacks_are_refused_with_the_file():
    one = made(d_in=24, origin=Origin(path="a/b.pt", hook="x"))
    with pytest.raises(DictionaryError) as caught:
        Dictionaries({"layers.7.mlp.out": one}).check(adapter_of("Llama"))
    assert str(caught.value) == (
        "a/b.pt: encoder [24, 9]: no site 'layers.7.mlp.out': LlamaForCausalLM has 2 layers, the "
        "last is 'layers.1.mlp.out'."
    )
    crossing = made(d_in=32, d_out=32, origin=Origin(path="a/b.pt", hook="layers.1.resid_mid"))
    with pytest.raises(DictionaryError) as caught:
        Dictionaries({"layers.1.mlp.out": crossing}).check(adapter_of("GPT-NeoX"))
    assert str(caught.value).startswith(
        "a/b.pt: encoder [32, 9]: no 'layers.1.resid_mid' in GPT-NeoX: attention and MLP read the "
        "same residual, nothing lies between."
    )


def test_attention_patterns_have_no_dictionary():
    with pytest.raises(DictionaryError, match="of this Llama has no vector at a position"):
        Dictionaries({"layers.1.attn.pattern": made(d_in=24)}).check(adapter_of("Llama"))


def test_what_a_norm_still_changes_is_no_write_of_the_module():
    one = made(d_in=24, origin=Origin(path="a/b.pt", hook="model.layers.1.mlp"))
    Dictionaries({"layers.1.mlp.out": one}).check(adapter_of("Llama"))
    with pytest.raises(DictionaryError) as caught:
        Dictionaries({"layers.1.mlp.out": one}).check(adapter_of("Gemma 2"))
    assert str(caught.value) == (
        "a/b.pt is of the output of the module 'model.layers.1.mlp', which goes through a norm in "
        "Gemma 2 before it is added to the residual; 'layers.1.mlp.out' is what that norm hands "
        "on.\nUse a dictionary that was trained after the norm."
    )


def normalized_one() -> Dictionary:
    origin = Origin(
        path="a/b.pt", hook="blocks.1.ln2.hook_normalized", hook_out="blocks.1.hook_mlp_out"
    )
    return made(d_in=24, d_out=24, origin=origin)


@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Gemma 2"])
def test_a_transcoder_from_before_the_norm_s_weight_sees_the_same_after_it(family):
    model = hw.wrap(tiny_models.build(family, dtype=torch.float64))
    one = normalized_one()
    found = Dictionaries({"layers.1.mlp.out": one})
    with pytest.raises(DictionaryError, match="which lies before the norm's weight"):
        found.check(model.anatomy())
    (fitted,) = load_dictionaries(model, found).values()
    kept: dict[str, Tensor] = {}
    sites = {name: Site(1, name) for name in ("resid_mid", "mlp.in")}
    taps = {
        site: lambda v, name=name: kept.update({name: v.clone()}) for name, site in sites.items()
    }
    with torch.no_grad():
        model.forward(tiny_models.tokens(), taps=taps)
    residual = kept["resid_mid"]
    if family == "GPT-2":
        residual = residual - residual.mean(-1, keepdim=True)
    eps = 1e-5 if family == "GPT-2" else 1e-6
    normalized = residual / (residual.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    expected = one.encode(normalized)
    assert (expected > 0).any()
    assert_close(fitted.encode(kept["mlp.in"]), expected, rtol=1e-9, atol=1e-10)
    assert fitted.origin.hook == "layers.1.mlp.in"
    # fitting what is fitted changes nothing
    (again,) = load_dictionaries(model, load_dictionaries(model, found)).values()
    assert torch.equal(again.encoder, fitted.encoder)


def test_a_norm_that_is_not_known_is_said(tmp_path):
    found = Dictionaries({"layers.1.mlp.out": normalized_one()})
    with pytest.raises(DictionaryError) as caught:
        found.fitted(adapter_of("OLMo 2"))
    assert str(caught.value) == (
        "a/b.pt: encoder [24, 9]: no norm in layer 1 of OLMo 2 is known whose output the MLP "
        "reads, so what lies before that norm's weight is not known."
    )


# loading


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_dictionaries_are_loaded_in_the_model_s_precision(tmp_path, dtype, expected):
    save(tmp_path, "layers.1.mlp.out", d=24)
    model = hw.wrap(tiny_models.build("Llama", dtype=dtype))
    found = load_dictionaries(model, tmp_path)
    assert found["layers.1.mlp.out"].encoder.dtype == expected
    assert found["layers.1.mlp.out"].encoder.device == model.device


def test_dictionaries_are_checked_when_they_are_loaded(tmp_path):
    save(tmp_path, "layers.1.mlp.out", d=23)
    model = hw.wrap(tiny_models.build("Llama"))
    with pytest.raises(DictionaryError, match=r"'layers\.1\.mlp\.out' of this Llama has 24 numb"):
        load_dictionaries(model, tmp_path)


def test_shipped_dictionaries_are_those_of_the_model_s_name(tmp_path, monkeypatch):
    monkeypatch.setattr("headwater.dictionary_loading.embedded_folder", lambda: tmp_path)
    model = hw.load("tiny")
    with pytest.raises(DictionaryError) as caught:
        load_dictionaries(model)
    assert str(caught.value) == (
        "no dictionaries ship for the model 'tiny'; they do for: none.\n"
        "Give a file or folder: hw.load_dictionaries(model, 'path/to/dictionaries')."
    )
    width = model.anatomy().d_model
    save(tmp_path / "tiny" / "dictionaries", "layers.0.mlp.out", d=width)
    assert [str(site) for site in load_dictionaries(model)] == ["layers.0.mlp.out"]
    other = hw.load("tiny-gpt2")
    with pytest.raises(DictionaryError, match=r"for the model 'tiny-gpt2'; they do for: tiny\.\n"):
        load_dictionaries(other)
