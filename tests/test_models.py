"""Loading and wrapping: what works, what is refused by name, and that nothing of yours changes."""

from __future__ import annotations

import copy
import json
import threading

import pytest
import torch
import transformers
from torch import nn

import tiny_models
from headwater import fingerprints
from headwater.architectures.table import BY_MODEL_TYPE
from headwater.errors import (
    FailedProofError,
    ModelStateError,
    PromptError,
    UnknownModelError,
    UnknownOptionError,
    UnsupportedModelError,
)
from headwater.models import Model, load, wrap
from headwater.sites import Site
from test_architectures import quantized_llama


@pytest.fixture
def folder(tmp_path):
    tiny_models.build("Llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def offline(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub.\nCheck your connection.")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)


def saved_config(tmp_path, config) -> str:
    config.save_pretrained(tmp_path)
    return str(tmp_path)


# loading


def test_the_embedded_model_loads_by_name_with_its_tokenizer():
    model = load("tiny")
    assert model.name == "tiny"
    assert model.anatomy().family.name == "Llama"
    assert model.tokenizer.is_fast
    assert model.proof is not None
    assert model.proof.holds


def test_a_folder_loads_frozen_and_in_evaluation_mode(folder):
    model = load(str(folder))
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert not any(part.training for part in model.module.modules())
    assert model.tokenizer is None


def test_parameters_stay_trainable_if_asked(folder):
    model = load(str(folder), frozen=False)
    assert all(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float64", torch.float64),
        ("bf16", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("torch.float16", torch.float16),
        (torch.float32, torch.float32),
        (None, torch.float32),
    ],
)
def test_the_dtype_is_chosen_by_name(folder, name, dtype):
    assert load(str(folder), dtype=name, prove=False).dtype == dtype


def test_an_unknown_dtype_is_answered_with_the_closest_one(folder):
    with pytest.raises(UnknownOptionError) as caught:
        load(str(folder), dtype="float46")
    assert str(caught.value) == (
        "no floating-point dtype 'float46'. Closest: 'float64', 'float16', 'float'.\n"
        "Use 'float64', 'float32', 'bfloat16' or 'float16'."
    )


def test_an_integer_dtype_is_refused(folder):
    with pytest.raises(UnknownOptionError, match=r"no floating-point dtype 'torch\.int8'"):
        load(str(folder), dtype=torch.int8)


def test_device_and_device_map_exclude_each_other(folder):
    with pytest.raises(UnknownOptionError) as caught:
        load(str(folder), device="cpu", device_map="auto")
    assert str(caught.value) == (
        "both device='cpu' and device_map='auto' were given.\n"
        "Give one: device moves the whole model, device_map spreads it."
    )


@pytest.mark.usefixtures("offline")
def test_an_unknown_name_lists_the_embedded_models_and_the_closest_one():
    with pytest.raises(UnknownModelError) as caught:
        load("tiney")
    message = str(caught.value)
    assert message.startswith(
        "no model 'tiney': not embedded, not a local folder, and the Hugging Face hub did not "
        "give it (We couldn't connect to the hub). Closest: 'tiny'"
    )
    assert "\nEmbedded: tiny" in message
    assert message.endswith("type a folder or a hub id such as 'openai-community/gpt2'.")


def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(UnknownModelError) as caught:
        load(str(tmp_path))
    assert str(caught.value) == (
        f"the folder {str(tmp_path)!r} holds no config.json, so it is no saved Hugging Face "
        "model.\nSave one there with model.save_pretrained(folder)."
    )


def test_pickled_weights_are_not_opened(folder):
    module = tiny_models.shared("Llama")
    (folder / "model.safetensors").unlink()
    torch.save(module.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UnknownModelError) as caught:
        load(str(folder))
    message = str(caught.value)
    assert message.startswith(f"the folder {str(folder)!r} could not be loaded: ")
    assert message.endswith(
        "headwater reads safetensors only: model.save_pretrained(folder) writes them."
    )


