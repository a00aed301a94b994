"""Every format on disk, against plain formulas of what its library computes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dictionary_files import (
    LEARNING_KEYS,
    SAELENS_KEYS,
    D,
    F,
    K,
    O,
    Twin,
    inputs,
    learning_config,
    learning_tensors,
    learning_twin,
    random_tensors,
    relu,
    saelens_config,
    saelens_twin,
    top,
    write,
)
from headwater.dictionaries import (
    Dictionary,
    Gated,
    JumpRelu,
    Relu,
    TopK,
    read_dictionary,
    write_dictionary,
)
from headwater.errors import DictionaryError, UnsupportedDictionaryError
from headwater.sites import Site

WEIGHTS = "sae_weights.safetensors"


def agrees(dictionary: Dictionary, twin: Twin) -> None:
    """Features and reconstruction are the twin's, to the rounding of float64."""
    x = inputs()
    features, reconstruction = twin(x)
    assert (features != 0).any()
    assert (features == 0).any()
    assert_close(dictionary.encode(x), features, rtol=1e-12, atol=1e-12)
    assert_close(dictionary.reconstruct(x), reconstruction, rtol=1e-12, atol=1e-12)


def saelens(folder: Path, architecture: str, seed: int = 0, **changes: Any) -> tuple[Path, Twin]:
    config = saelens_config(architecture, **changes)
    tensors = random_tensors(SAELENS_KEYS[architecture], seed)
    write(folder, WEIGHTS, tensors, cfg_json=config)
    return folder, saelens_twin(config, tensors)


# SAELens


@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize("b_dec_in", [False, True])
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", [k for k in SAELENS_KEYS if "transcoder" not in k])
def test_saelens_computes_the_same(tmp_path, architecture, normalize, b_dec_in, by_norm):
    changes = {"apply_b_dec_to_input": b_dec_in, "normalize_activations": normalize}
    if "topk" in architecture:
        changes["rescale_acts_by_decoder_norm"] = by_norm
    agrees(*_read(saelens(tmp_path, architecture, **changes)))


@pytest.mark.parametrize("architecture", [k for k in SAELENS_KEYS if "transcoder" in k])
def test_saelens_transcoders_compute_the_same(tmp_path, architecture):
    dictionary, twin = _read(saelens(tmp_path, architecture))
    agrees(dictionary, twin)
    assert dictionary.transcoder
    assert (dictionary.d_in, dictionary.d_out) == (D, O)
    assert dictionary.origin.hook == "blocks.3.mlp.hook_in"
    assert dictionary.origin.hook_out == "blocks.3.hook_mlp_out"


def _read(made: tuple[Path, Twin]) -> tuple[Dictionary, Twin]:
    return read_dictionary(made[0]), made[1]


def test_the_origin_says_what_the_file_says(tmp_path):
    origin = read_dictionary(saelens(tmp_path, "topk")[0]).origin
    assert origin.path == str(tmp_path / WEIGHTS)
    assert (origin.format, origin.kind) == ("SAELens", "topk")
    assert (origin.hook, origin.model) == ("blocks.3.hook_mlp_out", "gpt2-small")
    assert origin.notes == ("The bias taken from the input is folded into the encoder's.",)
    assert origin.config["k"] == K
    import hashlib

    assert origin.sha256 == hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()


def old_config(**changes: Any) -> dict[str, Any]:
    """A flat configuration, as releases before 6 wrote it."""
    return {
        "d_in": D,
        "d_sae": F,
        "dtype": "float64",
        "model_name": "gpt2-small",
        "hook_point": "blocks.8.hook_resid_pre",
        "hook_point_layer": 8,
        "hook_point_head_index": None,
        **changes,
    }


def test_an_old_flat_configuration_is_read(tmp_path):
    tensors = random_tensors(SAELENS_KEYS["standard"]) | {"scaling_factor": torch.ones(F)}
    write(tmp_path, WEIGHTS, tensors, cfg_json=old_config(activation_fn_str="relu"))
    dictionary = read_dictionary(tmp_path)
    agrees(dictionary, saelens_twin(saelens_config("standard"), tensors))
    assert dictionary.origin.hook == "blocks.8.hook_resid_pre"
    assert "centered=True" in dictionary.origin.notes[-1]


def test_an_old_topk_is_told_by_its_activation_function(tmp_path):
    tensors = random_tensors(SAELENS_KEYS["topk"])
    config = old_config(
        hook_name="blocks.8.attn.hook_z",
        activation_fn="topk",
        activation_fn_kwargs={"k": K},
        normalize_activations=False,
    )
    del config["hook_point"]
    write(tmp_path, WEIGHTS, tensors, cfg_json=config)
    dictionary = read_dictionary(tmp_path)
    agrees(dictionary, saelens_twin(saelens_config("topk"), tensors))
    assert dictionary.origin.kind == "topk"
    assert dictionary.origin.hook == "blocks.8.attn.hook_z"


