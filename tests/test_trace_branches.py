"""Edits of gradients and activations on every branch, against plain autograd that cuts the branch.

The oracle never touches a gradient: where the trace turns a gradient `g` into `m * g + c`, it runs
the plain module with `x.detach() + m * (x - x.detach())` in the place of `x`, and adds `(x * c)` to
the loss. Compared are the gradient at the embedding and those of all parameters, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import headwater as hw
import tiny_models
from headwater.models import Model
from headwater.sites import Site
from oracles import Float64
from trace_models import (
    BATCH,
    IDS,
    LAYOUTS,
    POSITIONS,
    assert_all_close,
    embedding_path,
    first,
    forget_gradients,
    hooked,
    loss_of,
    parameter_gradients,
    part,
    shared_model,
    with_first,
)


@dataclass(frozen=True)
class Branch:
    """One place whose value or gradient is edited."""

    family: str
    kind: str

    def __str__(self) -> str:
        return f"{self.family} {self.kind}"

    @property
    def module(self) -> str:
        """The path of the module at whose input or output the place is."""
        layout = LAYOUTS[self.family]
        layer = f"{layout.layers}.1"
        return {
            "embedding": embedding_path(shared_model(self.family).module),
            "residual": f"{layout.layers}.0",
            "layer input": layer,
            "attention": f"{layer}.{layout.attn}",
            "mixer": f"{layer}.{layout.attn}",
            "mlp": f"{layer}.{layout.mlp}",
            "mid": f"{layer}.{layout.mid}",
            "final norm input": f"{layout.backbone}.{layout.final_norm}",
        }[self.kind]

    @property
    def is_input(self) -> bool:
        """Whether the place is the module's input."""
        return self.kind in ("layer input", "mid", "final norm input")

    def read(self, model: Any) -> Tensor:
        """The value as a user reads it in a trace."""
        module = part(model, self.module)
        return module.input if self.is_input else first(module.output)

    def assign(self, model: Any, value: Tensor) -> None:
        """Replace the value as a user does in a trace."""
        module = part(model, self.module)
        if self.is_input:
            module.input = value
        else:
            module.output = with_first(module.output, value)


def _kinds(family: str) -> list[str]:
    layout = LAYOUTS[family]
    everywhere = ["embedding", "residual", "layer input", "final norm input"]
    if layout.mlp == "":
        return [*everywhere, "mixer"]
    return [*everywhere, "attention", "mlp", *(["mid"] if layout.mid else [])]


BRANCHES = [Branch(family, kind) for family in LAYOUTS for kind in _kinds(family)]
# Falcon's blocks add to the MLP's output in place, of which a notice tells
pytestmark = pytest.mark.filterwarnings("ignore:the model itself has changed")
every_branch = pytest.mark.parametrize("branch", BRANCHES, ids=str)


CASTS_DOWN = {"Llama", "Gemma 2", "GPT-J", "Mamba"}
"""Families that compute parts in float32 even where everything else is float64."""


def in_float64(family: str) -> AbstractContextManager[Any]:
    """Have `family` compute in float64; also shows that function modes reach the model."""
    return Float64() if family in CASTS_DOWN else nullcontext()


@pytest.fixture(autouse=True)
def _no_gradients_left() -> Iterator[None]:
    yield
    for family in LAYOUTS:
        forget_gradients(shared_model(family))