def test_an_encoder_decoder_is_refused_by_name(tmp_path):
    config = transformers.T5Config(architectures=["T5ForConditionalGeneration"])
    with pytest.raises(UnsupportedModelError) as caught:
        load(saved_config(tmp_path, config))
    assert str(caught.value) == (
        "T5ForConditionalGeneration is an encoder-decoder; headwater attributes causal "
        "(decoder-only) language models.\n`headwater models` lists the families."
    )


def test_a_model_that_predicts_no_next_token_is_refused_by_name(tmp_path):
    config = transformers.BertConfig(architectures=["BertForMaskedLM"])
    with pytest.raises(UnsupportedModelError, match=r"^BertForMaskedLM \(model_type 'bert'\)"):
        load(saved_config(tmp_path, config))


def test_a_model_type_transformers_does_not_know_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "lamma9"}')
    with pytest.raises(UnsupportedModelError, match="does not know the model"):
        load(str(tmp_path))


@pytest.mark.parametrize(("device", "near"), [("gpu", "cuda"), ("gpu:1", "cuda"), ("cud", "cuda")])
def test_a_device_nobody_knows_is_refused_before_anything_is_loaded(device, near, offline):
    with pytest.raises(UnknownOptionError) as caught:
        load("no/such-model", device=device)
    first, here = str(caught.value).split("\n")
    assert first.startswith(f"no device {device!r}. Closest: '{near}'")
    assert here.startswith("Here: 'cpu'")


def test_a_device_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UnknownOptionError) as caught:
        load("tiny", device="cuda:3")
    assert "the device 'cuda:3' is not available" in str(caught.value)
    assert "Closest: 'cuda:0'" in str(caught.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for ask in (lambda: load("tiny", device="cuda"), lambda: load("tiny").to(device="cuda")):
        with pytest.raises(UnknownOptionError, match=r"'cuda' is not available.*Closest: 'cpu'"):
            ask()


def test_loading_a_module_is_refused_with_what_to_write():
    with pytest.raises(UnsupportedModelError) as caught:
        load(tiny_models.shared("Llama"))
    assert str(caught.value) == (
        "hw.load takes the name or folder of a model, but got LlamaForCausalLM.\n"
        "For a module you already have write hw.wrap(module, tokenizer)."
    )


def test_a_folder_may_be_a_path(folder):
    assert load(folder).name == str(folder)


# prompts the model cannot embed


@pytest.mark.parametrize(("wrong", "family"), [(61, "GPT-2"), (-1, "Llama"), (999, "Mamba")])
def test_a_token_beyond_the_embedding_is_refused(wrong, family):
    model, ids = wrap(tiny_models.shared(family)), tiny_models.tokens()
    ids[1, 4] = wrong
    with pytest.raises(PromptError) as caught:
        model.forward(ids)
    name = type(model.module).__name__
    assert str(caught.value).split("\n")[0] == (
        f"token id {wrong} in prompt 1 at position 4: {name} embeds the ids 0 to 60."
    )


@pytest.mark.parametrize("family", ["GPT-2", "OPT", "GPT-Neo", "GPT-J"])
@torch.no_grad()
def test_prompts_longer_than_the_learned_positions_are_refused(family):
    module = tiny_models.shared(family)
    model = wrap(module)
    ids = tiny_models.tokens(positions=64)
    assert torch.equal(model.forward(ids), module(ids).logits)
    with pytest.raises(PromptError, match=r"^a prompt of 65 tokens, but .* for only 64\.\n"):
        model.forward(tiny_models.tokens(positions=65))


@torch.no_grad()
def test_padding_takes_no_learned_position():
    module = tiny_models.shared("GPT-2")
    ids = tiny_models.tokens(positions=70)
    mask = torch.arange(70).expand(2, -1) >= 10
    alone = module(ids[:, 10:]).logits
    torch.testing.assert_close(wrap(module).forward(ids, mask=mask)[:, 10:], alone)


@pytest.mark.parametrize("family", ["Llama", "Falcon", "BLOOM", "Mamba"])
@torch.no_grad()
def test_computed_positions_have_no_limit(family):
    model = wrap(tiny_models.shared(family))
    assert model.forward(tiny_models.tokens(positions=70)).shape[1] == 70


# wrapping


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: "tiny", "but got str.\nTo load a model by its name write hw.load('tiny')."),
        (lambda: wrap(nn.Linear(1, 1)), "but got Model.\nIt is wrapped already: use it as it is"),
        (lambda: 3, "but got int.\nWrite hw.wrap(module, tokenizer)"),
    ],
)
def test_wrapping_what_is_no_module_is_refused_with_what_to_write(given, message):
    with pytest.raises(UnsupportedModelError) as caught:
        wrap(given())
    assert str(caught.value).startswith("hw.wrap takes a torch.nn.Module, " + message)


