"""Every site of every family: what a tap sees, and that taps leave no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny_models
from headwater.architectures.adapter import resolve
from headwater.errors import GateError, UnavailableSiteError
from headwater.models import Model
from headwater.sites import Site

FAMILIES = list(tiny_models.BUILDERS)
BATCH, POSITIONS = 2, 7
every_family = pytest.mark.parametrize("family", FAMILIES)


def _falcon_values(out, heads, size):
    return out.unflatten(-1, (heads + 2, size))[..., [-1], :].expand(-1, -1, heads, -1)


def _new_falcon_values(out, heads, size):
    grouped = out.unflatten(-1, (2, heads // 2 + 2, size))
    return grouped[..., -1, :].repeat_interleave(heads // 2, dim=2)


OWN_ATTENTION = {
    "GPT-J": ("attn.v_proj", lambda out, heads, size: out.unflatten(-1, (heads, size))),
    "GPT-Neo": ("attn.attention.v_proj", lambda out, heads, size: out.unflatten(-1, (heads, size))),
    "BLOOM": (
        "self_attention.query_key_value",
        lambda out, heads, size: out.unflatten(-1, (heads, 3, size))[..., 2, :],
    ),
    "Falcon": ("self_attention.query_key_value", _falcon_values),
    "Falcon new": ("self_attention.query_key_value", _new_falcon_values),
    "Falcon sequential": (
        "self_attention.query_key_value",
        lambda out, heads, size: out.unflatten(-1, (heads, 3, size))[..., 2, :],
    ),
}
"""Families that never call the interface: path and layout of their value projection."""

WITHOUT_INTERFACE = {*OWN_ATTENTION, "Mamba", "Mamba-2"}


def model_of(family: str) -> Model:
    module = tiny_models.shared(family)
    return Model(module, adapter=resolve(module))


def reading(sites, seen):
    """Taps that keep a copy of what they see, and replace nothing."""
    return {site: lambda value, site=site: seen.__setitem__(site, value.clone()) for site in sites}


def inside_attention(model: Model, site: Site) -> bool:
    return site.name in ("attn.q", "attn.k", "attn.v", "attn.pattern")


@every_family
@torch.no_grad()
def test_every_site_hands_its_tap_the_documented_shape(family):
    model, seen = model_of(family), {}
    model.forward(tiny_models.tokens(), taps=reading(model.sites(), seen))
    adapter = model.anatomy()
    sizes = {
        "batch": BATCH,
        "pos": POSITIONS,
        "query": POSITIONS,
        "key": POSITIONS,
        "head": adapter.n_heads,
        "kv_head": adapter.n_kv_heads,
        "d_head": adapter.d_head,
        "d_model": adapter.d_model,
        "d_mlp": adapter.d_mlp,
        "d_inner": adapter.d_inner,
        "d_conv": adapter.d_conv,
        "ssm_head": adapter.n_ssm_heads,
        "d_ssm": adapter.d_inner and adapter.d_inner // (adapter.n_ssm_heads or 1),
        "vocab": adapter.vocab,
    }
    expected = {site: tuple(sizes[axis] for axis in site.axes.split()) for site in model.sites()}
    assert {site: tuple(value.shape) for site, value in seen.items()} == expected


@every_family
@torch.no_grad()
def test_taps_come_in_the_order_in_which_sites_are_listed(family):
    model, seen = model_of(family), {}
    model.forward(tiny_models.tokens(), taps=reading(reversed(model.sites()), seen))
    called = [site for site in seen if site.name in ("embed", "resid_post", "final_norm")]
    assert called == [site for site in model.sites() if site in set(called)]


@every_family
@torch.no_grad()
def test_a_run_without_taps_is_the_module_itself(family):
    model, ids = model_of(family), tiny_models.tokens()
    assert torch.equal(model.forward(ids), model.module(ids, use_cache=False).logits)


@every_family
@torch.no_grad()
def test_replacing_every_site_by_its_own_value_changes_no_bit(family):
    model, ids = model_of(family), tiny_models.tokens()
    outside = [site for site in model.sites() if not inside_attention(model, site)]
    replaced = model.forward(ids, taps=dict.fromkeys(outside, torch.clone))
    assert torch.equal(replaced, model.forward(ids))
    # q, k, v and the pattern need headwater's attention: compare with a run that only reads
    only_read = model.forward(ids, taps=reading(model.sites(), {}))
    assert torch.equal(
        model.forward(ids, taps=dict.fromkeys(model.sites(), torch.clone)), only_read
    )


@every_family
@torch.no_grad()
def test_every_replacement_reaches_the_logits(family):
    model, ids = model_of(family), tiny_models.tokens()
    before = model.forward(ids, taps=reading(model.sites(), {}))
    generator = torch.Generator().manual_seed(0)
    for site in [s for s in model.sites() if s.layer in (None, 1)]:
        noise = lambda x: x + torch.randn(x.shape, generator=generator)  # noqa: E731
        assert (model.forward(ids, taps={site: noise}) - before).abs().max() > 1e-3, site


@every_family
def test_what_a_tap_is_handed_lies_on_the_path_to_the_logits(family):
    model, seen = model_of(family), {}
    taps = {site: lambda value, site=site: seen.__setitem__(site, value) for site in model.sites()}
    logits = model.forward(tiny_models.tokens(), taps=taps)
    sites = list(seen)
    gradients = torch.autograd.grad(logits.square().sum(), [seen[site] for site in sites])
    for site, gradient in zip(sites, gradients, strict=True):
        assert gradient.abs().sum() > 0, site


@every_family
@torch.no_grad()
def test_a_replaced_residual_goes_on_as_the_residual(family):
    model, ids = model_of(family), tiny_models.tokens()
    adapter, seen = model.anatomy(), {}
    value = torch.randn(BATCH, POSITIONS, adapter.d_model)
    sites = [Site(1, "resid_post"), *(Site(1, write) for write in adapter.writes)]
    for name in ("resid_pre", "resid_mid"):
        if name in adapter.missing:
            continue
        taps = {Site(1, name): lambda _: value.clone(), **reading(sites, seen)}
        model.forward(ids, taps=taps)
        writes = adapter.writes if name == "resid_pre" else ("mlp.out",)
        added = sum(seen[Site(1, write)] * adapter.write_scale for write in writes)
        torch.testing.assert_close(seen[Site(1, "resid_post")], value + added)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in WITHOUT_INTERFACE])
@torch.no_grad()
def test_z_of_a_head_is_its_pattern_times_the_values_of_its_group(family):
    model, seen = model_of(family), {}
    adapter = model.anatomy()
    names = ("attn.pattern", "attn.v", "attn.z")
    model.forward(tiny_models.tokens(), taps=reading([Site(1, name) for name in names], seen))
    pattern, value, z = (seen[Site(1, name)] for name in names)
    for head in range(adapter.n_heads):
        of_group = value[:, :, head * adapter.n_kv_heads // adapter.n_heads]
        torch.testing.assert_close(z[:, :, head], pattern[:, head] @ of_group)


@pytest.mark.parametrize("family", OWN_ATTENTION)
@torch.no_grad()
def test_z_of_a_head_is_right_in_families_with_an_attention_of_their_own(family):
    # not sdpa: transformers returns a pattern only from the eager attention of these families
    module = tiny_models.build(family, attention="eager")
    model, ids, seen = Model(module, adapter=resolve(module)), tiny_models.tokens(), {}
    adapter = model.anatomy()
    path, layout = OWN_ATTENTION[family]
    projection = adapter.layers[1].get_submodule(path)
    projection.register_forward_hook(lambda *call: seen.__setitem__("v", call[-1].clone()))
    model.forward(ids, taps=reading([Site(1, "attn.z")], seen))
    pattern = module(ids, output_attentions=True, use_cache=False).attentions[1]
    value = layout(seen["v"], adapter.n_heads, adapter.d_head)
    for head in range(adapter.n_heads):
        torch.testing.assert_close(
            seen[Site(1, "attn.z")][:, :, head], pattern[:, head] @ value[:, :, head]
        )


@every_family
@torch.no_grad()
def test_the_residual_stream_is_the_sum_of_the_writes(family):
    model, seen = model_of(family), {}
    model.forward(tiny_models.tokens(), taps=reading(model.sites(), seen))
    adapter = model.anatomy()
    stream = seen[Site(None, "embed")]
    for layer in range(adapter.n_layers):
        torch.testing.assert_close(seen[Site(layer, "resid_pre")], stream)
        stream = stream + sum(seen[Site(layer, w)] * adapter.write_scale for w in adapter.writes)
        torch.testing.assert_close(seen[Site(layer, "resid_post")], stream)


@every_family
@torch.no_grad()
def test_a_run_that_starts_at_any_layer_is_the_run(family):
    model, ids, seen = model_of(family), tiny_models.tokens(), {}
    logits = model.forward(ids, taps=reading(model.sites(), seen))
    last = model.anatomy().n_layers
    plain = model.forward(ids)
    model.forward(
        ids, taps=reading([s for s in model.sites() if not inside_attention(model, s)], seen)
    )
    for layer in range(last + 1):
        site = Site(layer, "resid_pre") if layer < last else Site(last - 1, "resid_post")
        assert torch.equal(model.forward(ids, start=(layer, seen[site])), plain)
    assert logits.shape == plain.shape


@every_family
@torch.no_grad()
def test_many_rows_may_start_from_stacked_residuals(family):
    model, ids, seen = model_of(family), tiny_models.tokens(), {}
    site = Site(1, "resid_pre")
    plain = model.forward(ids, taps=reading([site], seen))
    stacked = model.forward(ids.repeat(3, 1), start=(1, seen[site].repeat(3, 1, 1)))
    torch.testing.assert_close(stacked, plain.repeat(3, 1, 1), atol=1e-5, rtol=1e-5)


@every_family
@torch.no_grad()
def test_only_the_positions_asked_for_are_unembedded(family):
    model, ids = model_of(family), tiny_models.tokens()
    logits = model.forward(ids)
    torch.testing.assert_close(model.forward(ids, read=2), logits[:, -2:])
    torch.testing.assert_close(model.forward(ids, read=[0, 3, -1]), logits[:, [0, 3, -1]])


@every_family
@torch.no_grad()
def test_left_padding_changes_no_number(family):
    model, ids = model_of(family), tiny_models.tokens(batch=3)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :2] = mask[2, :4] = False
    padded = model.forward(ids.masked_fill(~mask, 0), mask=mask)
    for row, start in enumerate((0, 2, 4)):
        alone = model.forward(ids[row : row + 1, start:])
        torch.testing.assert_close(padded[row, start:], alone[0], atol=1e-5, rtol=1e-5)


def state_of(module: nn.Module) -> dict[str, object]:
    """Everything taps and stubs touch, in a form that can be compared."""
    state: dict[str, object] = {}
    for name, part in module.named_modules():
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        state[name] = (
            [list(getattr(part, kind).items()) for kind in hooks],
            sorted(key for key in part.__dict__ if not key.startswith("_modules")),
            part.training,
            getattr(getattr(part, "config", None), "_attn_implementation", None),
            getattr(getattr(part, "config", None), "_experts_implementation", None),
        )
    return state


class _StopHereError(Exception):
    pass


@every_family
@torch.no_grad()
def test_an_exception_inside_any_tap_leaves_the_model_as_it_was(family):
    model, ids = model_of(family), tiny_models.tokens()
    adapter = model.anatomy()
    residual = torch.randn(BATCH, POSITIONS, adapter.d_model)
    before = state_of(model.module)

    def stop(_):
        raise _StopHereError

    for site in [s for s in model.sites() if s.layer in (None, 1)]:
        start = None if site.name == "embed" else (1, residual)
        with pytest.raises(_StopHereError):
            model.forward(ids, taps={site: stop}, start=start, read=1)
        assert state_of(model.module) == before, site


def test_a_tap_in_a_skipped_layer_is_refused():
    model, ids = model_of("Llama"), tiny_models.tokens()
    residual = torch.zeros(BATCH, POSITIONS, model.anatomy().d_model)
    with pytest.raises(UnavailableSiteError) as caught:
        model.forward(ids, taps={Site(0, "attn.z"): torch.clone}, start=(2, residual))
    assert str(caught.value) == (
        "tap at 'layers.0.attn.z', but the run starts at layer 2: it would never be called.\n"
        "Start at layer 0 or earlier."
    )
    with pytest.raises(UnavailableSiteError, match="tap at 'embed'"):
        model.forward(ids, taps={Site(None, "embed"): torch.clone}, start=(2, residual))


@torch.no_grad()
def test_falcon_does_not_write_into_what_a_tap_kept_or_returned():
    model, ids = model_of("Falcon"), tiny_models.tokens()
    kept, given = [], torch.randn(BATCH, POSITIONS, model.anatomy().d_model)
    untouched = given.clone()

    def replace(value):
        kept.append((value, value.clone()))
        return given

    model.forward(ids, taps={Site(layer, "mlp.out"): replace for layer in range(2)})
    assert torch.equal(given, untouched)
    assert all(torch.equal(value, copy) for value, copy in kept)


def test_resid_mid_can_be_gated_and_differentiated_in_the_gate():
    model, ids = model_of("OPT"), tiny_models.tokens()
    m = torch.ones((), requires_grad=True)
    taps = {Site(1, "resid_mid"): lambda x: torch.lerp(torch.zeros_like(x), x, m)}
    with model.frozen():
        (slope,) = torch.autograd.grad(model.forward(ids, taps=taps).square().sum(), m)
    step = 1e-2
    with torch.no_grad():
        ends = [
            model.forward(ids, taps={Site(1, "resid_mid"): lambda x, s=s: x * s}).square().sum()
            for s in (1 - step, 1 + step)
        ]
    # central difference in float32: step^2 and rounding / step are both about 1e-3
    torch.testing.assert_close(slope, (ends[1] - ends[0]) / (2 * step), rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_hooks_of_the_user_still_run():
    module = tiny_models.build("GPT-2")
    model, called = Model(module, adapter=resolve(module)), []
    module.transformer.h[1].attn.register_forward_hook(lambda *_: called.append("user"))
    model.forward(tiny_models.tokens(), taps={Site(1, "attn.out"): lambda _: called.append("tap")})
    assert called == ["user", "tap"]


def with_hooks_of_the_user(family: str) -> tuple[Model, list[str]]:
    """A model whose owner changed what enters and leaves every layer, by plain hooks."""
    module = tiny_models.build(family)
    model, called = Model(module, adapter=resolve(module)), []

    def before(name, args, kwargs):
        called.append(name)
        if args:
            return (args[0] * 0.8, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * 0.8}

    def after(name, output):
        called.append(name)
        return (output[0] * 1.5, *output[1:]) if isinstance(output, tuple) else output * 1.5

    for number, layer in enumerate(model.anatomy().layers):
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, name=f"before {number}": before(name, args, kwargs),
            with_kwargs=True,
        )
        layer.register_forward_hook(lambda *call, name=f"after {number}": after(name, call[-1]))
    model.anatomy().final_norm.register_forward_pre_hook(lambda _, args: (args[0] + 0.1,))
    return model, called


def first(value):
    return value[0] if isinstance(value, tuple) else value


@every_family
@torch.no_grad()
def test_hooks_of_the_user_are_not_applied_again_by_a_run_that_starts_later(family):
    model, called = with_hooks_of_the_user(family)
    ids, layers, seen = tiny_models.tokens(), model.anatomy().layers, {}
    handles = [  # registered after the user's: they see what the user's hooks made
        layers[1].register_forward_pre_hook(
            lambda _, args, kwargs: seen.update({1: args[0] if args else kwargs["hidden_states"]}),
            with_kwargs=True,
        ),
        layers[1].register_forward_hook(lambda *call: seen.update({2: first(call[-1])})),
    ]
    expected = model.module(ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    for start, of_skipped in ((1, {"before 0", "after 0"}), (2, {*called})):
        called.clear()
        before = state_of(model.module)
        assert torch.equal(model.forward(ids, start=(start, seen[start])), expected)
        assert not of_skipped & {*called}
        assert state_of(model.module) == before


@every_family
@torch.no_grad()
def test_hooks_of_the_user_see_a_changed_residual_as_in_a_whole_run(family):
    model, _ = with_hooks_of_the_user(family)
    ids, layers = tiny_models.tokens(), model.anatomy().layers
    given = torch.randn(BATCH, POSITIONS, model.anatomy().d_model)

    def replace_input(_, args, kwargs):
        if args:
            return (given, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": given}

    def replace_output(_, args, output):
        return (given, *output[1:]) if isinstance(output, tuple) else given

    for start, (register, hook, options) in {
        1: (layers[1].register_forward_pre_hook, replace_input, {"with_kwargs": True}),
        2: (layers[1].register_forward_hook, replace_output, {}),
    }.items():
        handle = register(hook, **options)
        expected = model.module(ids, use_cache=False).logits
        handle.remove()
        assert torch.equal(model.forward(ids, start=(start, given)), expected)


@torch.no_grad()
def test_a_layer_compiled_by_the_user_is_put_back():
    module = tiny_models.build("Llama")
    model = Model(module, adapter=resolve(module))
    compiled = module.model.layers[0]._call_impl  # what layer.compile() sets, uncompiled
    module.model.layers[0]._compiled_call_impl = compiled
    model.forward(tiny_models.tokens(), start=(1, torch.randn(BATCH, POSITIONS, 24)))
    assert module.model.layers[0].__dict__["_compiled_call_impl"] is compiled


@torch.no_grad()
def test_a_forward_put_on_the_instance_by_others_is_put_back():
    module = tiny_models.build("Llama")
    model = Model(module, adapter=resolve(module))
    layer = module.model.layers[0]
    theirs = layer.forward
    layer.forward = theirs  # device hooks do this
    model.forward(tiny_models.tokens(), start=(1, torch.randn(BATCH, POSITIONS, 24)))
    assert layer.__dict__["forward"] is theirs


def test_activation_checkpointing_is_left_out_of_tapped_runs():
    module = tiny_models.build("Llama")
    module.activation_checkpointing_enable()
    module.train()
    model = Model(module, adapter=resolve(module))
    calls = []
    logits = model.forward(
        tiny_models.tokens(), taps={Site(1, "mlp.out"): lambda _: calls.append(1)}
    )
    logits.sum().backward()
    assert calls == [1]
    assert module.is_activation_checkpointing


def test_a_replacement_of_another_shape_is_refused():
    model = model_of("GPT-2")
    with pytest.raises(GateError) as caught:
        model.forward(tiny_models.tokens(), taps={Site(1, "attn.z"): lambda z: z[:, :, :1]})
    assert str(caught.value) == (
        "a tap at the input of Conv1D returned shape (2, 7, 1, 6) for a value of shape "
        "(2, 7, 4, 6).\nReturn a tensor of the same shape, or None to leave the value as it is."
    )