def test_a_real_scaling_factor_multiplies_what_is_decoded(tmp_path):
    tensors = random_tensors(SAELENS_KEYS["standard"])
    factor = torch.linspace(0.5, 2, F, dtype=torch.float64)
    config = old_config(finetuning_scaling_factor=True)
    write(tmp_path, WEIGHTS, tensors | {"scaling_factor": factor}, cfg_json=config)
    scaled = tensors | {"W_dec": factor[:, None] * tensors["W_dec"]}
    dictionary = read_dictionary(tmp_path)
    agrees(dictionary, saelens_twin(saelens_config("standard"), scaled))
    assert any("scaling_factor is folded" in note for note in dictionary.origin.notes)


AVERAGE = "expected_average_only_in"


@pytest.mark.parametrize("normalize", [AVERAGE, True])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated", "batchtopk"])
def test_a_known_input_factor_is_folded(tmp_path, architecture, normalize):
    config = saelens_config(architecture, normalize_activations=normalize)
    tensors = random_tensors(SAELENS_KEYS[architecture])
    write(tmp_path, WEIGHTS, tensors, cfg_json=config)
    dictionary = read_dictionary(tmp_path, scale=0.37)
    trained = saelens_twin(saelens_config(architecture), tensors)

    def twin(x: Tensor) -> tuple[Tensor, Tensor]:
        features, reconstruction = trained(0.37 * x)
        return features, reconstruction / 0.37

    agrees(dictionary, twin)
    assert dictionary.origin.scale == 0.37


def test_a_factor_that_training_left_beside_the_weights_is_used(tmp_path):
    folder, _ = saelens(tmp_path, "standard", normalize_activations=AVERAGE)
    expected = read_dictionary(folder, scale=0.5)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.5}))
    assert torch.equal(read_dictionary(folder).encoder, expected.encoder)


def test_an_unknown_input_factor_is_refused_with_what_it_is(tmp_path):
    folder, _ = saelens(tmp_path, "standard", normalize_activations=AVERAGE)
    with pytest.raises(DictionaryError) as caught:
        read_dictionary(folder)
    assert str(caught.value) == (
        f"{folder / WEIGHTS}: normalize_activations='expected_average_only_in', so it was trained "
        "on activations multiplied by a constant, which its file does not hold.\n"
        "read_dictionary(path, scale=c), where c is the square root of d_in over the mean norm of "
        "the activations it was trained on."
    )


def test_a_factor_for_a_dictionary_without_one_is_refused(tmp_path):
    with pytest.raises(DictionaryError, match=r"scale=2 was given, but its normalize_activations"):
        read_dictionary(saelens(tmp_path / "a", "standard")[0], scale=2.0)
    write(tmp_path / "b", "ae.pt", learning_tensors("AutoEncoder"))
    with pytest.raises(DictionaryError, match=r"only SAELens' 'expected_average_only_in' has an"):
        read_dictionary(tmp_path / "b", scale=2.0)


def centered_twin(twin: Twin) -> Twin:
    return lambda x: twin(x - x.mean(-1, keepdim=True))


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_centering_is_folded_into_the_encoder(tmp_path, normalize):
    metadata = {
        "hook_name": "blocks.3.hook_resid_pre",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    folder, twin = saelens(tmp_path, "standard", metadata=metadata, normalize_activations=normalize)
    dictionary = read_dictionary(folder)
    x = inputs()
    assert dictionary.centered
    features = centered_twin(twin)(x)[0]
    assert_close(dictionary.encode(x), features, rtol=1e-12, atol=1e-12)
    unfolded = read_dictionary(folder, centered=False)
    assert not unfolded.centered
    assert_close(unfolded.encode(x), twin(x)[0], rtol=1e-12, atol=1e-12)


def test_a_skip_connection_is_centered_too(tmp_path):
    folder, twin = saelens(tmp_path, "skip_transcoder")
    x = inputs()
    expected = centered_twin(twin)(x)[1]
    found = read_dictionary(folder, centered=True).reconstruct(x)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_places_outside_the_residual_are_not_centered_by_the_model(tmp_path):
    metadata = {
        "hook_name": "blocks.3.attn.hook_z",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    assert not read_dictionary(saelens(tmp_path, "standard", metadata=metadata)[0]).centered


def test_centering_before_a_division_by_the_norm_is_refused(tmp_path):
    folder, _ = saelens(tmp_path, "standard", normalize_activations="constant_norm_rescale")
    with pytest.raises(UnsupportedDictionaryError, match="the norm of one that is not centered"):
        read_dictionary(folder, centered=True)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("matching_pursuit", "is not supported: its encoder is a search over the decoder's rows"),
        ("temporal", "is not supported: its features depend on other positions of the prompt"),
        ("crosscoder", "is unknown.\nRead are: standard, topk, abstopk, jumprelu, gated, "),
    ],
)
def test_architectures_that_are_no_affine_encoder_are_refused_by_name(
    tmp_path, architecture, reason
):
    config = {**saelens_config("standard"), "architecture": architecture}
    write(tmp_path, WEIGHTS, random_tensors(SAELENS_KEYS["standard"]), cfg_json=config)
    with pytest.raises(UnsupportedDictionaryError) as caught:
        read_dictionary(tmp_path)
    assert str(caught.value).startswith(
        f"{tmp_path / WEIGHTS}: architecture {architecture!r} {reason}"
    )


