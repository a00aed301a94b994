"""Direct logit attribution, held against sums by hand, formulas of norms, and plain ablations."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import headwater as hw
import tiny_models
import tiny_tasks
from headwater.directs import removed
from headwater.directs.asked import task_of
from headwater.directs.attribute import Decomposition, attribute_logit
from headwater.directs.linear import LinearMap
from headwater.directs.norms import probed
from headwater.directs.parts import Part
from headwater.directs.result import LogitAttribution
from headwater.endings import Ending
from headwater.errors import (
    AnswerError,
    GateError,
    MissingFieldError,
    ModelGoneError,
    ModelStateError,
    NestedComponentsError,
    PromptError,
    ResultError,
    RunFolderError,
    UnavailableSiteError,
    UnknownComponentError,
    UnsupportedModelError,
)
from headwater.models import Model
from headwater.precision import context_for, true_float64
from shape_checks import unchecked

FAMILIES = tuple(tiny_models.BUILDERS)
HOME = torch.device("cpu")
IDS = [5, 9, 31, 8, 44, 12, 27]
SHORT = [40, 7, 19, 33]
PROMPT = tiny_tasks.text(IDS)
ANSWER, WRONG = 20, 30
SENTENCE = "Mary and John went to the store , John gave a drink to"


def offers(model: Model, site: str) -> bool:
    return any(one.name == site for one in model.sites())


def finest(model: Model) -> Any:
    """The finest parts a family has."""
    if offers(model, "mixer.out"):
        return hw.channels()
    return hw.heads() + (hw.neurons() if offers(model, "mlp.post") else hw.mlps())


def twin(model: Model) -> Any:
    """A copy of the module whose weights ask for no gradient, to compute with by hand."""
    return model.to().module.requires_grad_(False)


def own_logits(model: Model, ids: list[int], position: int = -1) -> Tensor:
    """The model's logits at one position, from a plain call of the module."""
    with torch.no_grad(), context_for(model.module):
        return model.module(torch.tensor([ids])).logits[0, position]


