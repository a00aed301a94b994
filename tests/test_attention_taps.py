"""The taps on headwater's attention, and the switch that puts it into a model and takes it out."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close

from attention_cases import INTERFACE, OWN_ATTENTION, RESTING, random_heads
from headwater.attention import (
    AttentionTaps,
    attention_function,
    can_switch,
    listening,
    switched_on,
)
from headwater.errors import GateError, UnsupportedModelError
from tiny_models import BUILDERS, build, shared, tokens


def attention_modules(module: nn.Module) -> dict[nn.Module, AttentionTaps]:
    """A counter on every module: only those that call headwater's attention count."""
    return {part: AttentionTaps() for part in module.modules()}


# --- taps --------------------------------------------------------------------------------------


def recorder(log: list[tuple[str, tuple[int, ...]]], name: str):
    def record(value: Tensor) -> None:
        log.append((name, tuple(value.shape)))

    return record


def test_taps_see_q_k_v_pattern_and_z_in_this_order_and_in_canonical_shapes():
    log: list[tuple[str, tuple[int, ...]]] = []
    taps = AttentionTaps(**{name: recorder(log, name) for name in ("z", "pattern", "v", "k", "q")})
    with listening({RESTING: taps}):
        attention_function(RESTING, *random_heads(), None)
    assert log == [
        ("q", (2, 5, 6, 4)),
        ("k", (2, 5, 2, 4)),
        ("v", (2, 5, 2, 3)),
        ("pattern", (2, 6, 5, 5)),
        ("z", (2, 5, 6, 3)),
    ]
    assert taps.calls == 1


@pytest.mark.parametrize("place", [0, 1, 2], ids=["q", "k", "v"])
def test_a_replaced_query_key_or_value_is_attended_with(place):
    heads = list(random_heads())
    replaced = heads.copy()
    replaced[place] = heads[place] * 1.5 + 0.1

    def tap(value: Tensor) -> Tensor:
        return value * 1.5 + 0.1

    with listening({RESTING: AttentionTaps(**{"qkv"[place]: tap})}):
        ours = attention_function(RESTING, *heads, None)
    assert_close(ours, attention_function(RESTING, *replaced, None))


def test_a_replaced_pattern_weighs_the_values_and_is_returned():
    query, key, value = random_heads(kv_head=6)
    uniform = torch.full((2, 6, 5, 5), 0.2, dtype=torch.float64)
    with listening({RESTING: AttentionTaps(pattern=lambda _: uniform)}):
        output, pattern = attention_function(RESTING, query, key, value, None)
    assert_close(pattern, uniform)
    assert_close(output, value.mean(dim=2, keepdim=True).expand(2, 6, 5, 3).transpose(1, 2))


def test_a_replaced_z_is_the_output():
    replacement = torch.arange(180, dtype=torch.float64).view(2, 5, 6, 3)
    with listening({RESTING: AttentionTaps(z=lambda _: replacement)}):
        output, _ = attention_function(RESTING, *random_heads(), None)
    assert torch.equal(output, replacement)


def test_a_tap_gets_the_gradient_of_what_it_saw():
    seen: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        seen.append(value.detach().requires_grad_())
        return seen[-1]

    query, key, value = random_heads()
    with listening({RESTING: AttentionTaps(q=keep)}):
        output, _ = attention_function(RESTING, query, key, value, None)
    gradient = torch.autograd.grad(output.sin().sum(), seen[0])[0]
    query.requires_grad_()
    own = attention_function(RESTING, query, key, value, None)[0].sin().sum()
    assert_close(gradient, torch.autograd.grad(own, query)[0].transpose(1, 2))


def test_a_replacement_of_another_shape_is_refused():
    taps = AttentionTaps(v=lambda value: value[:, :-1])
    with pytest.raises(GateError) as error, listening({RESTING: taps}):
        attention_function(RESTING, *random_heads(), None)
    assert str(error.value) == (
        "the tap on 'attn.v' returned shape (2, 4, 2, 3) for a value of shape (2, 5, 2, 3).\n"
        "Return a tensor of the same shape, or None to leave the value as it is."
    )


def test_nested_listeners_are_called_outer_first_and_both_count():
    log: list[tuple[str, tuple[int, ...]]] = []
    outer, inner = (AttentionTaps(q=recorder(log, name)) for name in ("outer", "inner"))
    with listening({RESTING: outer}):
        with listening({RESTING: inner}):
            attention_function(RESTING, *random_heads(), None)
        attention_function(RESTING, *random_heads(), None)
    assert [name for name, _ in log] == ["outer", "inner", "outer"]
    assert (outer.calls, inner.calls) == (2, 1)


def test_no_tap_is_called_after_an_exception_left_the_context():
    taps = AttentionTaps()
    with pytest.raises(KeyboardInterrupt), listening({RESTING: taps}):
        raise KeyboardInterrupt
    attention_function(RESTING, *random_heads(), None)
    assert taps.calls == 0