def test_wrapping_changes_neither_flags_nor_mode():
    module = tiny_models.build("Qwen2").train()
    module.lm_head.weight.requires_grad_(False)
    module.model.layers[0].eval()
    flags = [parameter.requires_grad for parameter in module.parameters()]
    modes = [part.training for part in module.modules()]
    model = wrap(module)
    assert model.module is module
    assert [parameter.requires_grad for parameter in module.parameters()] == flags
    assert [part.training for part in module.modules()] == modes


def test_any_network_can_be_wrapped_and_attribution_says_why_not():
    model = wrap(nn.Linear(3, 2))
    assert model.adapter is None
    with pytest.raises(UnsupportedModelError) as caught:
        model.anatomy()
    assert str(caught.value) == (
        "Linear is no Hugging Face language model, so it has no sites to attribute to.\n"
        "Traces work on any module; for attribution give hw.GatedFunction(fn, names)."
    )


def test_a_bare_backbone_is_refused_by_name():
    model = wrap(tiny_models.shared("Llama").model)
    with pytest.raises(UnsupportedModelError, match="LlamaModel has not the parts of Llama"):
        model.anatomy()


def test_a_patched_model_that_fails_its_proof_is_refused_with_the_numbers():
    module = tiny_models.build("Llama")
    attention = module.model.layers[1].self_attn
    attention.register_forward_hook(lambda _, args, output: (output[0] * 2, output[1]))
    norm = module.model.layers[1].post_attention_layernorm
    norm.register_forward_pre_hook(lambda _, args: (args[0] * 0.5,))
    model = wrap(module)
    with pytest.raises(FailedProofError, match="FAILED: look at"):
        model.anatomy()


class PeftModel(nn.Module):
    """As in PEFT: the adapted model is `base_model.model`."""

    def __init__(self, module: nn.Module, *, prompt_learning: bool = False) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = module
        self.active_peft_config = type(
            "Config", (), {"is_prompt_learning": prompt_learning, "peft_type": "PREFIX_TUNING"}
        )