def test_whitened_inputs_scaled_transcoders_and_single_heads_are_refused(tmp_path):
    folder, _ = saelens(tmp_path, "standard", normalize_activations="covariance_whitening")
    with pytest.raises(UnsupportedDictionaryError, match="'covariance_whitening' is not supported"):
        read_dictionary(folder)
    folder, _ = saelens(tmp_path, "transcoder", normalize_activations="layer_norm")
    with pytest.raises(UnsupportedDictionaryError, match="does not multiply what it writes by it"):
        read_dictionary(folder)
    metadata = {"hook_name": "blocks.3.attn.hook_z", "hook_head_index": 4}
    folder, _ = saelens(tmp_path, "standard", metadata=metadata)
    with pytest.raises(UnsupportedDictionaryError, match=r"on head 4 of 'blocks\.3\.attn\.hook_z'"):
        read_dictionary(folder)


@pytest.mark.parametrize("architecture", SAELENS_KEYS)
@pytest.mark.parametrize("which", range(2))
def test_a_wrong_shape_is_refused_with_file_tensor_and_both_shapes(tmp_path, architecture, which):
    tensors = random_tensors(SAELENS_KEYS[architecture])
    name = list(tensors)[which]
    expected = list(tensors[name].shape)
    tensors[name] = torch.zeros(*expected, 2)
    write(tmp_path, WEIGHTS, tensors, cfg_json=saelens_config(architecture))
    with pytest.raises(DictionaryError) as caught:
        read_dictionary(tmp_path)
    sizes = f"architecture '{architecture}', d_in=6, d_sae=10"
    sizes += ", d_out=7" if "transcoder" in architecture else ""
    assert str(caught.value) == (
        f"{tmp_path / WEIGHTS}: {name} has shape {[*expected, 2]}; with {sizes} (cfg.json) it must "
        f"be {expected}."
    )


def test_missing_and_unknown_tensors_are_listed(tmp_path):
    tensors = random_tensors(SAELENS_KEYS["standard"])
    tensors["W_gate"] = tensors.pop("b_enc")
    write(tmp_path, WEIGHTS, tensors, cfg_json=saelens_config("standard"))
    with pytest.raises(DictionaryError) as caught:
        read_dictionary(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / WEIGHTS} has no b_enc and holds W_gate, which nothing here reads: with "
        "architecture 'standard', d_in=6, d_sae=10 (cfg.json) a file holds W_enc, W_dec, b_enc, "
        "b_dec.\nIt holds: W_dec [10, 6], W_enc [6, 10], W_gate [10], b_dec [6]."
    )


def test_a_topk_without_k_is_refused(tmp_path):
    config = saelens_config("topk")
    del config["k"]
    write(tmp_path, WEIGHTS, random_tensors(SAELENS_KEYS["topk"]), cfg_json=config)
    with pytest.raises(DictionaryError, match=r"cfg\.json names no k for 'topk'"):
        read_dictionary(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_disk_is_read_as_float32(tmp_path, dtype):
    tensors = {k: v.to(dtype) for k, v in random_tensors(SAELENS_KEYS["standard"]).items()}
    write(tmp_path, WEIGHTS, tensors, cfg_json=saelens_config("standard"))
    dictionary = read_dictionary(tmp_path)
    assert dictionary.encoder.dtype == torch.float32
    assert torch.equal(dictionary.decoder, tensors["W_dec"].float())
    # folded in float64, so as near as float32 can be
    exact = tensors["b_enc"].double() - tensors["b_dec"].double() @ tensors["W_enc"].double()
    assert torch.equal(dictionary.encoder_bias, exact.float())


def test_nan_is_refused_by_tensor(tmp_path):
    tensors = random_tensors(SAELENS_KEYS["standard"])
    tensors["W_dec"][2, 3] = torch.nan
    write(tmp_path, WEIGHTS, tensors, cfg_json=saelens_config("standard"))
    with pytest.raises(DictionaryError, match=r"decoder \[10, 6\] holds 1 values that are NaN or"):
        read_dictionary(tmp_path)


# dictionary_learning


@pytest.mark.parametrize(
    ("name", "with_config"),
    [(name, True) for name in LEARNING_KEYS]
    # only the configuration tells these two apart
    + [(name, False) for name in LEARNING_KEYS if name not in ("AutoEncoderTopK", "BatchTopKSAE")],
)
def test_dictionary_learning_computes_the_same(tmp_path, name, with_config):
    tensors = learning_tensors(name)
    config = {"config_json": learning_config(name)} if with_config else {}
    write(tmp_path, "ae.pt", tensors, **config)
    dictionary = read_dictionary(tmp_path)
    agrees(dictionary, learning_twin(name, tensors))
    assert (dictionary.origin.format, dictionary.origin.kind) == ("dictionary_learning", name)
    assert dictionary.origin.hook == ("resid_post_layer_3" if with_config else None)


def test_two_classes_with_the_same_tensors_are_told_apart_by_the_configuration_only(tmp_path):
    write(tmp_path, "ae.pt", learning_tensors("BatchTopKSAE"))
    with pytest.raises(DictionaryError) as caught:
        read_dictionary(tmp_path)
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path / 'ae.pt'} may be AutoEncoderTopK or BatchTopKSAE: both hold b_dec [6], "
    )
    assert message.endswith(
        "and they encode in different ways.\nPut the run's config.json beside it, or one that says "
        '{"trainer": {"dict_class": "AutoEncoderTopK"}}.'
    )