def test_other_threads_do_not_reach_the_taps_of_this_one():
    taps = AttentionTaps()
    with listening({RESTING: taps}):
        worker = threading.Thread(target=attention_function, args=(RESTING, *random_heads(), None))
        worker.start()
        worker.join()
    assert taps.calls == 0


def test_taps_on_a_grouped_model_see_what_its_projections_give_before_rotary_turns_them():
    module, ids = shared("Llama"), tokens()
    attention = module.model.layers[0].self_attn
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda value: seen.update({name: value.clone()})

    taps = AttentionTaps(q=keep("q"), k=keep("k"), v=keep("v"))
    at_start = torch.zeros_like(ids)  # position 0 everywhere: rotary is the identity
    projected: dict[str, Tensor] = {}
    hooks = [
        getattr(attention, f"{name}_proj").register_forward_hook(
            lambda _module, _args, output, name=name: projected.update({name: output})
        )
        for name in "qkv"
    ]
    with torch.no_grad(), switched_on(module), listening({attention: taps}):
        module(ids, position_ids=at_start, use_cache=False)
    for hook in hooks:
        hook.remove()
    for name, output in projected.items():
        assert_close(seen[name].flatten(2), output, rtol=0, atol=1e-6)


# --- the switch --------------------------------------------------------------------------------


def multimodal() -> nn.Module:
    """A tiny vision and text model whose two parts ask for different attention."""
    text = transformers.Gemma3TextConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    vision = transformers.SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=60
    )
    module = transformers.Gemma3ForConditionalGeneration(config).eval()
    module.config._attn_implementation_internal = "sdpa"
    module.config.text_config._attn_implementation_internal = "eager"
    module.config.vision_config._attn_implementation_internal = "sdpa"
    return module


def choices(module: nn.Module) -> list[str | None]:
    return [
        config._attn_implementation
        for config in (
            module.config,
            module.config.text_config,
            module.config.vision_config,
        )
    ]


def test_every_part_of_a_multimodal_model_is_switched_and_gets_its_own_choice_back():
    module = multimodal()
    with switched_on(module):
        assert choices(module) == ["headwater"] * 3
    assert choices(module) == ["sdpa", "eager", "sdpa"]


def test_an_exception_inside_restores_every_choice():
    module = multimodal()
    with pytest.raises(KeyboardInterrupt), switched_on(module):
        raise KeyboardInterrupt
    assert choices(module) == ["sdpa", "eager", "sdpa"]


def test_the_switch_nests():
    module = multimodal()
    with switched_on(module):
        with switched_on(module):
            pass
        assert choices(module) == ["headwater"] * 3
    assert choices(module) == ["sdpa", "eager", "sdpa"]


def test_a_config_copied_into_a_layer_is_switched_and_restored_too():
    module = build("Llama")
    attention = module.model.layers[1].self_attn
    attention.config = copy.deepcopy(attention.config)
    attention.config._attn_implementation_internal = "eager"
    counters = attention_modules(module)
    with torch.no_grad(), switched_on(module), listening(counters):
        module(tokens(), use_cache=False)
    assert counters[attention].calls == 1
    assert attention.config._attn_implementation == "eager"
    assert module.config._attn_implementation == "sdpa"


def test_configs_are_the_same_objects_with_the_same_contents_afterwards():
    module = build("Gemma 2")
    config, before = module.config, copy.deepcopy(vars(module.config))
    generation = copy.deepcopy(vars(module.generation_config))
    with torch.no_grad(), switched_on(module):
        module(tokens(), use_cache=False)
    assert module.config is config
    assert vars(config) == before
    assert vars(module.generation_config) == generation


@pytest.mark.parametrize("name", sorted(OWN_ATTENTION))
def test_a_family_with_its_own_attention_is_left_as_it_is(name):
    module = shared(name)
    before = copy.deepcopy(vars(module.config))
    with switched_on(module) as switched:
        assert not switched
        assert vars(module.config) == before


def test_a_model_inside_a_wrapper_is_switched():
    wrapper = nn.Sequential(build("Llama"))
    with switched_on(wrapper) as switched:
        assert switched
        assert wrapper[0].config._attn_implementation == "headwater"
    assert wrapper[0].config._attn_implementation == "sdpa"


def test_a_plain_module_is_refused_by_name():
    with pytest.raises(UnsupportedModelError) as error, switched_on(nn.Sequential()):
        pass
    assert str(error.value) == (
        "Sequential contains no transformers model, so its attention cannot be switched to "
        "headwater's and has no queries, keys, values or patterns to offer.\n"
        "Use other sites, or give a model made by transformers.AutoModelForCausalLM."
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_calls_count_one_a_layer_and_none_where_a_family_does_not_ask(name):
    module = shared(name)
    counters = attention_modules(module)
    with torch.no_grad(), switched_on(module) as switched, listening(counters):
        module(tokens(), use_cache=False)
    calls = sorted(counter.calls for counter in counters.values() if counter.calls)
    assert calls == ([1] * module.config.num_hidden_layers if name in INTERFACE else [])
    assert switched == can_switch(module) == (name not in OWN_ATTENTION)