class LoraLinear(nn.Module):
    """As in PEFT: a projection with a low-rank part beside it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.lora_A = nn.Linear(self.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, self.out_features, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.base_layer(hidden_states) + self.lora_B(self.lora_A(hidden_states))


def test_a_peft_model_runs_with_its_adapters():
    module = tiny_models.build("Llama")
    for layer in module.model.layers:
        layer.self_attn.o_proj = LoraLinear(layer.self_attn.o_proj)
        layer.mlp.down_proj = LoraLinear(layer.mlp.down_proj)
    model, ids = wrap(PeftModel(module)), tiny_models.tokens()
    assert model.module is module
    assert model.notes == ("the PEFT adapters run as part of the model inside the PeftModel",)
    torch.testing.assert_close(model.forward(ids), module(ids).logits)


def test_prompt_learning_adapters_are_refused_by_name():
    model = wrap(PeftModel(tiny_models.shared("Llama"), prompt_learning=True))
    with pytest.raises(UnsupportedModelError) as caught:
        model.anatomy()
    assert str(caught.value) == (
        "PEFT PREFIX_TUNING adds virtual tokens outside the model, so positions would not be "
        "those of the prompt.\nMerge or drop the adapter: hw.wrap(model.get_base_model())."
    )


def test_a_compiled_model_runs_uncompiled_and_says_so():
    module, ids = tiny_models.build("Llama"), tiny_models.tokens()
    model = wrap(torch.compile(module, backend="eager"))
    assert model.module is module
    assert model.notes == ("torch.compile is bypassed: compiled code skips hooks",)
    torch.testing.assert_close(model.forward(ids), module(ids).logits)


def test_parts_compiled_in_place_run_uncompiled_and_stay_compiled():
    module, ids = tiny_models.build("Llama"), tiny_models.tokens()
    plain = module(ids).logits

    def compiled(*_, **__):
        raise AssertionError("compiled code ran")

    for part in (module, module.model.layers[1]):
        part._compiled_call_impl = compiled
    model = wrap(module)
    assert torch.equal(model.forward(ids), plain)
    assert module._compiled_call_impl is compiled
    assert module.model.layers[1]._compiled_call_impl is compiled


class DistributedDataParallel(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class FullyShardedDataParallel(DistributedDataParallel):
    pass


def test_data_parallel_wrappers_are_looked_through():
    module = tiny_models.shared("GPT-2")
    assert wrap(DistributedDataParallel(module)).module is module


def test_sharded_models_are_refused_by_name():
    model = wrap(FullyShardedDataParallel(tiny_models.shared("GPT-2")))
    with pytest.raises(UnsupportedModelError, match="Load the model with device_map='auto'"):
        model.anatomy()


def test_a_quantized_model_is_proved_and_hashed_like_any_other():
    model = wrap(quantized_llama())
    assert model.anatomy().n_layers == 2
    assert model.proof is not None
    assert len(model.fingerprint()["weights_hash"]) == 64


def test_a_quantized_model_is_not_converted():
    module = quantized_llama()
    module.is_quantized = True
    with pytest.raises(UnsupportedModelError, match="is quantized: its weights cannot be conv"):
        wrap(module).to(dtype="float64")


def text_fields(**fields):
    return {
        "vocab_size": tiny_models.VOCAB,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **fields,
    }


VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def gemma3_with_vision() -> nn.Module:
    text = text_fields(head_dim=8, sliding_window=4)
    config = transformers.Gemma3Config(
        text_config=text, vision_config=VISION, image_token_index=60, mm_tokens_per_image=4
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def llava() -> nn.Module:
    vision = transformers.CLIPVisionConfig(**VISION, projection_dim=8)
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**text_fields()),
        vision_config=vision,
        image_token_index=60,
    )
    return transformers.LlavaForConditionalGeneration(config)


@pytest.mark.parametrize("build", [gemma3_with_vision, llava])
def test_the_language_model_inside_a_multimodal_model_is_attributed(build):
    module, ids = build().eval(), tiny_models.tokens(positions=5) % 50
    model = wrap(module)
    assert model.anatomy().n_layers == 2
    with torch.no_grad():
        assert torch.equal(model.forward(ids), module(input_ids=ids).logits)


# state


def test_frozen_gives_back_every_flag():
    module = tiny_models.build("GPT-2")
    module.transformer.wte.weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in module.parameters()]
    inside = []

    def fail():
        inside.extend(parameter.requires_grad for parameter in module.parameters())
        raise KeyError

    with pytest.raises(KeyError), wrap(module).frozen():
        fail()
    assert not any(inside)
    assert [parameter.requires_grad for parameter in module.parameters()] == flags


def test_active_dropout_is_refused_by_name():
    module = tiny_models.build("GPT-2").train()
    with pytest.raises(ModelStateError) as caught, wrap(module).frozen():
        pass
    assert str(caught.value) == (
        "dropout is active in transformer.drop (p=0.1), transformer.h.0.attn.attn_dropout "
        "(p=0.1), transformer.h.0.attn.resid_dropout (p=0.1) and 4 more: the model is in training "
        "mode, so every run would give other numbers.\nCall model.eval() first."
    )


def test_a_dropout_rate_without_a_module_is_found():
    module = tiny_models.build("Llama").train()
    module.model.layers[1].self_attn.attention_dropout = 0.25
    with (
        pytest.raises(
            ModelStateError,
            match=r"model\.layers\.1\.self_attn\.attention_dropout \(p=0\.25\): the model",
        ),
        wrap(module).frozen(),
    ):
        pass


def test_training_mode_without_dropout_is_fine():
    module = tiny_models.build("Llama").train()
    with wrap(module).frozen():
        pass
    assert module.training


def test_to_makes_a_converted_copy():
    model, ids = load("tiny"), torch.tensor([[5, 6, 7, 8]])
    twin = model.to(dtype="float64")
    assert (model.dtype, twin.dtype) == (torch.float32, torch.float64)
    assert twin.module is not model.module
    with torch.no_grad():
        double, single = twin.forward(ids), model.forward(ids)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, atol=1e-4, rtol=1e-4)


def test_two_wrappers_of_one_module_share_its_lock():
    module = tiny_models.shared("Llama")
    assert wrap(module).lock is wrap(module).lock


def test_threads_that_stub_the_same_layers_do_not_disturb_each_other():
    module, ids = tiny_models.shared("Llama"), tiny_models.tokens()
    kept = {}
    with torch.no_grad():
        keep = {Site(1, "resid_pre"): lambda x: kept.__setitem__("residual", x.clone())}
        expected = wrap(module).forward(ids, taps=keep)
    wrong = []

    def work():
        model = wrap(module)
        with torch.no_grad():
            for _ in range(10):
                for start in (None, (1, kept["residual"])):
                    if not torch.equal(model.forward(ids, start=start), expected):
                        wrong.append(start)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


@torch.no_grad()
def test_explicit_positions_are_passed_on():
    model, ids = wrap(tiny_models.shared("GPT-2")), tiny_models.tokens()
    shifted = torch.arange(7).expand(2, 7) + 3
    expected = model.module(ids, position_ids=shifted).logits
    assert torch.equal(model.forward(ids, position_ids=shifted), expected)
    assert not torch.equal(model.forward(ids), expected)


# identity


def test_the_same_weights_have_the_same_fingerprint():
    model = wrap(tiny_models.shared("Llama"))
    assert model.fingerprint() == wrap(tiny_models.build("Llama")).fingerprint()


def test_one_changed_weight_changes_the_fingerprint():
    module = tiny_models.build("Llama")
    before = wrap(module).fingerprint()
    with torch.no_grad():
        module.lm_head.weight[3, 3] += 1e-3
    after = wrap(module).fingerprint()
    assert after["weights_hash"] != before["weights_hash"]
    assert after["config_hash"] == before["config_hash"]


def test_a_changed_configuration_changes_the_fingerprint():
    module = copy.deepcopy(tiny_models.shared("Llama"))
    before = fingerprints.config_hash(module.config)
    module.config.rms_norm_eps = 1e-3
    assert fingerprints.config_hash(module.config) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_weights_are_hashed_by_sample(dtype):
    big = nn.Linear(1024, 1100, bias=False, dtype=dtype)
    before = fingerprints.weights_hash(big)
    assert fingerprints.weights_hash(big) == before
    with torch.no_grad():
        big.weight.mul_(1.01)
    assert fingerprints.weights_hash(big) != before


def test_weights_that_are_not_loaded_are_hashed_by_shape():
    with torch.device("meta"):
        module = nn.Linear(3, 2)
    assert len(fingerprints.weights_hash(module)) == 64


def test_the_tokenizer_is_part_of_the_fingerprint():
    assert len(load("tiny", prove=False).fingerprint()["tokenizer_hash"]) == 64


def test_a_description_is_plain_data():
    described = json.loads(json.dumps(load("tiny").describe()))
    assert described["family"] == "Llama"
    assert described["n_kv_heads"] == 2
    assert described["sites"][0]["site"] == "embed"


def test_a_model_prints_on_one_line():
    model = wrap(tiny_models.shared("Qwen3"))
    assert repr(model) == (
        "Model('Qwen3ForCausalLM', Qwen3ForCausalLM, 2 layers, 4 heads, d_model 24, torch.float32)"
    )


def test_a_model_needs_no_record_of_its_own_to_be_tried():
    """`prove=False` and an explicit adapter: how a new family is brought up."""
    module = tiny_models.shared("Qwen2")
    from headwater.architectures.adapter import resolve

    model = Model(module, adapter=resolve(module, BY_MODEL_TYPE["llama"]))
    assert model.prove().holds
