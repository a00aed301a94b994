"""From a name to what is checked there: the functions of a prompt's run, and what they are called.

A run in float64 starts from the model's own residual, so the check is of the layers that follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import GradcheckError, NoPathError, UnknownSiteError, did_you_mean
from headwater.gates.value import SiteFunction, ValueFunction, WeightFunction
from headwater.gradchecks.asked import Asked
from headwater.gradchecks.check import About, gradient_of
from headwater.gradchecks.edits import as_scale
from headwater.gradchecks.hints import same
from headwater.gradchecks.labels import namer
from headwater.gradchecks.lines import Weighed
from headwater.gradchecks.result import Precision
from headwater.models import Model
from headwater.prompts import Batch
from headwater.sites import Site
from headwater.suffix import float64_suffix
from headwater.taps import keeper

Position = int | Literal["all"]
Checkable = tuple[ValueFunction, About]
GATED = ("mlp.gate", "mlp.up", "mlp.post")
"""Sites of a gated MLP, which are looked at together."""
_AT_THE_END = ("final_norm", "logits")


@dataclass(frozen=True, eq=False)
class Start:
    """A model that runs from a layer on, and what enters it."""

    model: Model
    batch: Batch
    layer: int
    residual: Float[Tensor, "one pos d_model"]

    @property
    def pair(self) -> tuple[int, Tensor]:
        """Layer and residual, as a run takes them."""
        return self.layer, self.residual


@torch.no_grad()
def started(model: Model, asked: Asked, layer: int, *, native: bool) -> Start:
    """Run the prompt once as the model is, and return how to go on from a layer.

    Args:
        model: The model.
        asked: Prompt and objective.
        layer: The first layer that will run; the number of layers for what follows them.
        native: Whether to go on in the model's own numbers; else in float64.
    """
    last = layer == model.anatomy().n_layers
    where = Site(layer - 1, "resid_post") if last else Site(layer, "resid_pre")
    kept: dict[Any, Tensor] = {}
    _forward(model, asked.batch, {where: keeper(kept, "residual")}, None)
    runner = model if native else float64_suffix(model, layer)
    residual = kept["residual"].to(runner.dtype)
    batch = asked.batch
    if "clean_logits" in asked.metric.needs:
        logits = _forward(runner, batch, {}, (layer, residual))
        batch = batch.with_clean_logits(logits)
    return Start(runner, batch, layer, residual)


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
    names = [site.name]
    if not alone and site.name in GATED and "mlp.gate" not in adapter.missing:
        names += [name for name in GATED if name != site.name]
    layer = adapter.n_layers if site.name in _AT_THE_END else site.layer or 0
    columns = _columns(asked, site, position)
    start = started(model, asked, layer, native=native)
    scales = _scales(start, asked, edits)
    own = None if native or start.model is model else started(model, asked, layer, native=True)
    functions: dict[str, SiteFunction] = {}
    for name in names:
        one = Site(site.layer, name)
        functions[str(one)] = _site_function(start, asked, one, columns, scales)
    found: list[Checkable] = []
    for name, function in functions.items():
        first = columns.start if isinstance(columns, range) else None
        about = About(
            name=name,
            where=_where(asked, position, columns),
            name_of=namer(function.site, tuple(function.value.shape), first),
            counts={"tokens": asked.length},
            elsewhere=partial(_elsewhere, function, functions, asked),
        )
        if own is not None:
            natively = partial(_site_function, own, asked, function.site, columns, scales)
            about = replace(about, precision=partial(_precision, natively, asked, own))
        found.append((function, about))
    return found


def at_weight(model: Model, asked: Asked, name: str, *, native: bool) -> Checkable:
    """Return a weight of the model as a function."""
    adapter, weight = model.anatomy(), model.module.get_parameter(name)

    def holds(module: torch.nn.Module | None) -> bool:
        return module is not None and any(one is weight for one in module.parameters())

    layers = [number for number, layer in enumerate(adapter.layers) if holds(layer)]
    get_embeddings: Any = getattr(model.module, "get_input_embeddings", lambda: None)
    if layers:
        start = started(model, asked, layers[0], native=native)
    elif (holds(adapter.final_norm) or holds(adapter.unembed)) and not holds(get_embeddings()):
        start = started(model, asked, adapter.n_layers, native=native)
    else:  # what comes before the first layer is part of the question
        start = started(model, asked, 0, native=native)
        whole = WeightFunction(start.model, start.batch, asked.objective, name, None)
        return whole, About(name=name)
    function = WeightFunction(start.model, start.batch, asked.objective, name, start.pair)
    return function, About(name=name)


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


class Spanned:
    """A function of coefficients along vectors, instead of the value itself.

    Args:
        function: The function of the value.
        basis: The vectors.
        coefficients: What they are in the run.
    """

    def __init__(
        self,
        function: ValueFunction,
        basis: Float[Tensor, "vector *shape"],
        coefficients: Float[Tensor, " vector"] | None,
    ) -> None:
        shape = function.value.shape
        if basis.shape[1:] != shape:
            raise GradcheckError(
                f"basis has shape {list(basis.shape)}; the value has {list(shape)}.\n"
                "Give vectors of that shape, stacked: [n, ...]."
            )
        if coefficients is None:
            coefficients = basis.new_zeros(len(basis))
        if coefficients.shape != (len(basis),):
            raise GradcheckError(
                f"coefficients has shape {list(coefficients.shape)}; the basis has {len(basis)} "
                "vectors. Give one number a vector."
            )
        self._function, self._basis = function, basis.detach().to(function.value)
        self.value, self.stacked = coefficients.detach().to(function.value), function.stacked

    def rows(self, points: Float[Tensor, "point vector"]) -> Float[Tensor, "point *entry"]:
        """Return the objective with each point's coefficients."""
        moved = torch.tensordot(points - self.value, self._basis, dims=1)
        return self._function.rows(self._function.value + moved)


