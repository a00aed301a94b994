"""Reading a component's name; printing and parsing are inverse."""

from __future__ import annotations

import re

from headwater.components.kinds import CODED, Component, Kind
from headwater.errors import UnknownComponentError
from headwater.sites import Site

_NUMBER = "(?:0|[1-9][0-9]*)"
_NAME = re.compile(
    rf"(?:(?P<token>input)"
    rf"|a(?P<attn>{_NUMBER})(?:\.h(?P<head>{_NUMBER})(?:<(?P<qkv>[qkv])>)?"
    rf"|\.kv(?P<kv_head>{_NUMBER})<(?P<kv>[kv])>)?"
    rf"|m(?P<mlp>{_NUMBER})(?:\.n(?P<neuron>{_NUMBER}))?"
    rf"|r(?P<resid>{_NUMBER})"
    rf"|mixer(?P<mixer>{_NUMBER})"
    rf"(?:\.c(?P<channel>{_NUMBER})|\.h(?P<ssm_head>{_NUMBER})|<(?P<inner>ssm|conv)>)?)"
    rf"(?:@(?P<position>-?{_NUMBER}))?"
)
_CODED = re.compile(
    rf"(?:input|a(?P<a>{_NUMBER})(?:\.z)?|r(?P<r>{_NUMBER})(?:\.mid)?|m(?P<m>{_NUMBER})(?:\.post)?"
    rf"|mixer(?P<x>{_NUMBER})(?:\.post)?)"
    rf"\.(?:f(?P<feature>{_NUMBER})|error)(?:@(?P<position>-?{_NUMBER}))?"
)
"""Of dictionaries: what `CODED` prints, with a feature's number or `error`."""


def coded_site(name: str) -> Site:
    """Return the site whose dictionary a feature or an error is of.

    Raises:
        UnknownComponentError: If the name is of neither.
    """
    layer = parse_component(name).layer
    at = name.partition("@")[0].rpartition(".")[0]
    for site, written in CODED.items():
        if written.format(layer=layer) == at:
            return Site(layer, site)
    raise UnknownComponentError(
        f"{name!r} is no feature of a dictionary.\nTheir names are m3.f77, a3.f77, r3.f77, "
        "input.f77, m3.error."
    )


def parse_component(name: str) -> Component:
    """Return the component a name means; printing its `.name` gives the name back.

    Example:
        >>> parse_component("a3.h5<q>@7").kind
        'query'

    Raises:
        UnknownComponentError: If the name is not of the grammar.
    """
    if coded := _CODED.fullmatch(name):
        part = coded.groupdict()
        layer = part["a"] or part["r"] or part["m"] or part["x"]
        return Component(
            name=name,
            kind="error" if part["feature"] is None else "feature",
            layer=None if layer is None else int(layer),
            index=None if part["feature"] is None else int(part["feature"]),
            position=None if part["position"] is None else int(part["position"]),
        )
    match = _NAME.fullmatch(name)
    if match is None:
        raise UnknownComponentError(
            f"{name!r} is not a component's name.\n"
            "Names are input, a3, a3.h5, a3.h5<q>, a3.kv1<k>, m3, m3.n128, r3, mixer3, "
            "mixer3.c17, mixer3.h2, mixer3<ssm>, mixer3<conv>, m3.f77, a3.f77, r3.f77, input.f77, "
            "m3.error, each with @7 for a position."
        )
    part = match.groupdict()
    position = None if part["position"] is None else int(part["position"])

    def made(kind: Kind, layer: str | None, index: str | None = None) -> Component:
        number = None if layer is None else int(layer)
        return Component(name, kind, number, None if index is None else int(index), position)

    if part["token"]:
        return made("token", None)
    if part["attn"] is not None:
        index = part["head"] or part["kv_head"]
        kinds: dict[str | None, Kind] = {"q": "query", "k": "key", "v": "value", None: "head"}
        kind = "attention" if index is None else kinds[part["qkv"] or part["kv"]]
        return made(kind, part["attn"], index)
    if part["mlp"] is not None:
        return made("mlp" if part["neuron"] is None else "neuron", part["mlp"], part["neuron"])
    if part["resid"] is not None:
        return made("residual", part["resid"])
    if part["channel"] is not None:
        return made("channel", part["mixer"], part["channel"])
    if part["ssm_head"] is not None:
        return made("ssm_head", part["mixer"], part["ssm_head"])
    inner: dict[str | None, Kind] = {"ssm": "ssm", "conv": "conv", None: "mixer"}
    return made(inner[part["inner"]], part["mixer"])