def test_the_class_may_be_told_by_its_trainer(tmp_path):
    config = learning_config("BatchTopKSAE", trainer_class="BatchTopKTrainer")
    del config["trainer"]["dict_class"]
    write(tmp_path, "ae.pt", learning_tensors("BatchTopKSAE"), config_json=config)
    assert read_dictionary(tmp_path).origin.kind == "BatchTopKSAE"


def test_a_configuration_that_contradicts_the_tensors_is_refused(tmp_path):
    config = learning_config("BatchTopKSAE")
    write(tmp_path, "ae.pt", learning_tensors("AutoEncoder"), config_json=config)
    with pytest.raises(DictionaryError) as caught:
        read_dictionary(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'ae.pt'}: config.json says BatchTopKSAE, but the file holds bias [6], "
        "decoder.weight [6, 10], encoder.bias [10], encoder.weight [10, 6], which AutoEncoder "
        "holds.\nBatchTopKSAE holds b_dec, decoder.weight, encoder.bias, encoder.weight, k, "
        "threshold."
    )


def test_sizes_of_the_configuration_are_held_against_the_tensors(tmp_path):
    config = learning_config("AutoEncoder", dict_size=12)
    write(tmp_path, "ae.pt", learning_tensors("AutoEncoder"), config_json=config)
    with pytest.raises(DictionaryError) as caught:
        read_dictionary(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'ae.pt'}: encoder.weight has shape [10, 6]; with AutoEncoder, "
        "activation_dim=6 and dict_size=12 (config.json) it must be [12, 6]."
    )


def test_classes_that_are_none_of_the_seven_are_refused(tmp_path):
    config = learning_config("CrossCoder")
    write(tmp_path, "ae.pt", learning_tensors("AutoEncoder"), config_json=config)
    with pytest.raises(UnsupportedDictionaryError, match="dict_class 'CrossCoder' is not supp"):
        read_dictionary(tmp_path)


@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_threshold_that_was_never_trained_is_refused(tmp_path, name):
    tensors = learning_tensors(name) | {"threshold": torch.tensor(-1.0)}
    write(tmp_path, "ae.pt", tensors, config_json=learning_config(name))
    with pytest.raises(UnsupportedDictionaryError) as caught:
        read_dictionary(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'ae.pt'}: {name} with threshold -1: the threshold by which single inputs are "
        "encoded was never trained.\nUse a checkpoint from after threshold_start_step."
    )


@pytest.mark.parametrize("factor", [None, 2.5])
@pytest.mark.parametrize("name", LEARNING_KEYS)
def test_the_backup_of_a_run_is_read_and_said_to_be_one(tmp_path, name, factor):
    tensors = learning_tensors(name)
    backup = {"step": 700, "ae": tensors, "optimizer": {"state": {}}, "norm_factor": factor}
    write(tmp_path, "ae.pt", backup, config_json=learning_config(name))
    dictionary = read_dictionary(tmp_path)
    trained, size = learning_twin(name, tensors), factor or 1.0

    def twin(x: Tensor) -> tuple[Tensor, Tensor]:
        # the run saw activations divided by its norm_factor
        features, reconstruction = trained(x / size)
        return features * size, reconstruction * size

    agrees(dictionary, twin)
    assert "The backup of a run at step 700" in dictionary.origin.notes[-1]