def seen(module: nn.Module, ids: list[int], wanted: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Inputs of modules at the last position in a plain run, by plain hooks."""
    found: dict[str, Tensor] = {}
    handles = [
        one.register_forward_pre_hook(
            lambda _, args, name=name: found.__setitem__(name, args[0][0, -1].clone())
        )
        for name, one in wanted.items()
    ]
    with torch.no_grad(), true_float64():
        module(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return found


# --- the sum ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_sum_to_the_logit_difference_of_every_family(family: str) -> None:
    model = tiny_tasks.model(family)
    found = attribute_logit(model, PROMPT, ANSWER, against=WRONG, components=finest(model))
    logits = own_logits(model, IDS)
    cap = getattr(model.module.config, "final_logit_softcapping", None)
    if cap:
        logits = cap * torch.atanh(logits / cap)
    expected = float(logits[ANSWER] - logits[WRONG])
    assert float(found.scores[:, :-1].sum()) == pytest.approx(expected, abs=1e-12)
    assert abs(float(found.rounding)) < 1e-12
    assert found.names[-1] == "rounding"


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_neurons_and_channels_with_their_biases_sum_to_the_whole_write(family: str) -> None:
    model = tiny_tasks.model(family)
    fine = attribute_logit(model, PROMPT, ANSWER, components=finest(model))
    coarse = attribute_logit(model, PROMPT, ANSWER)
    for part in coarse.parts:
        if part.kind in ("attention", "mlp", "mixer"):
            inside = [
                one.name
                for one in fine.parts
                if one.name == part.name or one.name.startswith((f"{part.name}.", f"{part.name} "))
            ]
            assert len(inside) > 1 or part.kind == "mlp"
            together = sum(float(fine[name]) for name in inside)
            assert together == pytest.approx(float(coarse[part.name]), abs=1e-12)
    assert float(fine["input"]) == float(coarse["input"])


def test_what_was_not_asked_for_stays_whole() -> None:
    found = attribute_logit(
        tiny_tasks.model("GPT-2"), PROMPT, ANSWER, components=hw.neurons(layers=1)
    )
    assert [one.name for one in found.parts if not one.asked] == [
        "input", "a0", "m0", "a1", "m1 bias", "norm bias", "rounding",
    ]  # fmt: skip
    assert len([one for one in found.parts if one.asked]) == 96
    assert found.asked[:2] == ("m1.n0", "m1.n1")


def test_gpt2_by_hand() -> None:
    model = tiny_tasks.model("GPT-2")
    module = twin(model)
    block, norm = module.transformer.h[1], module.transformer.ln_f
    values = seen(module, IDS, {"z": block.attn.c_proj, "post": block.mlp.c_proj, "last": norm})
    centered = values["last"] - values["last"].mean()
    size = (centered.square().mean() + norm.eps).sqrt()
    row = module.lm_head.weight[ANSWER] - module.lm_head.weight[WRONG]

    def share(write: Tensor) -> float:
        return float(((write - write.mean()) / size * norm.weight) @ row)

    found = attribute_logit(
        model, PROMPT, ANSWER, against=WRONG, components=hw.heads(layers=1) + hw.neurons(layers=1)
    )
    for head in range(4):
        own = slice(6 * head, 6 * head + 6)
        write = values["z"][own] @ block.attn.c_proj.weight[own]
        assert float(found[f"a1.h{head}"]) == pytest.approx(share(write), abs=1e-13)
    for neuron in (0, 17, 95):
        write = values["post"][neuron] * block.mlp.c_proj.weight[neuron]
        assert float(found[f"m1.n{neuron}"]) == pytest.approx(share(write), abs=1e-13)
    assert float(found["a1 bias"]) == pytest.approx(share(block.attn.c_proj.bias), abs=1e-13)
    assert float(found["m1 bias"]) == pytest.approx(share(block.mlp.c_proj.bias), abs=1e-13)
    assert float(found["norm bias"]) == pytest.approx(float(norm.bias @ row), abs=1e-13)
    embedded = module.transformer.wte.weight[IDS[-1]] + module.transformer.wpe.weight[len(IDS) - 1]
    assert float(found["input"]) == pytest.approx(share(embedded), abs=1e-13)


def test_llama_by_hand() -> None:
    model = tiny_tasks.model("Llama")
    module = twin(model)
    layer, norm = module.model.layers[0], module.model.norm
    values = seen(
        module, IDS, {"z": layer.self_attn.o_proj, "post": layer.mlp.down_proj, "last": norm}
    )
    size = (values["last"].square().mean() + norm.variance_epsilon).sqrt()
    reads = module.lm_head.weight[ANSWER] * norm.weight / size
    found = attribute_logit(
        model, PROMPT, ANSWER, components=hw.heads(layers=0) + hw.neurons(layers=0)
    )
    for head in range(4):
        own = slice(6 * head, 6 * head + 6)
        write = layer.self_attn.o_proj.weight[:, own] @ values["z"][own]
        assert float(found[f"a0.h{head}"]) == pytest.approx(float(write @ reads), abs=1e-13)
    for neuron in range(40):
        write = layer.mlp.down_proj.weight[:, neuron] * values["post"][neuron]
        assert float(found[f"m0.n{neuron}"]) == pytest.approx(float(write @ reads), abs=1e-13)
    embedded = module.model.embed_tokens.weight[IDS[-1]]
    assert float(found["input"]) == pytest.approx(float(embedded @ reads), abs=1e-13)


def test_a_head_bias_and_several_answers_are_means() -> None:
    model = tiny_tasks.model("GPT-J")
    found = attribute_logit(model, PROMPT, [ANSWER, 21, 22], against=WRONG)
    bias: Any = model.module.lm_head.bias.detach()  # type: ignore[union-attr]
    expected = float(bias[[ANSWER, 21, 22]].mean() - bias[WRONG])
    assert float(found["head bias"]) == pytest.approx(expected, abs=1e-14)
    logits = own_logits(model, IDS)
    expected = float(logits[[ANSWER, 21, 22]].mean() - logits[WRONG])
    assert float(found.values) == pytest.approx(expected, abs=1e-12)


def test_a_soft_cap_is_said_and_both_logits_are_given() -> None:
    model = tiny_tasks.model("Gemma 2")
    found = attribute_logit(model, PROMPT, ANSWER)
    after = float(own_logits(model, IDS)[ANSWER])
    assert found.capped is not None
    assert float(found.capped) == pytest.approx(after, abs=1e-12)
    before = 30 * math.atanh(after / 30)
    assert float(found.values) == pytest.approx(before, abs=1e-12)
    assert abs(before - after) > 1e-4
    assert "caps its logits at 30" in repr(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Gemma 2", "Granite", "Mamba"])
def test_what_rounding_leaves_is_a_row_of_its_own(family: str, dtype: torch.dtype) -> None:
    model = tiny_tasks.model(family, dtype)
    found = attribute_logit(model, PROMPT, ANSWER, components=finest(model))
    with torch.no_grad():
        logits = model.module(torch.tensor([IDS])).logits[0, -1].double()
    own = found.values if found.capped is None else found.capped
    # the model run by headwater unembeds one position only, which may round otherwise
    assert float(own) == pytest.approx(float(logits[ANSWER]), abs=8 * torch.finfo(dtype).eps * 8)
    assert float(found.scores.sum()) == pytest.approx(float(found.values), abs=1e-12)
    spread = float(logits.max() - logits.min())
    bound = 1e-4 if dtype == torch.float32 else 0.02
    assert 1e-10 < abs(float(found.rounding)) < bound * spread


def test_in_bfloat16_parts_are_those_of_float64() -> None:
    narrow = hw.wrap(tiny_models.build("Llama", dtype=torch.bfloat16), tiny_tasks.tokenizer())
    fine = attribute_logit(narrow, PROMPT, ANSWER, components=hw.heads())
    wide = attribute_logit(narrow, PROMPT, ANSWER, components=hw.heads(), dtype="float64")
    off = (fine.scores - wide.scores)[:, :-1].norm() / wide.scores[:, :-1].norm()
    assert 1e-4 < float(off) < 0.02  # the model's own rounding of activations


# --- the norm --------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [2, 7, 24])
@pytest.mark.parametrize("kind", ["layer", "rms", "gemma", "plain layer"])
def test_a_probed_norm_is_its_formula(kind: str, width: int) -> None:
    torch.manual_seed(0)
    made: dict[str, Any] = {
        "layer": lambda: nn.LayerNorm(width),
        "plain layer": lambda: nn.LayerNorm(width, elementwise_affine=False),
        "rms": lambda: LlamaRMSNorm(width),
        "gemma": lambda: GemmaRMSNorm(width),
    }
    module = made[kind]()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    norm = probed(module, width, torch.float32, HOME)
    ones = torch.ones(width)
    gain = {"gemma": lambda: 1 + module.weight.double(), "plain layer": lambda: ones}.get(
        kind, lambda: module.weight
    )()
    bias = module.bias if kind == "layer" else 0 * ones
    torch.testing.assert_close(norm.gain, gain.detach().double(), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(norm.bias, bias.detach().double(), atol=1e-14, rtol=0)
    assert norm.centers == ("layer" in kind)
    value, direction = torch.randn(2, 3, width, dtype=torch.float64)
    shape = value - value.mean(-1, keepdim=True) if norm.centers else value
    eps = getattr(module, "eps", None) or module.variance_epsilon
    expected = shape / (shape.square().mean(-1, keepdim=True) + eps).sqrt() * gain
    pulled = norm.frozen(value).pull(direction)
    torch.testing.assert_close(
        (pulled * value).sum(-1), (direction * expected).sum(-1).detach(), atol=1e-10, rtol=1e-10
    )
    torch.testing.assert_close(norm(value), (expected + bias).detach(), atol=1e-12, rtol=1e-12)


def test_a_norm_of_another_form_is_refused_with_the_number() -> None:
    class Squashing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, value: Tensor) -> Tensor:
            return self.weight * value / (1 + value.abs())

    norm = probed(Squashing(), 8, torch.float32, HOME)
    with pytest.raises(UnsupportedModelError, match=r"Squashing is not gain .* off by 0\.\d+"):
        norm.frozen(torch.linspace(-1, 3, 8, dtype=torch.float64)[None])


def test_a_quantized_projection_is_used_as_it_is() -> None:
    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("whole", torch.randint(-8, 8, (5, 6), dtype=torch.int8))

        def forward(self, value: Tensor) -> Tensor:
            return value @ (self.whole.to(value.dtype) * 0.25).T + 0.5  # type: ignore[operator]

    module = Quantized()
    linear = LinearMap(module, 6, torch.float32, HOME)
    weight = module.whole.double() * 0.25  # type: ignore[operator]
    direction = torch.randn(2, 5, dtype=torch.float64)
    assert torch.equal(linear.bias, torch.full((5,), 0.5, dtype=torch.float64))
    assert torch.equal(linear.columns(2, 5), weight.T[2:5])
    torch.testing.assert_close(linear.pull(direction), direction @ weight, atol=1e-5, rtol=1e-5)


def test_logits_that_something_else_changes_are_refused() -> None:
    module = tiny_models.build("Llama", dtype=torch.float64)
    module.register_forward_hook(
        lambda _, args, output: output.__setitem__("logits", output.logits + output.logits**2)
    )
    model = Model(module, tiny_tasks.tokenizer(), adapter=tiny_tasks.resolve(module))
    with pytest.raises(UnsupportedModelError, match="not the unembedding of the normed last"):
        attribute_logit(model, PROMPT, ANSWER)


def test_parts_that_miss_the_logit_are_refused_with_the_numbers() -> None:
    module = tiny_models.build("Llama", dtype=torch.float64)
    module.model.layers[1].register_forward_hook(lambda _, args, output: output + 1)  # type: ignore[union-attr]
    model = Model(module, tiny_tasks.tokenizer(), adapter=tiny_tasks.resolve(module))
    with pytest.raises(UnsupportedModelError, match=r"parts miss the model's own logit by \d"):
        attribute_logit(model, PROMPT, ANSWER)


# --- exact effects ---------------------------------------------------------------------------


def test_direct_effects_of_gpt2_are_those_of_a_plain_loop() -> None:
    model = tiny_tasks.model("GPT-2")
    module = twin(model)
    block, norm = module.transformer.h[0], module.transformer.ln_f
    values = seen(module, IDS, {"z": block.attn.c_proj, "post": block.mlp.c_proj, "last": norm})
    row = module.lm_head.weight[ANSWER] - module.lm_head.weight[WRONG]
    writes = {"m0": block.mlp.c_proj(values["post"])}
    for head in range(4):
        own = slice(6 * head, 6 * head + 6)
        writes[f"a0.h{head}"] = values["z"][own] @ block.attn.c_proj.weight[own]
    found = attribute_logit(
        model, PROMPT, ANSWER, against=WRONG, components=hw.mlps(layers=0) + hw.heads(layers=0)
    )
    direct = found.audit().direct
    for name, write in writes.items():
        expected = float((norm(values["last"]) - norm(values["last"] - write)) @ row)
        assert float(direct[0, found.asked.index(name)]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("family", ["Gemma 2", "OLMo 2"])
def test_where_writes_are_normed_that_norm_is_computed_anew_without_the_head(family: str) -> None:
    model = tiny_tasks.model(family)
    module = twin(model)
    layer, norm = module.model.layers[0], module.model.norm
    values = seen(module, IDS, {"z": layer.self_attn.o_proj, "last": norm})
    found = attribute_logit(model, PROMPT, ANSWER, components=hw.heads(layers=0))
    direct = found.audit().direct[0]
    row, after = module.lm_head.weight[ANSWER], layer.post_attention_layernorm
    with true_float64():
        whole = after(layer.self_attn.o_proj(values["z"]))
        for head in range(4):
            left = values["z"].clone().unflatten(0, (4, -1))
            left[head] = 0
            change = whole - after(layer.self_attn.o_proj(left.flatten()))
            expected = (norm(values["last"]) - norm(values["last"] - change)) @ row
            assert float(direct[head]) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Gemma 2"])
def test_total_effects_are_those_of_plain_hooks(family: str) -> None:
    model = tiny_tasks.model(family)
    module: Any = model.module
    adapter = model.anatomy()
    found = attribute_logit(model, PROMPT, ANSWER, against=WRONG, components=hw.heads())
    total = found.audit().total[0]
    cap = getattr(module.config, "final_logit_softcapping", None)

    def number() -> float:
        logits = own_logits(model, IDS)
        logits = cap * torch.atanh(logits / cap) if cap else logits
        return float(logits[ANSWER] - logits[WRONG])

    whole, column = number(), 0
    for layer in range(2):
        projection = adapter.o_proj(layer)
        for head in range(4):

            def zeroed(_: nn.Module, args: Any, head: int = head) -> Any:
                z = args[0].unflatten(-1, (4, -1)).clone()
                z[:, :, head] = 0
                return (z.flatten(-2),)

            handle = projection.register_forward_pre_hook(zeroed)
            expected = whole - number()
            handle.remove()
            assert float(total[column]) == pytest.approx(expected, abs=1e-10)
            column += 1


def test_total_effects_are_those_of_hw_exact() -> None:
    model, task = tiny_tasks.model("Qwen3"), tiny_tasks.task(6, 4)
    found = attribute_logit(model, task, components=hw.neurons(layers=0)).audit(sample=999)
    exact = hw.attribute(
        model, task, hw.neurons(layers=0), hw.Exact(), reference=hw.Zero(), metric=hw.logit_diff
    )
    torch.testing.assert_close(found.total, exact.scores, atol=1e-12, rtol=0)


def test_writes_removed_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_tasks.model("Gemma 2")
    found = attribute_logit(model, PROMPT, ANSWER, components=hw.heads() + hw.neurons())
    whole = found.audit(sample=1).direct
    monkeypatch.setattr(removed, "NUMBERS", 3 * 40)
    torch.testing.assert_close(found.audit(sample=1).direct, whole, atol=1e-13, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", [False, True])
def test_the_last_writes_have_no_effects_but_direct_ones(family: str, split: bool) -> None:
    model = tiny_tasks.model(family)
    if offers(model, "mixer.out"):
        last = hw.channels(layers=1) if split else hw.mixers(layers=1)
    else:
        last = hw.neurons(layers=1) if split and offers(model, "mlp.post") else hw.mlps(layers=1)
    checked = attribute_logit(model, PROMPT, ANSWER, components=last).audit(sample=999)
    torch.testing.assert_close(checked.total, checked.direct, atol=1e-10, rtol=0)
    assert bool(checked.direct.any())


def test_an_audit_says_all_three_comparisons_in_words() -> None:
    model = tiny_tasks.model("Llama")
    found = attribute_logit(model, PROMPT, ANSWER, components=hw.heads(), audit=True)
    assert found.checked is not None
    frozen = torch.stack([found[name] for name in found.asked], 1)[0]
    for name, (estimate, exact) in {
        "direct": (frozen, found.checked.direct[0]),
        "paths": (found.checked.direct[0], found.checked.total[0]),
        "total": (frozen, found.checked.total[0]),
    }.items():
        r = float(torch.corrcoef(torch.stack([estimate, exact]))[0, 1])
        slope = float((estimate @ exact) / (exact @ exact))
        audit = found.checked[name]
        assert audit.statistic("r").value == pytest.approx(r, abs=1e-12)
        assert audit.statistic("slope").value == pytest.approx(slope, abs=1e-12)
    said = repr(found)
    assert "frozen norm against exact direct effects" in said
    assert "exact direct effects against total ones" in said
    assert "8 of 8 components checked exactly" in said


def test_a_sample_leaves_the_others_open() -> None:
    found = attribute_logit(
        tiny_tasks.model("Llama"), PROMPT, ANSWER, components=hw.neurons(layers=0)
    )
    checked = found.audit(sample=12)
    ran = int(checked.total.isfinite().all(0).sum())
    assert 12 <= ran <= 24  # two comparisons draw, each by its own estimates
    assert bool(checked.direct.isfinite().all())
    assert checked["direct"].counts.complete
    assert checked["total"].counts.checked == 12
    assert sum(row.total is not None for row in found.rows()) == ran


def test_total_effects_below_the_rounding_of_the_run_are_noise() -> None:
    model = tiny_tasks.model("Llama", torch.bfloat16)
    found = attribute_logit(model, PROMPT, ANSWER, components=hw.heads(), audit=True)
    assert found.checked is not None
    floor = abs(float(found.rounding))
    assert found.checked["total"].counts.noise_floor == pytest.approx(floor)
    assert found.checked["direct"].counts.noise_floor is None


# --- prompts and positions -------------------------------------------------------------------


def test_several_prompts_are_what_each_is_alone() -> None:
    model = tiny_tasks.model("GPT-2")
    prompts = [PROMPT, tiny_tasks.text(SHORT)]
    together = attribute_logit(
        model, prompts, [20, 21], against=[30, 31], components=hw.heads(), batch_size=2
    )
    apart = [
        attribute_logit(model, prompt, answer, against=wrong, components=hw.heads())
        for prompt, answer, wrong in zip(prompts, [20, 21], [30, 31], strict=True)
    ]
    expected = torch.cat([one.scores for one in apart])
    torch.testing.assert_close(together.scores, expected, atol=1e-12, rtol=0)
    assert together.by_layer().shape == (2, 2)
    direct = together.audit().direct
    torch.testing.assert_close(
        direct, torch.cat([one.audit().direct for one in apart]), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("position", [2, -4, 0])
def test_an_earlier_position_is_the_prompt_cut_there(position: int) -> None:
    model = tiny_tasks.model("Llama")
    prompts = [IDS, SHORT]
    found = attribute_logit(
        model,
        [tiny_tasks.text(ids) for ids in prompts],
        ANSWER,
        position=position,
        components=hw.heads(),
        audit=True,
    )
    assert found.checked is not None
    for row, ids in enumerate(prompts):
        cut = ids[: position + 1] if position != -1 else ids
        alone = attribute_logit(model, tiny_tasks.text(cut), ANSWER, components=hw.heads())
        torch.testing.assert_close(found.scores[row], alone.scores[0], atol=1e-12, rtol=0)
        total = alone.audit().total[0]
        torch.testing.assert_close(found.checked.total[row], total, atol=1e-11, rtol=0)


def test_a_task_brings_its_answers() -> None:
    model = tiny_tasks.model("GPT-2")
    task = tiny_tasks.task(6, 4)
    found = attribute_logit(model, task)
    texts = [pair.clean for pair in task]
    answers, wrongs = [pair.answer for pair in task], [pair.wrong for pair in task]
    expected = attribute_logit(model, texts, answers, against=wrongs)
    assert torch.equal(found.scores, expected.scores)


def test_layers_hold_all_but_input_biases_of_the_readout_and_rounding() -> None:
    found = attribute_logit(tiny_tasks.model("GPT-2"), PROMPT, ANSWER, components=hw.heads())
    outside = found["input"] + found["norm bias"] + found["rounding"]
    total = found.by_layer().sum(1) + outside
    torch.testing.assert_close(total, found.values, atol=1e-12, rtol=0)


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("components", "said"),
    [
        (hw.tokens(), "'input' is there anyway"),
        (hw.nodes(), r"hw.heads\(\) \+ hw.mlps\(\)"),
        (hw.queries(), r"through their heads: use hw.heads\(\)"),
        (hw.keys(layers=1), "hw.keys"),
        (hw.values(), "hw.values"),
        (hw.residual(), "found.by_layer"),
        (hw.heads(positions=[3]), r"hw.heads\(positions=\(3,\)\).*\n.*position=3"),
        (hw.mlps(positions="each"), "position=-1"),
    ],
)
def test_what_has_no_direct_write_is_refused_by_name(components: Any, said: str) -> None:
    with pytest.raises(GateError, match=said):
        attribute_logit(tiny_tasks.model("Llama"), PROMPT, ANSWER, components=components)


@pytest.mark.parametrize(
    ("family", "components", "error"),
    [
        ("Llama", hw.channels(), UnavailableSiteError),
        ("Mixtral", hw.neurons(), UnavailableSiteError),
        ("Mamba", hw.heads(), UnavailableSiteError),
        ("Mamba-2", hw.ssm_heads(), GateError),
        ("Mamba", hw.ssm(), GateError),
        ("Llama", hw.heads() + hw.attentions(), NestedComponentsError),
        ("Llama", hw.heads(layers=7), GateError),
    ],
)
def test_what_a_family_lacks_is_refused(family: str, components: Any, error: type) -> None:
    with pytest.raises(error):
        attribute_logit(tiny_tasks.model(family), PROMPT, ANSWER, components=components)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((PROMPT,), {}, MissingFieldError, "No answer is given"),
        ((PROMPT, ANSWER), {"position": 7}, PromptError, "7 tokens, positions 0 to 6"),
        ((PROMPT, ANSWER), {"position": -8}, PromptError, "position -8 does not exist"),
        ((PROMPT, ANSWER), {"position": "all"}, PromptError, "write one number"),
        (([PROMPT] * 2, [1, 2, 3]), {}, AnswerError, "a list of 3 for 2 prompts"),
        (([], ANSWER), {}, PromptError, "no prompts"),
        ((7, ANSWER), {}, PromptError, "expected a text"),
        ((PROMPT, "w20 w21"), {}, AnswerError, "2 tokens"),
        ((tiny_tasks.task(5), ANSWER), {}, PromptError, "answer was given"),
        ((hw.Task([hw.Pair(PROMPT)]),), {}, MissingFieldError, "pair 0 has no `answer`"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    arguments: tuple, options: dict, error: type, said: str
) -> None:
    with unchecked(), pytest.raises(error, match=said):
        attribute_logit(tiny_tasks.model("Llama"), *arguments, **options)


def test_pairs_of_which_some_have_a_wrong_answer_are_refused() -> None:
    task = hw.Task([hw.Pair(PROMPT, answer=20, wrong=30), hw.Pair(PROMPT, answer=20)])
    with pytest.raises(MissingFieldError, match="pair 1 has no `wrong`"):
        attribute_logit(tiny_tasks.model("Llama"), task)


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(ModelStateError, match="inference_mode"):
        attribute_logit(tiny_tasks.model("Llama"), PROMPT, ANSWER)


def test_another_model_is_no_model_to_audit_with() -> None:
    found = attribute_logit(tiny_tasks.model("Llama"), PROMPT, ANSWER)
    with pytest.raises(ResultError, match="weights_hash"):
        found.audit(model=tiny_tasks.model("Qwen2"))


# --- the result ------------------------------------------------------------------------------


def test_the_model_stays_as_it_was() -> None:
    module = tiny_models.build("Gemma 2")
    model = hw.wrap(module, tiny_tasks.tokenizer())
    before = {name: one.clone() for name, one in module.state_dict().items()}
    attribute_logit(model, PROMPT, ANSWER, components=hw.heads() + hw.neurons(), audit=True)
    for part in module.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
    for name, one in module.named_parameters():
        assert one.requires_grad
        assert one.grad is None
        assert torch.equal(one, before[name])


def test_under_no_grad_the_numbers_are_the_same() -> None:
    model = tiny_tasks.model("Llama")
    expected = attribute_logit(model, PROMPT, ANSWER, components=hw.heads())
    with torch.no_grad():
        found = attribute_logit(model, PROMPT, ANSWER, components=hw.heads())
    assert torch.equal(found.scores, expected.scores)


def test_a_saved_result_comes_back_and_can_be_audited(tmp_path: Any) -> None:
    model = hw.load("tiny")
    found = attribute_logit(model, SENTENCE, "Mary", against="John", components=hw.heads())
    again = LogitAttribution.load(found.save(tmp_path / "found"))
    assert again.names == found.names
    assert torch.equal(again.scores, found.scores)
    with pytest.raises(ModelGoneError, match="model=model"):
        again.audit()
    again.audit(model=model)
    third = LogitAttribution.load(again.save(tmp_path / "found"))
    assert repr(third) == repr(again)
    assert json.loads(json.dumps(third.to_dict())) == json.loads(json.dumps(again.to_dict()))
    other = attribute_logit(model, SENTENCE, "John")
    with pytest.raises(RunFolderError, match="already holds another"):
        other.save(tmp_path / "found")
    assert other.save(tmp_path / "found", overwrite=True)
    with pytest.raises(RunFolderError, match="holds no logit's attribution"):
        LogitAttribution.load(tmp_path)


def test_rows_tables_and_names(tmp_path: Any) -> None:
    found = attribute_logit(hw.load("tiny"), SENTENCE, "Mary", components=hw.heads() + hw.mlps())
    top = found.top(3)
    sizes = [abs(row.score) for row in top]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == float(found.scores.abs().max())
    assert list(found.to_frame()["name"]) == list(found.names)
    assert [row.layer for row in found.rows() if row.name == "a3.h1"] == [3]
    with pytest.raises(UnknownComponentError, match=r"Closest: 'a3\.h1'"):
        found["a3.h11"]
    with pytest.raises(ResultError, match="no such number"):
        found.top(-1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="holds other files"):
        found.save(tmp_path)


def test_a_row_is_its_part_and_what_was_found_of_it() -> None:
    found = attribute_logit(hw.load("tiny"), SENTENCE, "Mary", components=hw.heads())
    for part, row in zip(found.parts, found.rows(), strict=True):
        assert isinstance(row, Part)
        assert row.to_dict() == {
            **asdict(part),
            "score": float(found[part.name].mean()),
            "spread": 0.0,
            "direct": None,
            "total": None,
        }


def test_a_logit_of_other_versions_is_the_same_and_another_is_told_apart(tmp_path: Any) -> None:
    model = hw.load("tiny")
    found = attribute_logit(model, SENTENCE, "Mary")
    found.save(tmp_path)
    found.provenance["versions"] = {"torch": "99"}
    found.save(tmp_path)
    assert LogitAttribution.load(tmp_path).provenance["versions"] == {"torch": "99"}
    with pytest.raises(RunFolderError, match="position: -1 there, -2 now"):
        attribute_logit(model, SENTENCE, "Mary", position=-2).save(tmp_path)


def test_a_number_that_is_not_finite_leaves_json_that_every_reader_takes(tmp_path: Any) -> None:
    found = attribute_logit(hw.load("tiny"), SENTENCE, "Mary")
    found.scores[0, 0] = torch.nan
    found.save(tmp_path)
    data = json.loads((tmp_path / "logits.json").read_text(), parse_constant=pytest.fail)
    assert data["rows"][0]["score"] is None
    assert LogitAttribution.load(tmp_path).rows()[1] == found.rows()[1]


@pytest.mark.parametrize("lacking", ["parts", "audit", "provenance"])
def test_a_damaged_result_is_refused_with_how_to_make_one(tmp_path: Any, lacking: str) -> None:
    attribute_logit(hw.load("tiny"), SENTENCE, "Mary").save(tmp_path)
    data = json.loads((tmp_path / "logits.json").read_text())
    del data[lacking]
    (tmp_path / "logits.json").write_text(json.dumps(data))
    with pytest.raises(RunFolderError, match=r"this release can read.*\n.*hw\.attribute_logit"):
        LogitAttribution.load(tmp_path)


def test_in_bfloat16_a_model_without_a_scale_has_none() -> None:
    model = tiny_tasks.model("Llama", torch.bfloat16)
    taken = Decomposition(model, task_of(PROMPT, ANSWER, None, -1), None, 1)
    with model.frozen():
        taken.collected()
    assert taken.ending == Ending(1.0)
