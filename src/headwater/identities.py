"""The identities that hold in a model whose parts are where its adapter says.

Each is computed on a few random tokens, by running the model and calling its own modules; weights
are never read, so quantized and adapted projections are checked like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headwater.architectures.adapter import Adapter
from headwater.attention import AttentionTaps, listening, switched_on
from headwater.sites import EMBED, Site

if TYPE_CHECKING:
    from headwater.models import Model

BATCH, POSITIONS = 2, 7
_LOGITS = Site(None, "logits")


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


def all_checks(model: Model, adapter: Adapter) -> tuple[Check, ...]:
    """Compute every identity for a model.

    Args:
        model: In evaluation mode.
        adapter: Its adapter.

    Returns:
        One check an identity, with its error and what rounding explains.
    """
    ids = _random_tokens(model)
    seen, handed = _observe(model, adapter, ids)
    eps = _eps(model)
    checks = [_sum_of_writes(adapter, seen, eps), *_layer_sums(adapter, seen, eps)]
    if adapter.n_heads is not None:
        checks.append(_sum_of_heads(adapter, seen, eps))
    if adapter.d_mlp is not None:
        checks.append(_sum_of_neurons(adapter, seen, eps))
    if adapter.d_inner is not None:
        checks += _mixers(model, adapter, ids, seen, eps)
    if adapter.interface:
        checks += _interface(model, adapter, ids, seen, eps)
    checks += _suffixes(model, adapter, ids, seen, eps)
    if Site(0, "resid_mid") in adapter.points:
        checks.append(_replacement(model, adapter, ids, eps))
    checks += [_untouched(adapter, seen, handed), _padding(model, ids, eps)]
    return tuple(checks)


def _observe(
    model: Model, adapter: Adapter, ids: Tensor
) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
    """Every hooked value of one plain run, copied; and the very tensors the taps were handed."""
    seen: dict[Site, Tensor] = {}
    handed: dict[Site, Tensor] = {}

    def keeper(site: Site) -> Any:
        def keep(value: Tensor) -> None:
            seen[site], handed[site] = value.clone(), value

        return keep

    inside = {"query", "key", "value", "pattern"}
    taps = {s: keeper(s) for s in adapter.sites() if adapter.point(s).side not in inside}
    model.forward(ids, taps=taps)
    return seen, handed


def _untouched(adapter: Adapter, seen: dict[Site, Tensor], handed: dict[Site, Tensor]) -> Check:
    changed = [site for site in seen if not torch.equal(seen[site], handed[site])]
    named = "" if not changed else f" ('{changed[0]}' was changed)"
    return Check(
        "tensors handed to taps stay as they were",
        float(len(changed)),
        0.0,
        _lines(adapter, "mutates") + named,
    )


def _sum_of_writes(adapter: Adapter, seen: dict[Site, Tensor], eps: float) -> Check:
    terms = [seen[EMBED].double()]
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
        if adapter.family.post_norm:
            total = write(total)
        errors.append(_normwise(total, seen[Site(layer, "attn.out")]))
    return Check(
        "sum over heads = attn.out",
        max(errors, key=_ranked),
        eps * 32,
        _lines(adapter, "o_proj", "attn_write"),
    )


def _sum_of_neurons(adapter: Adapter, seen: dict[Site, Tensor], eps: float) -> Check:
    errors = []
    for layer in range(adapter.n_layers):
        written = adapter.point(Site(layer, "mlp.post")).module(seen[Site(layer, "mlp.post")])
        if adapter.family.post_norm:
            written = adapter.point(Site(layer, "mlp.out")).module(written)
        errors.append(_normwise(written, seen[Site(layer, "mlp.out")]))
    return Check(
        "down projection of mlp.post = mlp.out",
        max(errors, key=_ranked),
        eps * 32,
        _lines(adapter, "down", "mlp_write"),
    )


def _mixers(
    model: Model, adapter: Adapter, ids: Tensor, seen: dict[Site, Tensor], eps: float
) -> Iterator[Check]:
    """The convolution leads from conv to ssm, and what leaves a mixer comes from ssm and y."""
    errors = []
    for layer in range(adapter.n_layers):
        mixer: Any = adapter.point(Site(layer, "mixer.out")).module
        entering = seen[Site(layer, "mixer.conv")]
        convolved = mixer.act(mixer.conv1d(entering.mT)[..., : entering.shape[1]]).mT
        if Site(layer, "mixer.ssm") in seen:
            errors.append(_normwise(convolved, seen[Site(layer, "mixer.ssm")]))
    if errors:
        yield Check(
            "activated convolution of mixer.conv = mixer.ssm",
            max(errors, key=_ranked),
            eps * 32,
            _lines(adapter, "in_proj", "x_proj"),
        )
    for name in ("mixer.ssm", "mixer.y"):
        if name not in adapter.missing:
            yield Check(
                f"a mixer whose {name} is zero writes nothing",
                _left_without(model, adapter, ids, name),
                0.0,
                _lines(adapter, "x_proj", "ssm_norm", "o_proj"),
            )


def _left_without(model: Model, adapter: Adapter, ids: Tensor, name: str) -> float:
    """The largest channel of any mixer when a site of theirs is zero."""
    left: list[float] = []
    taps: dict[Site, Any] = {}
    for layer in range(adapter.n_layers):
        taps[Site(layer, name)] = torch.zeros_like
        taps[Site(layer, "mixer.post")] = lambda post: left.append(float(post.abs().max()))
    model.forward(ids, taps=taps)
    return max(left, key=_ranked)


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
        model.forward(ids, taps=taps)
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
        max(_normwise(inside[i], outside[i]) for i in inside),
        0.0,
        _lines(adapter, "attn", "o_proj"),
    )
    own = [seen[Site(layer, "attn.z")] for layer in range(adapter.n_layers)]
    yield Check(
        "headwater's attention = the model's own",
        max(_normwise(inside[i], own[i]) for i in inside),
        min(eps * 64, 0.1),
        "attention.py: an option this family passes may be ignored",
    )


def _suffixes(
    model: Model, adapter: Adapter, ids: Tensor, seen: dict[Site, Tensor], eps: float
) -> Iterator[Check]:
    logits, last = seen[_LOGITS], adapter.n_layers
    allowed = min(eps * 64, 0.1)
    middle = last // 2
    replay = model.forward(ids, start=(middle, seen[Site(middle, "resid_pre")]))
    yield Check(
        "a run from the middle layer = the run",
        _normwise(replay, logits),
        allowed,
        _lines(adapter, "layers", "returns_tuple"),
    )
    readout = model.forward(ids, start=(last, seen[Site(last - 1, "resid_post")]))
    yield Check(
        "readout of the last residual = logits",
        _normwise(readout, logits),
        allowed,
        _lines(adapter, "layers", "final_norm", "returns_tuple"),
    )
    kept = model.forward(ids, read=1)
    yield Check(
        "unembedding the last position = its logits",
        _normwise(kept, logits[:, -1:]),
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

    model.forward(
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
    padded = model.forward(ids, mask=mask)[1:, pads:]
    alone = model.forward(ids[1:, pads:])
    return Check(
        "left padding changes nothing",
        _normwise(padded, alone),
        min(eps * 1024, 0.1),
        "how the family computes positions; prompts will be grouped by length",
        binding=False,
    )


def _random_tokens(model: Model) -> Tensor:
    config: Any = model.module.config
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


def _normwise(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to the norm of what is expected.

    Logits may be masked by minus infinity: where both are, they are the same.
    """
    if found.shape != expected.shape:
        return math.inf
    if expected.isinf().any():
        masked = (found == expected) & expected.isinf()
        found, expected = found.masked_fill(masked, 0), expected.masked_fill(masked, 0)
    difference, norm = (found - expected).double().norm(), expected.double().norm()
    return float(difference / norm) if norm > 0 else float(difference)


def _ranked(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _lines(adapter: Adapter, *fields: str) -> str:
    return ", ".join(f"{field}={getattr(adapter.family, field)!r}" for field in fields)