def test_checkpoints_of_a_run_find_its_configuration(tmp_path):
    tensors = learning_tensors("BatchTopKSAE")
    write(tmp_path, "ae.pt", tensors, config_json=learning_config("BatchTopKSAE"))
    write(tmp_path / "checkpoints", "ae_100.pt", tensors)
    dictionary = read_dictionary(tmp_path / "checkpoints" / "ae_100.pt")
    assert dictionary.origin.kind == "BatchTopKSAE"


def test_inputs_of_a_module_are_another_place_than_its_outputs(tmp_path):
    config = learning_config("AutoEncoder", submodule_name="model.layers.3.mlp")
    config["buffer"]["io"] = "in"
    write(tmp_path, "ae.pt", learning_tensors("AutoEncoder"), config_json=config)
    assert read_dictionary(tmp_path).origin.hook == "model.layers.3.mlp.input"
    config["buffer"]["io"] = "in_and_out"
    write(tmp_path, "ae.pt", learning_tensors("AutoEncoder"), config_json=config)
    with pytest.raises(UnsupportedDictionaryError, match=r"io='in_and_out' of 'model\.layers"):
        read_dictionary(tmp_path)


def test_the_folder_names_the_place_that_the_first_releases_do_not(tmp_path):
    folder = tmp_path / "attn_out_layer3" / "10_32768"
    write(folder, "ae.pt", learning_tensors("AutoEncoder"))
    origin = read_dictionary(folder).origin
    assert origin.hook == "attn_out_layer3"
    assert origin.notes[-1] == "Its place is taken from its folder's name, attn_out_layer3."


# circuit-tracer


def tracer_tensors(**more: tuple[int, ...]) -> dict[str, Tensor]:
    shapes = {"W_enc": (F, D), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,)}
    return random_tensors({**shapes, **more})


TRACER = """
model_name: "google/gemma-2-2b"
model_kind: "transcoder_set"
feature_input_hook: "mlp.hook_in"
feature_output_hook: "hook_mlp_out"
"""


@pytest.mark.parametrize(
    ("more", "config"),
    [
        ({}, TRACER),
        ({}, None),
        ({"W_skip": (D, D)}, TRACER),
        ({"activation_function.threshold": (F,)}, TRACER),
        ({"activation_function.threshold": (F,), "W_skip": (D, D)}, None),
        ({"activation_function.threshold": (F,)}, TRACER + "activation: relu\n"),
        ({}, TRACER + f"activation: topk\nk: {K}\n"),
    ],
)
def test_circuit_tracer_computes_the_same(tmp_path, more, config):
    t = tracer_tensors(**more)
    configs = {} if config is None else {"config_yaml": config}
    write(tmp_path, "layer_3.safetensors", t, **configs)

    def twin(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = x @ t["W_enc"].T + t["b_enc"]
        f = relu(pre)
        if config is not None and "topk" in config:
            f = relu(top(K, pre, pre))
        elif "activation_function.threshold" in t and "relu" not in (config or ""):
            f = f * (pre > t["activation_function.threshold"])
        out = f @ t["W_dec"] + t["b_dec"]
        return f, out + x @ t["W_skip"].T if "W_skip" in t else out

    dictionary = read_dictionary(tmp_path)
    agrees(dictionary, twin)
    assert dictionary.transcoder
    expected = (None, None) if config is None else ("blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out")
    assert (dictionary.origin.hook, dictionary.origin.hook_out) == expected


def test_k_may_stand_among_the_tensors(tmp_path):
    write(tmp_path, "layer_0.safetensors", tracer_tensors() | {"k": torch.tensor(K)})
    assert read_dictionary(tmp_path).activation.k == K  # pyright: ignore[reportAttributeAccessIssue]


def test_a_topk_transcoder_without_k_is_refused(tmp_path):
    config = TRACER + "activation: topk\n"
    write(tmp_path, "layer_0.safetensors", tracer_tensors(), config_yaml=config)
    with pytest.raises(DictionaryError, match=r"neither it nor config\.yaml says k"):
        read_dictionary(tmp_path)


@pytest.mark.parametrize("name", ["W_enc_0", "W_dec_0"])
def test_cross_layer_transcoders_are_refused_by_name(tmp_path, name):
    write(tmp_path, f"{name}.safetensors", random_tensors({name: (F, 4, D)}))
    with pytest.raises(UnsupportedDictionaryError) as caught:
        read_dictionary(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / name}.safetensors is part of a cross-layer transcoder: its features write to "
        "every layer after theirs, and a dictionary here writes one site.\n"
        "Use per-layer transcoders (model_kind: transcoder_set)."
    )


# Gemma Scope


def scope_tensors() -> dict[str, Tensor]:
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
    return random_tensors(shapes)


def scope_twin(t: dict[str, Tensor]) -> Twin:
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = x @ t["W_enc"] + t["b_enc"]
        f = relu(pre) * (pre > t["threshold"])
        return f, f @ t["W_dec"] + t["b_dec"]

    return run