def _random(*shape: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---- gradients -----------------------------------------------------------------------------------


def _in_place_zero(value: Tensor, mask: Tensor, added: Tensor) -> None:
    value.grad[:] = 0


def _in_place_position(value: Tensor, mask: Tensor, added: Tensor) -> None:
    value.grad[:, 2] *= -1.5


def _in_place_mask(value: Tensor, mask: Tensor, added: Tensor) -> None:
    value.grad.mul_(mask)


def _augmented(value: Tensor, mask: Tensor, added: Tensor) -> None:
    value.grad += added


def _assigned_zeros(value: Tensor, mask: Tensor, added: Tensor) -> None:
    value.grad = torch.zeros_like(value)


def _assigned_scaled(value: Tensor, mask: Tensor, added: Tensor) -> None:
    value.grad = value.grad * mask


def _assigned_constant(value: Tensor, mask: Tensor, added: Tensor) -> None:
    value.grad = added


def _one_row(value: Tensor) -> Tensor:
    mask = torch.ones_like(value)
    mask[:, 2] = -1.5
    return mask


Edit = Callable[[Tensor, Tensor, Tensor], None]
GRADIENT_EDITS: dict[str, tuple[Edit, Callable[[Tensor], tuple[Tensor, Tensor | None]]]] = {
    "zeroed in place": (_in_place_zero, lambda x: (torch.zeros_like(x), None)),
    "one position in place": (_in_place_position, lambda x: (_one_row(x), None)),
    "multiplied in place": (_in_place_mask, lambda x: (_random(*x.shape), None)),
    "added with +=": (
        _augmented,
        lambda x: (torch.ones_like(x), _random(*x.shape, seed=4)),
    ),
    "zeros assigned": (_assigned_zeros, lambda x: (torch.zeros_like(x), None)),
    "scaled and assigned": (_assigned_scaled, lambda x: (_random(*x.shape), None)),
    "constant assigned": (
        _assigned_constant,
        lambda x: (torch.zeros_like(x), _random(*x.shape, seed=4)),
    ),
}
"""How the trace edits -> the oracle's factor `m` and summand `c` for a value `x`."""


def _gradients_with(
    branch: Branch, change: Callable[[Tensor], Tensor], extras: Sequence[Tensor] = ()
) -> dict[str, Tensor]:
    """Gradients of the plain module in which `change(x)` takes the place of the branch's value.

    Args:
        branch: The place.
        change: Gets the value there, returns what the model goes on with.
        extras: Added to the loss; filled while the module runs.

    Returns:
        The gradient of the embedding's output, and those of all parameters.
    """
    model = shared_model(branch.family)
    held: dict[str, Tensor] = {}
    layer = f"{LAYOUTS[branch.family].layers}.1"

    def on_output(output: Any) -> Any:
        return with_first(output, change(first(output)))

    def on_mid(value: Tensor) -> Tensor:
        held["change"] = change(value)
        held["correction"] = held["change"] - value
        return held["change"]

    def on_layer(output: Any) -> Any:
        # the block adds the old value: this takes it out again and puts the new one in
        return with_first(output, first(output) + held["correction"])

    outputs = {} if branch.is_input else {branch.module: on_output}
    inputs = {branch.module: on_mid} if branch.is_input else {}
    if branch.kind == "mid":
        outputs[layer] = on_layer
    embedding = embedding_path(model.module)
    forget_gradients(model)
    watched: dict[str, Tensor] = {}

    def watch(output: Tensor) -> Tensor:
        output.retain_grad()
        watched["embedding"] = output
        return output

    with ExitStack() as stack:
        stack.enter_context(in_float64(branch.family))
        stack.enter_context(hooked(model.module, {embedding: watch}))
        stack.enter_context(hooked(model.module, outputs, inputs))
        logits = model.module(IDS, use_cache=False).logits
    sum([loss_of(logits), *extras]).backward()
    gradient = watched["embedding"].grad
    zeros = torch.zeros_like(watched["embedding"])
    found = {"embedding output": zeros if gradient is None else gradient}
    found |= parameter_gradients(model.module)
    forget_gradients(model)
    return found


@cache
def _untouched(branch: Branch) -> dict[str, Tensor]:
    return _gradients_with(branch, torch.clone)


def _oracle(branch: Branch, edit: str) -> dict[str, Tensor]:
    extras: list[Tensor] = []

    def change(value: Tensor) -> Tensor:
        factor, summand = GRADIENT_EDITS[edit][1](value)
        if summand is not None:
            extras.append((value * summand).sum())
        return value.detach() + factor * (value - value.detach())

    found = _gradients_with(branch, change, extras)
    moved = (float((found[name] - one).abs().max()) for name, one in _untouched(branch).items())
    assert max(moved) > 1e-3, "the edit changes nothing: this case cannot fail"
    return found


def _traced(branch: Branch, edit: str) -> dict[str, Tensor]:
    model = shared_model(branch.family)
    with in_float64(branch.family), model.trace(IDS, use_cache=False):
        embedded = part(model, embedding_path(model.module)).output
        value = branch.read(model)
        logits = model.output.logits
        mask, added = _random(*value.shape), _random(*value.shape, seed=4)
        with loss_of(logits).backward():
            GRADIENT_EDITS[edit][0](value, mask, added)
            arrived = embedded.grad
    return {"embedding output": arrived, **parameter_gradients(model.module)}


IN_ALL_WAYS = {"GPT-2", "GPT-NeoX"}
FEW_WAYS = ("zeroed in place", "multiplied in place", "constant assigned")


@pytest.mark.parametrize(
    ("branch", "edit"),
    [
        pytest.param(branch, edit, id=f"{branch} {edit}")
        for branch in BRANCHES
        for edit in (GRADIENT_EDITS if branch.family in IN_ALL_WAYS else FEW_WAYS)
    ],
)
def test_an_edited_gradient_flows_upstream_exactly(branch: Branch, edit: str):
    expected = _oracle(branch, edit)
    traced = _traced(branch, edit)
    if branch.kind == "embedding":
        # what is read after the edit is the edit; the oracle's watch stands upstream of it
        traced.pop("embedding output")
        expected.pop("embedding output")
    assert_all_close(traced, expected)


@every_branch
def test_the_oracle_agrees_with_a_tensor_hook(branch: Branch):
    def change(value: Tensor) -> Tensor:
        # Falcon adds to the MLP's output in place: the hook belongs to the value before that
        kept = value.clone()
        mask, added = _random(*value.shape), _random(*value.shape, seed=4)
        kept.register_hook(lambda gradient: gradient * mask + added)
        return kept

    extras: list[Tensor] = []

    def blend(value: Tensor) -> Tensor:
        extras.append((value * _random(*value.shape, seed=4)).sum())
        return value.detach() + _random(*value.shape) * (value - value.detach())

    assert_all_close(_gradients_with(branch, blend, extras), _gradients_with(branch, change))


@every_branch
def test_a_gradient_read_is_the_one_that_flows_into_the_value(branch: Branch):
    model = shared_model(branch.family)
    with in_float64(branch.family), model.trace(IDS, use_cache=False):
        value = branch.read(model)
        with loss_of(model.output.logits).backward():
            gradient = value.grad.clone()
    held: list[Tensor] = []

    def watch(value: Tensor) -> Tensor:
        value = value.clone()
        value.retain_grad()
        held.append(value)
        return value

    _gradients_with(branch, watch)
    assert_all_close({"gradient": gradient}, {"gradient": held[0].grad})


@pytest.mark.parametrize("family", LAYOUTS)
def test_several_branches_are_edited_in_one_backward_pass(family: str):
    layout, model = LAYOUTS[family], shared_model(family)
    branches = [layout.attn, layout.mlp] if layout.mlp else [layout.attn]
    names = [f"{layout.layers}.{layer}.{branch}" for layer in (0, 1) for branch in branches]

    def stop(output: Any) -> Any:
        return with_first(output, first(output).detach())

    forget_gradients(model)
    with in_float64(family), hooked(model.module, dict.fromkeys(names, stop)):
        loss_of(model.module(IDS, use_cache=False).logits).backward()
    expected = parameter_gradients(model.module)
    forget_gradients(model)
    with in_float64(family), model.trace(IDS, use_cache=False):
        values = {name: first(part(model, name).output) for name in names}
        with loss_of(model.output.logits).backward():
            for name in reversed(names):
                values[name].grad[:] = 0
    assert_all_close(parameter_gradients(model.module), expected)


# ---- activations ---------------------------------------------------------------------------------


def _edited_in_place(value: Tensor) -> Tensor:
    value[:, -1] *= 0
    value += _random(POSITIONS, 1)
    value[0, 1:3].neg_()
    return value


def _plainly_edited(branch: Branch, change: Callable[[Tensor], Tensor], *, in_place: bool) -> Any:
    """Logits and gradients of the plain module with the value edited by a hook."""
    model = shared_model(branch.family)

    def on_output(output: Any) -> Any:
        return with_first(output, change(first(output).clone()))

    def on_input(value: Tensor) -> Tensor | None:
        # edited in place, the residual sees it; replaced, only the module behind the input does
        return None if change(value) is value else value

    def replaced(value: Tensor) -> Tensor:
        return change(value.clone())

    outputs = {} if branch.is_input else {branch.module: on_output}
    inputs = {branch.module: on_input if in_place else replaced} if branch.is_input else {}
    forget_gradients(model)
    with in_float64(branch.family), hooked(model.module, outputs, inputs):
        logits = model.module(IDS, use_cache=False).logits
    loss_of(logits).backward()
    found = {"logits": logits.detach(), **parameter_gradients(model.module)}
    forget_gradients(model)
    return found


@every_branch
def test_edits_of_an_activation_in_place_land(branch: Branch):
    expected = _plainly_edited(branch, _edited_in_place, in_place=True)
    model = shared_model(branch.family)
    with in_float64(branch.family), model.trace(IDS, use_cache=False):
        _edited_in_place(branch.read(model))
        logits = model.output.logits
        loss_of(logits).backward()
    found = {"logits": logits.detach(), **parameter_gradients(model.module)}
    assert_all_close(found, expected)


@every_branch
def test_an_assigned_activation_takes_the_place_of_the_old_one(branch: Branch):
    expected = _plainly_edited(branch, lambda value: value * 0.5 + 0.25, in_place=False)
    model = shared_model(branch.family)
    with in_float64(branch.family), model.trace(IDS, use_cache=False):
        branch.assign(model, branch.read(model) * 0.5 + 0.25)
        logits = model.output.logits
        loss_of(logits).backward()
    found = {"logits": logits.detach(), **parameter_gradients(model.module)}
    assert_all_close(found, expected)


@pytest.mark.parametrize("family", LAYOUTS)
def test_an_augmented_assignment_to_a_module_is_an_edit(family: str):
    layout, model = LAYOUTS[family], shared_model(family)
    branch = Branch(family, "layer input")
    expected = _plainly_edited(branch, lambda value: value.add_(0.5), in_place=True)["logits"]
    with in_float64(family), model.trace(IDS, use_cache=False):
        part(model, layout.layers)[1].input += 0.5
        logits = model.output.logits
    assert_all_close({"logits": logits.detach()}, {"logits": expected})


@pytest.mark.parametrize("family", LAYOUTS)
def test_the_gradient_of_an_edited_value_is_that_of_the_edited_value(family: str):
    model = shared_model(family)
    branch = Branch(family, "residual")
    held: list[Tensor] = []

    def double(value: Tensor) -> Tensor:
        held.append(value * 2)
        held[0].retain_grad()
        return held[0]

    _gradients_with(branch, double)
    with in_float64(family), model.trace(IDS, use_cache=False):
        value = branch.read(model)
        value *= 2
        with loss_of(model.output.logits).backward():
            gradient = value.grad.clone()
    assert_all_close({"gradient": gradient}, {"gradient": held[0].grad})


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_skipped_module_gives_its_substitute(family: str):
    layout, model = LAYOUTS[family], shared_model(family)
    name = f"{layout.layers}.1.{layout.mlp or layout.attn}"
    value = _random(BATCH, POSITIONS, model.module.config.hidden_size)
    substitute = {name: lambda output: value.clone()}
    with in_float64(family), hooked(model.module, substitute):
        expected = model.module(IDS, use_cache=False).logits
    with in_float64(family), model.trace(IDS, use_cache=False):
        part(model, name).skip(value.clone())
        logits = model.output.logits
    assert_all_close({"logits": logits.detach()}, {"logits": expected.detach()})


# ---- sites by name -------------------------------------------------------------------------------

SITE_FAMILIES = ["GPT-2", "Llama", "GPT-NeoX", "Phi-3", "GPT-J", "BLOOM", "Falcon", "Mamba"]
every_site_family = pytest.mark.parametrize("family", SITE_FAMILIES)
# heads and values inside attention, a fused gate, own attention, writes in place, no attention
unlike_families = pytest.mark.parametrize("family", ["GPT-2", "Phi-3", "BLOOM", "Falcon", "Mamba"])


@cache
def _float32(family: str) -> Model:
    return hw.wrap(tiny_models.shared(family))


def _sites(model: Model) -> list[Site]:
    """The sites of the last layer and those without a layer, in the order they are computed."""
    return [site for site in model.sites() if site.layer in (None, 1)]


def _differs(actual: Tensor, expected: Tensor) -> bool:
    # float32, and two attention implementations: 1e-5 of the largest entry
    scale = float(expected.abs().max())
    return actual.shape != expected.shape or float((actual - expected).abs().max()) > 2e-5 * scale


@every_site_family
def test_sites_are_read_by_name(family: str):
    model = _float32(family)
    seen: dict[Site, Tensor] = {}
    taps = {site: lambda x, site=site: seen.__setitem__(site, x.clone()) for site in _sites(model)}
    with torch.no_grad():
        model.forward(IDS, taps=taps)
        with model.trace(IDS) as run:
            read = {site: run[str(site)].clone() for site in _sites(model)}
    assert [str(site) for site in read if _differs(read[site], seen[site])] == []


def _half_negated(value: Tensor) -> Tensor:
    changed = value.clone()
    changed[:, 2:] *= -0.5
    return changed


@unlike_families
@pytest.mark.parametrize("way", ["in place", "assigned"])
def test_sites_are_edited_by_name(family: str, way: str):
    model, wrong = _float32(family), []
    with torch.no_grad():
        clean = model.forward(IDS)
        for site in _sites(model):
            expected = model.forward(IDS, taps={site: _half_negated})
            with model.trace(IDS) as run:
                if way == "in place":
                    run[str(site)][:, 2:] *= -0.5
                else:
                    run[str(site)] = _half_negated(run[str(site)])
                logits = run.output.logits
            assert _differs(clean, expected), f"the edit of {site} changes nothing"
            if _differs(logits, expected):
                wrong.append(str(site))
    assert wrong == []


@every_site_family
def test_gradients_at_sites_are_read_by_name(family: str):
    model = _float32(family)
    held: dict[Site, Tensor] = {}

    def holding(site: Site) -> Callable[[Tensor], None]:
        def tap(value: Tensor) -> None:
            value.retain_grad()
            held[site] = value

        return tap

    sites = _sites(model)
    with ExitStack() as stack:
        stack.callback(forget_gradients, model)
        loss_of(model.forward(IDS, taps={site: holding(site) for site in sites})).backward()
        with model.trace(IDS) as run:
            values = {site: run[str(site)] for site in sites}
            with loss_of(run.output.logits).backward():
                read = {site: values[site].grad.clone() for site in reversed(sites)}
    assert [str(site) for site in sites if _differs(read[site], held[site].grad)] == []


@unlike_families
def test_gradients_at_sites_are_edited_by_name(family: str):
    model, wrong = _float32(family), []
    with ExitStack() as stack:
        stack.callback(forget_gradients, model)
        for site in _sites(model)[1:]:
            held: list[Tensor] = []

            def hold(value: Tensor, held: list[Tensor] = held) -> None:
                value.retain_grad()
                held.append(value)

            def halve(value: Tensor) -> Tensor:
                mask = torch.ones_like(value)
                mask[:, 2:] = 0.25
                return value.detach() + mask * (value - value.detach())

            taps = {Site(None, "embed"): hold, site: halve}
            loss_of(model.forward(IDS, taps=taps)).backward()
            with model.trace(IDS) as run:
                embedded = run["embed"]
                value = run[str(site)]
                with loss_of(run.output.logits).backward():
                    value.grad[:, 2:] *= 0.25
                    arrived = embedded.grad.clone()
            if _differs(arrived, held[0].grad):
                wrong.append(str(site))
    assert wrong == []
