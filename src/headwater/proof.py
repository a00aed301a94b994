"""The adapter proves itself: on random tokens the model's parts must add up to the model.

Costs about eight forward passes over two rows of seven tokens. A record of the table that does
not fit this model is refused with every number; nothing about the model is changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headwater.architectures.adapter import Adapter
from headwater.attention import AttentionTaps, listening, switched_on
from headwater.errors import FailedProofError
from headwater.precision import context_for
from headwater.sites import Site

if TYPE_CHECKING:
    from headwater.models import Model

BATCH, POSITIONS = 2, 7
_LOGITS = Site(None, "logits")
_EMBED = Site(None, "embed")


@dataclass(frozen=True)
class Check:
    """One identity that must hold, with how far off it was."""

    claim: str
    """The identity in words."""
    error: float
    """Largest relative error found."""
    allowed: float
    """What rounding in the model's dtype explains."""
    suspect: str
    """The lines of the family's record to look at if it fails."""
    binding: bool = True
    """False: a failure only switches a convenience off (left padding)."""

    @property
    def holds(self) -> bool:
        """Whether the error is within what rounding explains (NaN is not)."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Proof:
    """The checks an adapter went through, with their numbers."""

    model: str
    family: str
    dtype: str
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether every binding check holds."""
        return all(check.holds for check in self.checks if check.binding)

    @property
    def pads(self) -> bool:
        """Whether left padding changed no number."""
        return all(check.holds for check in self.checks if not check.binding)

    def error(self, claim: str) -> float:
        """The error of the check whose claim starts with `claim`."""
        return next(check.error for check in self.checks if check.claim.startswith(claim))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        checks = {check.claim: [check.error, check.allowed] for check in self.checks}
        return {"family": self.family, "dtype": self.dtype, "checks": checks}

    def __str__(self) -> str:
        width = max(len(check.claim) for check in self.checks)
        lines = [
            f"  {check.claim:<{width}}  error {check.error:.1e}  allowed {check.allowed:.1e}"
            + ("" if check.holds else f"  FAILED: look at {check.suspect}")
            for check in self.checks
        ]
        return "\n".join([f"{self.model} as {self.family}, {self.dtype}:", *lines])


def prove(model: Model) -> Proof:
    """Check on random tokens that a model's adapter says the truth.

    Args:
        model: A model with an adapter; its mode, flags and random state stay as they are.

    Returns:
        The checks with their numbers.

    Raises:
        FailedProofError: If a check fails; carries every number and the lines to look at.
    """
    adapter = model.anatomy()
    name = type(model.module).__name__
    try:
        with (
            model.lock,
            _evaluating(model.module),
            torch.no_grad(),
            context_for(model.module),
        ):
            checks = _checks(model, adapter)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise FailedProofError(
            f"{name} cannot be run as {adapter.family.name}: on random tokens it raised "
            f"{type(error).__name__}: {error}\n{_advice(adapter)}"
        ) from error
    proof = Proof(name, adapter.family.name, str(model.dtype).removeprefix("torch."), checks)
    if not proof.holds:
        raise FailedProofError(
            f"the self-proof failed, so no attribution of this model could be trusted.\n{proof}\n"
            f"{_advice(adapter)}"
        )
    return proof


def _checks(model: Model, adapter: Adapter) -> tuple[Check, ...]:
    ids = _random_tokens(model)
    seen = _observe(model, adapter, ids)
    eps = _eps(model)
    checks = [_sum_of_writes(adapter, seen, eps), *_layer_sums(adapter, seen, eps)]
    if adapter.n_heads is not None:
        checks.append(_sum_of_heads(adapter, seen, eps))
    if adapter.interface:
        checks += _interface(model, adapter, ids, seen, eps)
    checks += _suffixes(model, adapter, ids, seen, eps)
    if Site(0, "resid_mid") in adapter.points:
        checks.append(_replacement(model, adapter, ids, eps))
    checks.append(_padding(model, ids, eps))
    return tuple(checks)


def _observe(model: Model, adapter: Adapter, ids: Tensor) -> dict[Site, Tensor]:
    """Every hooked value of one plain run; the model's own attention stays."""
    seen: dict[Site, Tensor] = {}

    def keeper(site: Site) -> Any:
        def keep(value: Tensor) -> None:
            seen[site] = value.clone()

        return keep

    inside = {"query", "key", "value", "pattern"}
    taps = {s: keeper(s) for s in adapter.sites() if adapter.point(s).side not in inside}
    model.run(ids, taps=taps)
    return seen