@pytest.mark.parametrize(
    ("folder", "hook", "hook_out"),
    [
        ("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "blocks.20.hook_resid_post", 0),
        ("models--google--gemma-scope-2b-pt-mlp/snapshots/0/layer_3/w", "blocks.3.hook_mlp_out", 0),
        ("gemma-scope-9b-it-att/layer_4/w", "blocks.4.attn.hook_z", 0),
        (
            "gemma-scope-2b-pt-transcoders/layer_5/w",
            "blocks.5.ln2.hook_normalized",
            "blocks.5.hook_mlp_out",
        ),
        ("elsewhere/w", None, 0),
    ],
)
def test_gemma_scope_computes_the_same_and_its_folders_name_the_place(
    tmp_path, folder, hook, hook_out
):
    tensors = scope_tensors()
    write(tmp_path / folder, "params.npz", tensors)
    dictionary = read_dictionary(tmp_path / folder)
    agrees(dictionary, scope_twin(tensors))
    assert (dictionary.origin.hook, dictionary.origin.hook_out) == (hook, hook_out or None)
    assert dictionary.transcoder == bool(hook_out)


def test_gemma_scope_s_embeddings_are_those_before_their_multiplication(tmp_path):
    tensors = scope_tensors()
    folder = tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k"
    write(folder, "params.npz", tensors)
    dictionary = read_dictionary(folder)
    trained, size = scope_twin(tensors), D**0.5

    def twin(x: Tensor) -> tuple[Tensor, Tensor]:
        features, reconstruction = trained(x / size)
        return features, reconstruction * size

    agrees(dictionary, twin)
    assert dictionary.origin.hook == "hook_embed"


def test_an_archive_with_objects_is_not_opened(tmp_path):
    import numpy as np

    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DictionaryError, match="cannot be read: Object arrays cannot be loaded"):
        read_dictionary(tmp_path)


# sparsify


@pytest.mark.parametrize("changes", [{}, {"signed": True}, {"transcode": True}, {"skip": True}])
@pytest.mark.parametrize("turned", [False, True])
def test_sparsify_computes_the_same(tmp_path, changes, turned):
    shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}
    t = random_tensors(shapes | ({"W_skip": (D, D)} if changes.get("skip") else {}))
    saved = t | ({"W_dec": t["W_dec"].T} if turned else {})
    config = {"d_in": D, "num_latents": F, "k": K, "normalize_decoder": True, **changes}
    write(tmp_path / "layers.3.mlp", "sae.safetensors", saved, cfg_json=config)

    def twin(x: Tensor) -> tuple[Tensor, Tensor]:
        inside = x if changes.get("transcode") else x - t["b_dec"]
        pre = inside @ t["encoder.weight"].T + t["encoder.bias"]
        f = top(K, pre, pre.abs()) if changes.get("signed") else relu(top(K, pre, pre))
        out = f @ t["W_dec"] + t["b_dec"]
        return f, out + x @ t["W_skip"].T if changes.get("skip") else out

    dictionary = read_dictionary(tmp_path / "layers.3.mlp")
    agrees(dictionary, twin)
    hooks = (dictionary.origin.hook, dictionary.origin.hook_out)
    transcodes = changes.get("transcode", False)
    assert hooks == (
        ("layers.3.mlp.input", "layers.3.mlp") if transcodes else ("layers.3.mlp", None)
    )


def test_sparsify_without_its_configuration_or_with_more_than_topk_is_refused(tmp_path):
    shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}
    write(tmp_path, "sae.safetensors", random_tensors(shapes))
    with pytest.raises(DictionaryError, match=r"its cfg\.json with d_in and k is missing"):
        read_dictionary(tmp_path)
    for more, reason in (
        ({"activation": "groupmax"}, "activation 'groupmax' is not supported, only 'topk'"),
        ({"embed_skip": True}, "embed_skip is not supported: it adds a map of the model's embed"),
    ):
        config = {"d_in": D, "num_latents": F, "k": K, **more}
        write(tmp_path, "sae.safetensors", random_tensors(shapes), cfg_json=config)
        with pytest.raises(UnsupportedDictionaryError, match=reason):
            read_dictionary(tmp_path)


# files that are none


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DictionaryError) as caught:
        read_dictionary(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no weights (.safetensors, .npz, .pt, .pth, .bin); it holds: nothing.\n"
        "Name the folder of one dictionary; hw.Dictionaries.read(folder) looks into folders of it."
    )


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DictionaryError, match=r"there is no file or folder .*/nowhere\.$"):
        read_dictionary(tmp_path / "nowhere")


def test_a_folder_of_several_files_is_refused_with_their_names(tmp_path):
    for layer in range(2):
        write(tmp_path, f"layer_{layer}.safetensors", tracer_tensors())
    with pytest.raises(DictionaryError) as caught:
        read_dictionary(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds 2 files of weights: layer_0.safetensors, layer_1.safetensors.\n"
        "Name one of them, or read all of them: hw.Dictionaries.read(folder)."
    )