def _forward(
    model: Model, batch: Batch, taps: Mapping[Site, Any], start: tuple[int, Tensor] | None
) -> Tensor:
    return model.forward(
        batch.clean,
        mask=batch.mask,
        position_ids=batch.position_ids,
        taps=taps,
        start=start,
        read=batch.read,
    )


def _site_function(
    start: Start,
    asked: Asked,
    site: Site,
    columns: int | range,
    scales: Mapping[Site, float | Tensor],
) -> SiteFunction:
    return SiteFunction(
        start.model, start.batch, asked.objective, site, columns, start.pair, scales=scales
    )


def _columns(asked: Asked, site: Site, position: Position) -> int | range:
    """Return the columns of the run that a position means at a site, or refuse.

    Raises:
        GradcheckError: If the prompt has no such position.
        NoPathError: If the metric reads nothing that depends on it.
    """
    length, read = asked.length, asked.batch.read_columns()
    if position == "all":
        if site.name == "logits":
            return range(len(read))
        return range(length)
    if not isinstance(position, int):
        raise GradcheckError(f'position={position!r}: write a number such as -1, or "all".')
    if not -length <= position < length:
        raise GradcheckError(
            f"position {position} does not exist: the prompt has {length} tokens, positions 0 to "
            f"{length - 1}."
        )
    column = position % length
    ends = site.name in _AT_THE_END
    if column > max(read) or (ends and column not in read):
        reads = ", ".join(map(str, read))
        raise NoPathError(
            f"no path from '{site}' at position {column} ({asked.tokens[column]!r}) to "
            f"{asked.title}, which reads the logits at position {reads}: "
            + (
                "no other position's are read.\n"
                if ends
                else "a causal model shows nothing of a token to those before it.\n"
            )
            + "The logits at position i predict token i + 1. Choose a position of the site at or "
            "before the one that is read."
        )
    return read.index(column) if site.name == "logits" else column


def _where(asked: Asked, position: Position, columns: int | range) -> str:
    if isinstance(columns, range):
        return f"all {asked.length} positions"
    column = int(position) % asked.length
    return f"position {column} ({asked.tokens[column]!r})"


def _scales(start: Start, asked: Asked, edits: Mapping[str, Any]) -> dict[Site, float | Tensor]:
    """Return what multiplies the gradient at each edited site."""
    if not edits:
        return {}
    sites = {name: Site.parse(name) for name in edits}
    for name, site in sites.items():
        before = site.name == "embed" if site.layer is None else site.layer < start.layer
        if before and (site.layer is not None or start.layer > 0):
            raise GradcheckError(
                f"the edit at {name} lies before the value, so it changes nothing of its gradient."
                "\nEdit a later site, or leave it out."
            )
    kept: dict[Any, Tensor] = {}
    with torch.no_grad():
        taps = {site: keeper(kept, name) for name, site in sites.items()}
        _forward(start.model, start.batch, taps, start.pair)
    return {site: as_scale(name, edits[name], kept[name]) for name, site in sites.items()}


def _elsewhere(
    function: SiteFunction, siblings: Mapping[str, SiteFunction], asked: Asked, claimed: Tensor
) -> str:
    """Say of which other position or site a gradient is the right one."""
    weights = _weights(function, asked)
    for name, sibling in siblings.items():
        if sibling is not function and sibling.value.shape == claimed.shape:
            other = gradient_of(Weighed(sibling, weights))
            if other is not None and same(claimed, other):
                return f"this is the gradient at {name}"
    if not isinstance(function.columns, int):
        return ""
    with torch.enable_grad():
        leaf = function.whole.clone().requires_grad_()
        total = Weighed(function, weights).sum(function.everywhere(leaf))[0]
        (whole,) = torch.autograd.grad(total, leaf)
    for column, other in enumerate(whole[0].unbind(function.axis - 1)):
        if column != function.columns and same(claimed, other):
            return f"this is the gradient at position {column} ({asked.tokens[column]!r})"
    return ""


def _weights(function: ValueFunction, asked: Asked) -> Tensor | None:
    with torch.no_grad():
        return asked.weights(function.rows(function.value[None]))


def _precision(
    natively: Callable[[], SiteFunction], asked: Asked, own: Start, gradient: Tensor
) -> Precision | None:
    """Compare a gradient with the one in the model's own numbers."""
    function = natively()
    found = gradient_of(Weighed(function, _weights(function, asked)))
    if found is None:
        return None
    right, rough = gradient.double().flatten(), found.double().flatten()
    largest = right.abs().max()
    if not largest > 0:
        return None
    moving = right != 0
    return Precision(
        dtype=str(own.model.dtype).removeprefix("torch."),
        largest=float((rough - right).abs().max() / largest),
        cosine=float(torch.cosine_similarity(right, rough, dim=0)),
        signs=float((right.sign() == rough.sign())[moving].double().mean()),
    )