def _sum_of_writes(adapter: Adapter, seen: dict[Site, Tensor], eps: float) -> Check:
    terms = [seen[_EMBED].double()]
    for layer in range(adapter.n_layers):
        terms += [seen[Site(layer, w)].double() * adapter.write_scale for w in adapter.writes]
    last = seen[Site(adapter.n_layers - 1, "resid_post")].double()
    return Check(
        "embed + sum of writes = last residual",
        _elementwise(sum(terms) - last, *terms, last),
        eps * (4 + len(terms)),
        _lines(adapter, "layers", "attn_write", "mlp_write", "write_scale"),
    )


def _layer_sums(adapter: Adapter, seen: dict[Site, Tensor], eps: float) -> Iterator[Check]:
    """Name the layer and the half of it that does not add up."""
    middle = Site(0, "resid_mid") in seen
    steps = (
        [("resid_pre", ("attn.out",), "resid_mid"), ("resid_mid", ("mlp.out",), "resid_post")]
        if middle
        else [("resid_pre", adapter.writes, "resid_post")]
    )
    fields = {"attn.out": "attn_write", "mlp.out": "mlp_write", "mixer.out": "mixer"}
    for before, writes, after in steps:
        errors = []
        for layer in range(adapter.n_layers):
            start, end = seen[Site(layer, before)].double(), seen[Site(layer, after)].double()
            added = [seen[Site(layer, w)].double() * adapter.write_scale for w in writes]
            errors.append(_elementwise(start + sum(added) - end, start, *added, end))
        worst = max(range(len(errors)), key=lambda layer: _ranked(errors[layer]))
        named = _lines(adapter, *(fields[w] for w in writes), *(["mid"] if middle else []))
        yield Check(
            f"{before} + {' + '.join(writes)} = {after}",
            errors[worst],
            eps * 8,
            f"{named} (worst in layer {worst})",
        )


def _sum_of_heads(adapter: Adapter, seen: dict[Site, Tensor], eps: float) -> Check:
    errors = []
    for layer in range(adapter.n_layers):
        z, o_proj = seen[Site(layer, "attn.z")], adapter.o_proj(layer)
        if z.shape[-1] != adapter.d_head:
            errors.append(math.inf)
            continue
        alone = torch.stack([_only(z, head) for head in range(z.shape[2])]).flatten(-2)
        bias = o_proj(torch.zeros_like(alone[0]))
        parts = o_proj(alone.flatten(0, 1)).unflatten(0, alone.shape[:2]) - bias
        total = parts.double().sum(0).to(bias.dtype) + bias
        write = adapter.point(Site(layer, "attn.out")).module
        if adapter.family.attn_write.endswith("norm"):
            total = write(total)
        errors.append(_normwise(total - seen[Site(layer, "attn.out")], total))
    return Check(
        "sum over heads = attn.out",
        max(errors, key=_ranked),
        eps * 32,
        _lines(adapter, "o_proj", "attn_write"),
    )


def _interface(
    model: Model, adapter: Adapter, ids: Tensor, seen: dict[Site, Tensor], eps: float
) -> Iterator[Check]:
    """Headwater's attention is called once a layer, and agrees with the model's own.

    Every layer gets the residual of the plain run, so that errors don't pile up over layers.
    """
    inside: dict[int, Tensor] = {}
    shapes_fit: list[bool] = []
    counters = {}
    for layer in range(adapter.n_layers):
        counters[adapter.attention(layer)] = AttentionTaps(
            q=lambda q: shapes_fit.append(q.shape[2:] == (adapter.n_heads, adapter.d_head)),
            k=lambda k: shapes_fit.append(k.shape[2:] == (adapter.n_kv_heads, adapter.d_head)),
            z=lambda z, layer=layer: inside.__setitem__(layer, z.clone()),
        )
    taps: dict[Site, Any] = {}
    outside: dict[int, Tensor] = {}
    for layer in range(adapter.n_layers):
        taps[Site(layer, "resid_pre")] = lambda _, layer=layer: seen[Site(layer, "resid_pre")]
        taps[Site(layer, "attn.z")] = lambda z, layer=layer: outside.__setitem__(layer, z.clone())
    with switched_on(model.module), listening(counters):
        model.run(ids, taps=taps)
    called = [counter.calls for counter in counters.values()]
    off = sum(calls != 1 for calls in called) + (not all(shapes_fit))
    yield Check(
        "attention interface called once a layer, with the heads of the config",
        float(off),
        0.0,
        _lines(adapter, "attn", "interface"),
    )
    if off:
        return
    yield Check(
        "z inside the interface = input of o_proj",
        max(_normwise(inside[i] - outside[i], outside[i]) for i in inside),
        0.0,
        _lines(adapter, "attn", "o_proj"),
    )
    own = [seen[Site(layer, "attn.z")] for layer in range(adapter.n_layers)]
    yield Check(
        "headwater's attention = the model's own",
        max(_normwise(inside[i] - own[i], own[i]) for i in inside),
        min(eps * 64, 0.1),
        "attention.py: an option this family passes may be ignored",
    )