class Thing:
    """What a pickle may hold."""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty.\nFetch the file again."),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a pointer of Git LFS, not the file itself.\nFetch that: git lfs pull.",
        ),
    ],
)
@pytest.mark.parametrize("name", ["ae.pt", "sae_weights.safetensors", "params.npz"])
def test_a_file_that_holds_nothing_is_said_to(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DictionaryError) as refused:
        read_dictionary(tmp_path)
    assert str(refused.value) == f"{tmp_path / name} {said}"


def test_pickled_objects_are_not_opened(tmp_path):
    torch.save({"model": Thing()}, tmp_path / "ae.pt")
    with pytest.raises(DictionaryError) as caught:
        read_dictionary(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'ae.pt'} holds pickled objects besides tensors, and headwater opens no "
        "pickle.\nLoad it with the library that wrote it and save its state_dict()."
    )
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Thing()))
    with pytest.raises(DictionaryError, match="headwater opens no pickle"):
        read_dictionary(tmp_path)


def test_an_optimizer_s_file_is_refused_with_its_keys(tmp_path):
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.pt")
    with pytest.raises(DictionaryError) as caught:
        read_dictionary(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'optimizer.pt'} is of no known format. It holds: param_groups, state; no "
        "configuration beside it.\nRead are: SAELens, Gemma Scope, circuit-tracer, sparsify, "
        "dictionary_learning. A SAELens folder needs its cfg.json."
    )


def test_a_tensor_without_a_name_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "ae.pt")
    with pytest.raises(DictionaryError, match="holds a Tensor, not tensors by name"):
        read_dictionary(tmp_path)


def test_saelens_weights_without_their_configuration_are_refused(tmp_path):
    write(tmp_path, WEIGHTS, random_tensors(SAELENS_KEYS["jumprelu"]))
    with pytest.raises(DictionaryError, match=r"A SAELens folder needs its cfg\.json"):
        read_dictionary(tmp_path)


def test_damaged_files_are_named(tmp_path):
    (tmp_path / WEIGHTS).write_bytes(b"not a header")
    with pytest.raises(DictionaryError, match=f"{WEIGHTS} cannot be read"):
        read_dictionary(tmp_path)
    write(tmp_path, WEIGHTS, random_tensors(SAELENS_KEYS["standard"]))
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(DictionaryError, match=r"cfg\.json cannot be read"):
        read_dictionary(tmp_path)


# writing


def made(activation: str, *, transcoder: bool = False, skip: bool = False, **more: Any):
    """A random dictionary in memory."""
    out = O if transcoder else D
    t = random_tensors(
        {"e": (D, F), "eb": (F,), "d": (F, out), "db": (out,), "skip": (D, out)}
        | dict.fromkeys(("threshold", "gate", "magnitude", "r_mag"), (F,))
    )
    activations = {
        "relu": Relu(),
        "jumprelu": JumpRelu(t["threshold"]),
        "topk": TopK(K),
        "topk by norm": TopK(K, t["d"].norm(dim=1)),
        "signed topk": TopK(K, signed=True),
        "gated": Gated(t["gate"], t["magnitude"], t["r_mag"].exp()),
    }
    return Dictionary(
        encoder=t["e"],
        encoder_bias=t["eb"],
        decoder=t["d"],
        decoder_bias=t["db"],
        activation=activations[activation],
        transcoder=transcoder,
        skip=t["skip"] if skip else None,
        **more,
    )


EVERY = ["relu", "jumprelu", "topk", "topk by norm", "signed topk", "gated"]


@pytest.mark.parametrize("scaling", ["none", "layer_norm", "constant_norm"])
@pytest.mark.parametrize("activation", EVERY)
def test_what_is_written_is_read_back(tmp_path, activation, scaling):
    dictionary = made(activation, scaling=scaling)
    write_dictionary(dictionary, tmp_path, hook="layers.3.mlp.out", model="tiny")
    found = read_dictionary(tmp_path)
    x = inputs()
    assert_close(found.encode(x), dictionary.encode(x), rtol=1e-12, atol=1e-12)
    assert_close(found.reconstruct(x), dictionary.reconstruct(x), rtol=1e-12, atol=1e-12)
    assert (found.origin.hook, found.origin.model) == ("blocks.3.hook_mlp_out", "tiny")


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_transcoders_are_read_back(tmp_path, activation, skip):
    dictionary = made(activation, transcoder=True, skip=skip)
    ends = {"hook": Site(3, "mlp.in"), "hook_out": Site(3, "mlp.out")}
    write_dictionary(dictionary, tmp_path, **ends)
    found, x = read_dictionary(tmp_path), inputs()
    assert_close(found.reconstruct(x), dictionary.reconstruct(x), rtol=1e-12, atol=1e-12)
    assert (found.origin.hook, found.origin.hook_out) == (
        "blocks.3.mlp.hook_in",
        "blocks.3.hook_mlp_out",
    )


