"""From a name to what is checked there: the functions of a prompt's run, and their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from headwater.errors import GradcheckError, UnknownSiteError, did_you_mean
from headwater.gates.task import most_tokens
from headwater.gates.value import SiteFunction, ValueFunction, WeightFunction
from headwater.gradchecks.asked import Asked
from headwater.gradchecks.check import About
from headwater.gradchecks.edits import as_scale
from headwater.gradchecks.elsewhere import elsewhere, precision
from headwater.gradchecks.labels import indexed, namer
from headwater.gradchecks.positions import AT_THE_END, Position, columns_of, positions_of, where
from headwater.gradchecks.starts import Start, in_float64, started
from headwater.models import Model
from headwater.sites import Site
from headwater.taps import keeper

Checkable = tuple[ValueFunction, About]
GATED = ("mlp.gate", "mlp.up", "mlp.post")
"""Sites of a gated MLP, which are looked at together."""


def at_sites(
    model: Model,
    asked: Asked,
    path: str,
    position: Position,
    *,
    edits: Mapping[str, Any],
    native: bool,
    alone: bool,
) -> list[Checkable]:
    """Return the value at a site as a function, and those that belong to it.

    Args:
        model: The model.
        asked: Prompt and objective.
        path: The site.
        position: Which token's value.
        edits: By site, what multiplies the gradient there.
        native: Whether to compute in the model's own numbers.
        alone: Whether to leave out the other sites of a gated MLP.
    """
    adapter, site = model.anatomy(), Site.parse(path)
    adapter.point(site)  # refuses a site that this model does not offer
    siblings: list[Site] = []
    if site.name in GATED and "mlp.gate" not in adapter.missing:
        siblings = [Site(site.layer, name) for name in GATED if name != site.name]
    columns = columns_of(asked, site, position)
    layer = adapter.n_layers if site.name in AT_THE_END else site.layer or 0
    own = started(model, asked, layer)
    start = own if native else in_float64(own, asked)
    make = partial(_site_function, start, asked, columns, _scales(start, edits))
    # a residual may be float32 in a model that computes in bfloat16
    inside = model.dtype if native else None
    functions = [make(one) for one in (site, *(() if alone else siblings))]
    for edited in functions[0].scales:
        if not functions[0].moves(edited):
            raise _without_effect(edited)
    together = isinstance(columns, range)
    positions = positions_of(asked, site, columns if together else range(columns, columns + 1))
    found: list[Checkable] = []
    for function in functions:
        name_of = namer(function.site, tuple(function.value.shape), positions if together else None)
        about = About(
            name=str(function.site),
            where=where(asked, positions),
            name_of=name_of,
            counts={"tokens": asked.length},
            inside=inside,
            elsewhere=partial(
                elsewhere,
                function,
                [one for one in (site, *siblings) if one != function.site],
                make,
                asked,
            ),
        )
        if start is not own:
            natively = partial(_site_function, own, asked, columns, function.scales, function.site)
            about = replace(about, precision=partial(precision, natively, asked))
        found.append((function, about))
    return found


def at_weight(model: Model, asked: Asked, name: str, *, native: bool) -> Checkable:
    """Return a weight of the model as a function."""
    layer = _layer_of_weight(model, name)

    def function(at: Start) -> WeightFunction:
        pair = None if layer is None else at.pair
        return WeightFunction(at.model, at.batch, asked.objective, name, pair)

    own = started(model, asked, layer or 0)
    start = own if native else in_float64(own, asked)
    found = function(start)
    about = About(name=name, name_of=indexed(tuple(found.value.shape)))
    if start is not own:
        about = replace(about, precision=partial(precision, partial(function, own), asked))
    return found, about


def _layer_of_weight(model: Model, name: str) -> int | None:
    """Return the first layer that a run has to have in it; None: it begins at the prompt."""
    adapter, weight = model.anatomy(), model.module.get_parameter(name)

    def holds(module: torch.nn.Module | None) -> bool:
        return module is not None and any(one is weight for one in module.parameters())

    layers = [number for number, layer in enumerate(adapter.layers) if holds(layer)]
    get_embeddings: Any = getattr(model.module, "get_input_embeddings", lambda: None)
    if layers:
        return layers[0]
    at_the_end = holds(adapter.final_norm) or holds(adapter.unembed)
    # tied to the embedding, it counts at the prompt as well
    return adapter.n_layers if at_the_end and not holds(get_embeddings()) else None


def refuse_unknown(model: Model, name: str) -> None:
    """Refuse a name that is neither a site's, a weight's nor a component's.

    Raises:
        UnknownSiteError: With the closest names.
    """
    known = [*map(str, model.sites()), *(name for name, _ in model.module.named_parameters())]
    raise UnknownSiteError(
        f"no site, weight or component {name!r} in {model.name}.{did_you_mean(name, known)}\n"
        f"All sites: `headwater sites {model.name}`."
    )


def _site_function(
    start: Start,
    asked: Asked,
    columns: int | range,
    scales: Mapping[Site, float | Tensor],
    site: Site,
) -> SiteFunction:
    return SiteFunction(
        start.model,
        start.batch,
        asked.objective,
        site,
        columns,
        start.pair,
        tokens=most_tokens(start.model),
        scales=scales,
    )


def _scales(start: Start, edits: Mapping[str, Any]) -> dict[Site, float | Tensor]:
    """Return what multiplies the gradient at each edited site."""
    if not edits:
        return {}
    sites = {name: Site.parse(name) for name in edits}
    for site in sites.values():
        first = site.layer is not None or site.name == "embed"
        if first and (site.layer or 0) < start.layer:
            raise _without_effect(site)
    kept: dict[Any, Tensor] = {}
    with torch.no_grad():
        taps = {site: keeper(kept, name) for name, site in sites.items()}
        start.forward(taps)
    return {site: as_scale(name, edits[name], kept[name]) for name, site in sites.items()}


def _without_effect(edited: Site) -> GradcheckError:
    return GradcheckError(
        f"the edit at {edited} lies before the value or beside it, so it changes nothing of its "
        "gradient.\nEdit a site between the value and the metric, or leave it out."
    )
