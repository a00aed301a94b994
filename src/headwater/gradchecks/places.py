"""From a name to what is checked there: the functions of a prompt's run, and what they are called.

A run in float64 starts from the model's own residual, so the check is of the layers that follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import GradcheckError, NoPathError, UnknownSiteError, did_you_mean
from headwater.gates.task import TOKENS
from headwater.gates.value import SiteFunction, ValueFunction, WeightFunction
from headwater.gradchecks.asked import Asked
from headwater.gradchecks.check import About, gradient_of
from headwater.gradchecks.edits import as_scale
from headwater.gradchecks.hints import same
from headwater.gradchecks.labels import indexed, namer
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
    for edited in scales:
        if not functions[path].moves(edited):
            raise _without_effect(edited)
    together = isinstance(columns, range)
    positions = _positions(asked, site, columns if together else range(columns, columns + 1))
    found: list[Checkable] = []
    for name, function in functions.items():
        about = About(
            name=name,
            where=_where(asked, positions),
            name_of=namer(
                function.site, tuple(function.value.shape), positions if together else None
            ),
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
    layer = _layer_of_weight(model, name)

    def function(started_at: Start) -> WeightFunction:
        pair = None if layer is None else started_at.pair
        return WeightFunction(started_at.model, started_at.batch, asked.objective, name, pair)

    start = started(model, asked, layer or 0, native=native)
    found = function(start)
    about = About(name=name, name_of=indexed(tuple(found.value.shape)))
    if native or start.model is model:
        return found, about
    own = started(model, asked, layer or 0, native=True)
    return found, replace(about, precision=partial(_precision, partial(function, own), asked, own))


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
        if not isinstance(basis, Tensor):
            raise GradcheckError(
                f"basis is {type(basis).__name__}, not a tensor.\n"
                "Give vectors of the value's shape, stacked: torch.stack([...])."
            )
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
        start.model,
        start.batch,
        asked.objective,
        site,
        columns,
        start.pair,
        tokens=TOKENS.get(start.model.device.type, TOKENS["cpu"]),
        scales=scales,
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


def _positions(asked: Asked, site: Site, columns: range) -> list[int]:
    """Return which positions of the run the columns of a site's value are."""
    if site.name != "logits":
        return list(columns)
    read = asked.batch.read_columns()
    return [read[column] for column in columns]


def _where(asked: Asked, positions: Sequence[int]) -> str:
    if list(positions) == list(range(asked.length)) and asked.length > 1:
        return f"all {asked.length} positions"
    if len(positions) > 1:
        return f"positions {', '.join(map(str, positions))}"
    (position,) = positions
    # tokens of the answer stand behind the prompt's
    token = repr(asked.tokens[position]) if position < asked.length else "of the answer"
    return f"position {position} ({token})"


def _scales(start: Start, asked: Asked, edits: Mapping[str, Any]) -> dict[Site, float | Tensor]:
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
        _forward(start.model, start.batch, taps, start.pair)
    return {site: as_scale(name, edits[name], kept[name]) for name, site in sites.items()}


def _without_effect(edited: Site) -> GradcheckError:
    return GradcheckError(
        f"the edit at {edited} lies before the value or beside it, so it changes nothing of its "
        "gradient.\nEdit a site between the value and the metric, or leave it out."
    )


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
            positions = _positions(asked, function.site, range(column, column + 1))
            return f"this is the gradient at {_where(asked, positions)}"
    return ""


def _weights(function: ValueFunction, asked: Asked) -> Tensor | None:
    with torch.no_grad():
        return asked.weights(function.rows(function.value[None]))


def _precision(
    natively: Callable[[], ValueFunction], asked: Asked, own: Start, gradient: Tensor
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
