"""The self-proof accepts every family, refuses planted wrong records, and changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch

import tiny_models
from headwater.architectures.adapter import resolve
from headwater.architectures.table import BY_MODEL_TYPE, Family
from headwater.errors import FailedProofError
from headwater.identities import Check
from headwater.models import Model
from headwater.proof import Proof, prove

every_family = pytest.mark.parametrize("family", list(tiny_models.BUILDERS))


def model_of(family: str, dtype: torch.dtype = torch.float32) -> Model:
    module = tiny_models.shared(family) if dtype == torch.float32 else None
    module = module or tiny_models.build(family, dtype=dtype)
    return Model(module, adapter=resolve(module))


def planted(family: str, kind: str, **changes: object) -> Model:
    """The tiny model of a family with a wrong line in its record."""
    module = tiny_models.shared(family)
    record: Family = dataclasses.replace(BY_MODEL_TYPE[kind], **changes)
    return Model(module, adapter=resolve(module, record))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@every_family
def test_every_family_proves_itself(family, dtype):
    proof = prove(model_of(family, dtype))
    assert proof.holds
    assert proof.pads
    # the same kernels on the same shapes: exact, not merely close
    assert proof.error("a run from the middle layer") == 0.0
    assert proof.error("readout of the last residual") == 0.0


@pytest.mark.parametrize(
    ("family", "kind", "changes", "suspect"),
    [
        ("Llama", "llama", {"attn_write": "self_attn.q_proj"}, "attn_write='self_attn.q_proj'"),
        ("Llama", "llama", {"mlp_write": "input_layernorm"}, "mlp_write='input_layernorm'"),
        ("Llama", "llama", {"o_proj": "self_attn.q_proj"}, "o_proj='self_attn.q_proj'"),
        ("Llama", "llama", {"mid": "input_layernorm"}, "mid='input_layernorm'"),
        ("Llama", "llama", {"attn": "mlp"}, "attn='mlp'"),
        ("Gemma 2", "llama", {}, "attn_write='self_attn'"),
        ("OLMo 2", "gemma2", {"mid": "post_attention_layernorm"}, "mid='post_attention_layernorm'"),
        ("Granite", "llama", {}, "write_scale=None"),
        ("Falcon", "falcon", {"interface": True}, "interface=True"),
        ("BLOOM", "bloom", {"attn_write": "self_attention"}, "attn_write='self_attention'"),
        ("GPT-2", "gpt2", {"down": "mlp.c_fc"}, "down='mlp.c_fc'"),
        ("Falcon", "falcon", {"mutates": ()}, "mutates=() ('layers.0.mlp.out' was changed)"),
    ],
)
def test_a_planted_wrong_line_is_refused_and_named(family, kind, changes, suspect):
    with pytest.raises(FailedProofError) as caught:
        prove(planted(family, kind, **changes))
    assert "FAILED: look at" in str(caught.value)
    assert suspect in str(caught.value)


@pytest.mark.parametrize(
    ("family", "kind", "changes"),
    [
        ("Falcon", "falcon", {"returns_tuple": False}),
        ("Llama", "llama", {"returns_tuple": True}),
        ("Llama", "llama", {"o_proj": "mlp.up_proj"}),
    ],
)
def test_a_record_with_which_the_model_cannot_even_run_is_refused(family, kind, changes):
    with pytest.raises(FailedProofError, match=r"headwater/architectures/table\.py"):
        prove(planted(family, kind, **changes))


def test_the_refusal_carries_every_number_and_what_to_type():
    with pytest.raises(FailedProofError) as caught:
        prove(planted("Granite", "llama"))
    first, model, *checks, record, advice = str(caught.value).split("\n")
    assert first == "the self-proof failed, so no attribution of this model could be trusted."
    assert model == "GraniteForCausalLM as Llama, float32:"
    assert all(" error " in line and " allowed " in line for line in checks)
    assert len(checks) >= 10
    assert record.startswith("The record of Llama in headwater/architectures/table.py")
    assert advice.startswith("`hw.load(..., prove=False)` skips the proof")


@every_family
def test_the_proof_leaves_mode_flags_and_random_state_as_they_were(family):
    module = copy.deepcopy(tiny_models.shared(family)).train()
    frozen = next(module.parameters()).requires_grad_(False)
    next(iter(module.children())).eval()
    modes = [part.training for part in module.modules()]
    flags = [parameter.requires_grad for parameter in module.parameters()]
    state = torch.get_rng_state()
    prove(Model(module, adapter=resolve(module)))
    assert [part.training for part in module.modules()] == modes
    assert [parameter.requires_grad for parameter in module.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert frozen.grad is None


def test_a_check_with_nan_does_not_hold():
    assert not Check("claim", math.nan, 1.0, "suspect").holds


def test_padding_switches_a_convenience_off_and_nothing_more():
    kept = Check("claim", 0.0, 1.0, "")
    padding = Check("left padding changes nothing", 1.0, 0.1, "", binding=False)
    proof = Proof("Class", "Family", "float32", (kept, padding))
    assert proof.holds
    assert not proof.pads


def test_a_model_whose_padding_changes_numbers_is_marked():
    module = tiny_models.build("GPT-2")
    model = Model(module, adapter=resolve(module))
    model._takes = frozenset()  # as if it accepted no position ids
    model.prove()
    assert not model.anatomy().pads


def test_a_proof_is_plain_data_for_a_manifest():
    entry = prove(model_of("GPT-2")).to_dict()
    assert entry["family"] == "GPT-2"
    assert all(error <= allowed for error, allowed in entry["checks"].values())


@pytest.mark.parametrize(
    ("value", "problem"), [(math.nan, "holds NaN"), (-math.inf, "holds infinity")]
)
def test_weights_that_are_no_numbers_are_named(value, problem):
    module = tiny_models.build("Llama")
    with torch.no_grad():
        module.model.layers[0].mlp.up_proj.weight[2, 3] = value
        module.model.norm.weight[1] = value
    with pytest.raises(FailedProofError) as caught:
        prove(Model(module, adapter=resolve(module)))
    assert str(caught.value).split("\n")[0] == (
        f"LlamaForCausalLM cannot be run: parameter model.layers.0.mlp.up_proj.weight {problem}, "
        f"parameter model.norm.weight {problem}."
    )


def test_weights_without_values_are_named():
    module = tiny_models.build("GPT-2").to("meta")
    with pytest.raises(FailedProofError) as caught:
        prove(Model(module, adapter=resolve(module)))
    message = str(caught.value)
    assert "parameter transformer.wte.weight is on the meta device, without values" in message
    assert ", and " in message
