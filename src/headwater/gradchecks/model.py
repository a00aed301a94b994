"""Check the gradient of a metric with respect to anything inside a model, at inference.

Costs `2 * steps + 1` forwards a direction from the value's layer on, stacked in the batch, in a
float64 copy of those layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from headwater.attribution.checks import refuse_arguments, refuse_modes
from headwater.attribution.manifest import describe_model, versions
from headwater.components import Choice, Component, Selection, parse_component
from headwater.errors import GradcheckError, UnknownComponentError
from headwater.gates import GatedTask
from headwater.gates.value import ValueFunction
from headwater.gradchecks.arguments import (
    refuse_choices,
    refuse_grad_outputs,
    refuse_no_tensors,
)
from headwater.gradchecks.asked import Asked
from headwater.gradchecks.check import About, Plan, check
from headwater.gradchecks.directions import Coordinates
from headwater.gradchecks.elsewhere import weights_of
from headwater.gradchecks.given import DECLARE, refuse_edited, with_doubt
from headwater.gradchecks.places import Checkable, at_sites, at_weight, refuse_unknown
from headwater.gradchecks.positions import Position
from headwater.gradchecks.provenance import asked_of
from headwater.gradchecks.report import GradientReport
from headwater.gradchecks.result import Check
from headwater.gradchecks.spanned import Spanned
from headwater.gradchecks.tensors import Dtype, TensorFunction, gated
from headwater.models import Model
from headwater.references import Corrupted, Reference, Zero
from headwater.sites import Site
from headwater.suffix import float64_suffix


def gradcheck(
    model: Model,
    prompt: str,
    *,
    site: str | Selection,
    metric: Any = None,
    position: Position = -1,
    coordinates: Coordinates = None,
    directions: Tensor | None = None,
    basis: Tensor | None = None,
    coefficients: Tensor | None = None,
    gradient: Tensor | None = None,
    grad_outputs: Tensor | str | None = None,
    edits: Mapping[str, Any] | None = None,
    answer: Any = (),
    wrong: Any = (),
    corrupted: str | None = None,
    reference: Reference | None = None,
    dtype: Dtype = "float64",
    steps: int = 24,
    rtol: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> GradientReport:
    """Compare a gradient inside a model with central differences, and say what its sign means.

    Args:
        model: From `hw.load` or `hw.wrap`.
        prompt: The prompt; it runs alone, without padding.
        site: What the gradient is with respect to: a site (`"layers.1.mlp.post"`; of a gated MLP
            its `mlp.gate`, `mlp.up` and `mlp.post` are reported together), a weight's name as in
            `module.named_parameters()`, a component's name (`"a1.h2"`) or a selection
            (`hw.heads()`), whose gates are checked.
        metric: As for a task: `hw.prob("Mary")`, a name, a function of the logits. With
            `grad_outputs` a function may return several numbers a row.
        position: Which token's value, counted from the first or, negative, from the last; `"all"`
            for all together.
        coordinates: Which entries are checked one by one: `"all"`, a list, or a number `n` for the
            `n` steepest and `n` at random; 8 if left out.
        directions: Directions to check instead of the usual ones, shaped as the value.
        basis: Vectors [n, *value]: the gradient is then with respect to coefficients along them,
            for example rows of a dictionary's decoder (features) or parts of a weight.
        coefficients: What the coefficients are in the run, [n]; 0 if left out.
        gradient: A gradient of yours to check, for example one read in a trace.
        grad_outputs: Weights of the entries of a vector metric, or `"ones"`.
        edits: Edits of gradients that are part of the question: by site, the number or tensor
            that multiplies the gradient there (0 cuts a path). The function that is differenced
            is changed alike: there the deviation from the run is multiplied by it.
        answer: For metrics that read the prompt's answer.
        wrong: For metrics that read a wrong answer.
        corrupted: A corrupted prompt, for gates whose reference needs one.
        reference: What a closed gate puts there; `hw.Corrupted()` if there is a corrupted prompt,
            else `hw.Zero()`.
        dtype: `"float64"`: a float64 copy of the layers from the value's on, with every cast down
            inside dropped; the residual that enters them is the model's own (gates and the weights
            of the embedding: a copy of the whole model). `"native"`: the
            model as it is, which settles less; nothing passes in bfloat16 or float16.
        steps: How many steps, at least 8.
        rtol: Relative difference that counts as agreement whatever the error bar says.
        seed: For random directions and coordinates.
        progress: True, False, or None to show a bar only on a terminal.

    Returns:
        The report: verdict, one check a site, page.

    Raises:
        GradcheckError: If an argument has no meaning here.
        NoPathError: If the metric cannot depend on the value: a position after all it reads.
        UnknownSiteError: If the model has no such site, weight or component.
        UnknownWordError: If the tokenizer has no token for a word.
        PromptError: If the prompt is too long for the model, or cannot be used.
        ModelStateError: If dropout is active.
        UnsupportedModelError: If the model cannot be run with taps, or not in float64.
    """
    refuse_arguments(model=model, reference=reference)
    refuse_modes()
    refuse_choices(dtype, steps, seed, rtol)
    native = dtype == "native"
    if not isinstance(site, str | Selection):
        raise GradcheckError(
            f"site is {type(site).__name__}: write a site ('layers.1.mlp.post'), a weight's or "
            "component's name, or a selection (hw.heads())."
        )
    refuse_no_tensors(
        gradient=gradient, directions=directions, basis=basis, coefficients=coefficients
    )
    refuse_grad_outputs(grad_outputs)
    if edits is not None and not isinstance(edits, Mapping):
        raise GradcheckError(
            f"edits is {type(edits).__name__}: write what each gradient was multiplied by, "
            "edits={site: factor}."
        )
    moved = position if position != -1 else None
    if corrupted is not None and not (isinstance(site, Selection) or _is_component(site)):
        raise GradcheckError(
            "corrupted= is what closed gates put in place of components, and this is no gate.\n"
            "Leave it out, or check gates: site=hw.heads()."
        )
    asked = Asked(model, prompt, metric, answer, wrong, corrupted, grad_outputs)
    if edits is None:
        refuse_edited(gradient, asked.title, DECLARE)
    with model.frozen():
        if isinstance(site, Selection) or _is_component(site):
            _refuse_beside_gates(basis=basis, edits=edits, position=moved)
            off = reference or (Zero() if corrupted is None else Corrupted())
            found = [_at_gates(model, asked, site, off, native=native)]
        elif Site.is_path(site) or not _is_weight(model, site):
            if not Site.is_path(site) and not site.startswith("layers."):
                refuse_unknown(model, site)
            found = at_sites(
                model,
                asked,
                site,
                position,
                edits=edits or {},
                native=native,
                alone=gradient is not None or basis is not None or directions is not None,
            )
        else:
            _refuse_beside_weights(edits=edits, position=moved)
            found = [at_weight(model, asked, site, native=native)]
        if basis is None and coefficients is not None:
            raise GradcheckError("coefficients= are along the vectors of basis=, which is missing.")
        if basis is not None:
            found = [_spanned(one, basis, coefficients) for one in found]
        plan = Plan(coordinates, directions, steps, rtol, seed, progress)
        checks = tuple(_checked(one, about, asked, plan, gradient) for one, about in found)
    if gradient is not None and edits is None:
        checks = tuple(map(with_doubt, checks))
    return GradientReport(
        objective=asked.title,
        checks=checks,
        model=model.name,
        tokens=asked.tokens,
        provenance={
            "model": describe_model(model),
            "task": asked.task.to_dict(),
            **asked_of(
                site=site,
                position=position,
                coordinates=coordinates,
                directions=directions,
                basis=basis,
                coefficients=coefficients,
                gradient=gradient,
                grad_outputs=grad_outputs,
                edits=edits,
                reference=reference,
                dtype=dtype,
                steps=steps,
                rtol=rtol,
                seed=seed,
            ),
            "versions": versions(),
        },
    )


def _checked(
    function: ValueFunction, about: About, asked: Asked, plan: Plan, gradient: Tensor | None
) -> Check:
    weights = weights_of(function, asked)
    if gradient is not None and gradient.shape != function.value.shape:
        raise GradcheckError(
            f"the gradient has shape {list(gradient.shape)}; the value at {about.name}"
            f"{f', {about.where},' if about.where else ''} has {list(function.value.shape)}.\n"
            "Give the gradient with respect to that value alone, without batch and other "
            "positions: gradient[0, -1] of a site's whole gradient."
        )
    if weights is not None:
        counts = {**about.counts, "entries of the metric": weights.numel()}
        about = replace(about, counts=counts)
    return check(function, about, plan, weights=weights, claimed=gradient)


def _spanned(checkable: Checkable, basis: Tensor, coefficients: Tensor | None) -> Checkable:
    function, about = checkable
    spanned = Spanned(function, basis, coefficients)
    return spanned, About(
        name=f"coefficients at {about.name}",
        where=about.where,
        name_of=lambda index: f"vector {index}",
        counts=about.counts,
    )


def _at_gates(
    model: Model, asked: Asked, site: Selection | str, reference: Reference, *, native: bool
) -> Checkable:
    """Return the gates of components as a function; of one component, its own gate alone."""
    runner = model if native else float64_suffix(model, 0)
    chosen: Component | None = None
    if isinstance(site, str):
        chosen = parse_component(site)
        site = _selecting(chosen)
    (_, gates), *_ = GatedTask(runner, asked.task, site, reference, batch_size=1)
    point, rows, stacked = gated(gates, None)
    names, function = gates.names, TensorFunction(rows, point, stacked)
    if chosen is None:
        return function, About(name="gates", name_of=lambda index: names[index])
    unit = point.new_zeros(1, *point.shape)
    unit[0, gates.table.index_of(chosen.name)] = 1
    alone = Spanned(function, unit, point.new_ones(1))
    return alone, About(name=f"the gate of {chosen.name}", name_of=lambda _: chosen.name)


def _selecting(component: Component) -> Selection:
    """Return the selection of a component and its siblings in the layer."""
    layers = None if component.layer is None else (component.layer,)
    positions = "all" if component.position is None else (component.position,)
    return Selection((Choice(component.kind, layers, positions),))


def _is_component(name: str) -> bool:
    try:
        parse_component(name)
    except UnknownComponentError:
        return False
    return True


def _is_weight(model: Model, name: str) -> bool:
    return any(name == one for one, _ in model.module.named_parameters(remove_duplicate=False))


def _refuse_beside_gates(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise GradcheckError(f"{name} goes with a site, not with the gates of components.")


def _refuse_beside_weights(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise GradcheckError(f"{name} goes with a site, not with a weight.")