def _suffixes(
    model: Model, adapter: Adapter, ids: Tensor, seen: dict[Site, Tensor], eps: float
) -> Iterator[Check]:
    logits, last = seen[_LOGITS], adapter.n_layers
    allowed = min(eps * 64, 0.1)
    middle = last // 2
    replay = model.run(ids, start=(middle, seen[Site(middle, "resid_pre")]))
    yield Check(
        "a run from the middle layer = the run",
        _normwise(replay - logits, logits),
        allowed,
        _lines(adapter, "layers", "returns_tuple"),
    )
    readout = model.run(ids, start=(last, seen[Site(last - 1, "resid_post")]))
    yield Check(
        "readout of the last residual = logits",
        _normwise(readout - logits, logits),
        allowed,
        _lines(adapter, "layers", "final_norm", "returns_tuple"),
    )
    kept = model.run(ids, read=1)
    yield Check(
        "unembedding the last position = its logits",
        _normwise(kept - logits[:, -1:], logits) if kept.shape[1] == 1 else math.inf,
        allowed,
        "the module get_output_embeddings() returns",
    )


def _replacement(model: Model, adapter: Adapter, ids: Tensor, eps: float) -> Check:
    """What replaces resid_mid must also be what the MLP's write is added to."""
    layer, seen = adapter.n_layers // 2, {}

    def halve(value: Tensor) -> Tensor:
        seen["mid"] = value / 2
        return seen["mid"].clone()

    def keep(name: str) -> Any:
        return lambda value: seen.__setitem__(name, value.clone())

    model.run(
        ids,
        taps={
            Site(layer, "resid_mid"): halve,
            Site(layer, "mlp.out"): keep("write"),
            Site(layer, "resid_post"): keep("post"),
        },
    )
    mid, post = seen["mid"].double(), seen["post"].double()
    write = seen["write"].double() * adapter.write_scale
    return Check(
        "a replaced resid_mid goes on as the residual",
        _elementwise(mid + write - post, mid, write, post),
        eps * 8,
        _lines(adapter, "mid", "mid_is_output"),
    )


def _padding(model: Model, ids: Tensor, eps: float) -> Check:
    pads = 2
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :pads] = False
    padded = model.run(ids, mask=mask)[1:, pads:]
    alone = model.run(ids[1:, pads:])
    return Check(
        "left padding changes nothing",
        _normwise(padded - alone, alone),
        min(eps * 1024, 0.1),
        "how the family computes positions; prompts will be grouped by length",
        binding=False,
    )


def _random_tokens(model: Model) -> Tensor:
    config = model.module.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    special = {
        value
        for part in (config, text)
        for key, value in part.to_dict().items()
        if key.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    usual = torch.tensor([i for i in range(min(model.anatomy().vocab, 4096)) if i not in special])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(usual), (BATCH, POSITIONS), generator=generator)
    return usual[drawn].to(model.device)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    # plain attributes, not .eval(): some models override train() to do more
    training = [part for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def _eps(model: Model) -> float:
    """Rounding of the model's arithmetic, relative; TF32 products keep ten bits."""
    dtype = model.dtype if model.dtype.is_floating_point else torch.float32
    eps = torch.finfo(dtype).eps
    coarse = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return max(eps, 2**-10) if coarse else eps


def _only(z: Tensor, head: int) -> Tensor:
    alone = torch.zeros_like(z)
    alone[:, :, head] = z[:, :, head]
    return alone


def _elementwise(difference: Tensor, *terms: Tensor) -> float:
    """Largest difference, each relative to the sizes of the numbers added there."""
    sizes = sum(term.abs() for term in terms)
    return float((difference.abs() / (sizes + torch.finfo(torch.float64).tiny)).max())


def _normwise(difference: Tensor, of: Tensor) -> float:
    norm = of.double().norm()
    return float(difference.double().norm() / norm) if norm > 0 else float(difference.abs().max())


def _ranked(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _lines(adapter: Adapter, *fields: str) -> str:
    return ", ".join(f"{field}={getattr(adapter.family, field)!r}" for field in fields)


def _advice(adapter: Adapter) -> str:
    return (
        f"The record of {adapter.family.name} in headwater/architectures/table.py does not fit "
        "this model (a fork, other transformers, or a patched module).\n"
        "`hw.load(..., prove=False)` skips the proof; its numbers are then on your own account."
    )