@pytest.mark.parametrize("activation", EVERY)
def test_a_written_file_holds_what_saelens_documents(tmp_path, activation):
    dictionary = made(activation)
    write_dictionary(dictionary, tmp_path, hook="blocks.3.hook_mlp_out")
    config = json.loads((tmp_path / "cfg.json").read_text())
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / WEIGHTS)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    assert shapes == SAELENS_KEYS[config["architecture"]]
    features, reconstruction = saelens_twin(config, tensors)(inputs())
    assert_close(features, dictionary.encode(inputs()), rtol=1e-12, atol=1e-12)
    assert_close(reconstruction, dictionary.reconstruct(inputs()), rtol=1e-12, atol=1e-12)
    assert config["metadata"]["sae_lens_version"] >= "6"


def test_centering_is_written_and_folded_once(tmp_path):
    metadata = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    folder, _ = saelens(
        tmp_path / "a", "standard", metadata=metadata | {"hook_name": "blocks.3.hook_resid_pre"}
    )
    dictionary = read_dictionary(folder)
    write_dictionary(dictionary, tmp_path / "b")
    found = read_dictionary(tmp_path / "b")
    assert found.centered
    assert_close(found.encoder, dictionary.encoder, rtol=1e-14, atol=1e-15)


def test_half_precision_is_written_if_asked_for(tmp_path):
    dictionary = made("relu")
    write_dictionary(dictionary, tmp_path, hook="embed", dtype=torch.float16)
    assert json.loads((tmp_path / "cfg.json").read_text())["dtype"] == "float16"
    assert torch.equal(read_dictionary(tmp_path).decoder, dictionary.decoder.half().float())
    huge = Dictionary(*(t * 1e6 for t in (dictionary.encoder, dictionary.encoder_bias)),
                      dictionary.decoder, dictionary.decoder_bias)  # fmt: skip
    with pytest.raises(DictionaryError, match=r"W_enc \[6, 10\] holds numbers up to .*e\+06"):
        write_dictionary(huge, tmp_path / "b", hook="embed", dtype=torch.float16)
    assert not (tmp_path / "b").exists()


def test_a_dictionary_is_not_replaced_unless_told_to(tmp_path):
    write_dictionary(made("relu"), tmp_path, hook="embed")
    with pytest.raises(DictionaryError) as caught:
        write_dictionary(made("topk"), tmp_path, hook="embed")
    assert str(caught.value) == (
        f"{tmp_path} holds a dictionary already.\n"
        "Choose another folder, or write_dictionary(..., overwrite=True)."
    )
    assert read_dictionary(tmp_path).origin.kind == "standard"
    write_dictionary(made("topk"), tmp_path, hook="embed", overwrite=True)
    assert read_dictionary(tmp_path).origin.kind == "topk"


def test_a_failed_write_leaves_no_dictionary(tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("headwater.dictionaries.write.write_text", fails)
    with pytest.raises(OSError, match="disk full"):
        write_dictionary(made("relu"), tmp_path, hook="embed")
    with pytest.raises(DictionaryError, match=r"A SAELens folder needs its cfg\.json"):
        read_dictionary(tmp_path)


def test_a_dictionary_of_no_place_is_not_written(tmp_path):
    with pytest.raises(DictionaryError) as caught:
        write_dictionary(made("relu", transcoder=True), tmp_path, hook="layers.3.mlp.in")
    assert str(caught.value) == (
        "a dictionary is written with the place that it is of (a transcoder with both).\n"
        "Say which: write_dictionary(dictionary, folder, hook='layers.3.mlp.out'), for a "
        "transcoder hook='layers.3.mlp.in', hook_out='layers.3.mlp.out'."
    )


def test_what_saelens_has_no_name_for_is_not_written(tmp_path):
    with pytest.raises(UnsupportedDictionaryError, match="no transcoder with TopK and scaling"):
        write_dictionary(made("topk", transcoder=True), tmp_path, hook="embed", hook_out="embed")
    with pytest.raises(UnsupportedDictionaryError, match="a skip connection in transcoders only"):
        write_dictionary(made("relu", skip=True), tmp_path, hook="embed")
    dictionary = made("topk by norm")
    odd = Dictionary(dictionary.encoder, dictionary.encoder_bias, dictionary.decoder * 2,
                     dictionary.decoder_bias, dictionary.activation)  # fmt: skip
    with pytest.raises(UnsupportedDictionaryError, match="norms that are not those of its decoder"):
        write_dictionary(odd, tmp_path, hook="embed")
    assert not any(tmp_path.iterdir())
