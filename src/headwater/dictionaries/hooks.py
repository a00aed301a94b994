"""Names of places in other libraries, as headwater's sites.

    blocks.3.hook_mlp_out, blocks.3.attn.hook_z      TransformerLens and SAELens
    mlp_out_layer3, resid_post_layer_3, embed        dictionary_learning, feature-circuits
    model.layers.3.mlp, gpt_neox.layers.3.output     paths of modules; `.input` for what they read
    layers.3.mlp.out                                 headwater

What enters a layer is what leaves the one before it (`embed` for the first), so residuals are named
once: by the layer that they leave.
"""

from __future__ import annotations

import re
from pathlib import Path

from headwater.dictionaries.dictionary import Dictionary
from headwater.errors import DictionaryError
from headwater.sites import EMBED, Site

NORMALIZED = "ln2.hook_normalized"
"""TransformerLens' value between the norm before the MLP and that norm's weight: no module of
another library hands it over, so it is no site; `mlp.in` times the weight is."""

_IN_BLOCK = {
    "hook_resid_pre": "resid_pre",
    "hook_in": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_out": "resid_post",
    "hook_attn_out": "attn.out",
    "attn.hook_out": "attn.out",
    "attn.hook_z": "attn.z",
    "hook_mlp_out": "mlp.out",
    "mlp.hook_out": "mlp.out",
    "mlp.hook_post": "mlp.post",
    "mlp.hook_in": "mlp.in",
    NORMALIZED: "mlp.in",
}
"""Places in a block of TransformerLens (circuit-tracer says the same without the block). Not here:
`hook_mlp_in`, which is the residual before the norm or the MLP's input, by version."""

_OF_MODULE = {
    ("", "output"): "resid_post",
    ("", "input"): "resid_pre",
    ("mlp", "output"): "mlp.out",
    ("mlp", "input"): "mlp.in",
    ("post_feedforward_layernorm", "output"): "mlp.out",
    ("pre_feedforward_layernorm", "output"): "mlp.in",
    ("ln_2", "output"): "mlp.in",
    **{((name), "output"): "attn.out" for name in ("attn", "self_attn", "attention")},
    ("self_attention", "output"): "attn.out",
    ("self_attn.o_proj", "input"): "attn.z",
    ("attn.c_proj", "input"): "attn.z",
    ("attention.dense", "input"): "attn.z",
    ("mlp.down_proj", "input"): "mlp.post",
    ("mlp.c_proj", "input"): "mlp.post",
    ("mlp.dense_4h_to_h", "input"): "mlp.post",
}
"""A module inside a layer and a side of it -> the site."""

_WRITERS = ("mlp", "attn", "self_attn", "attention", "self_attention")
_KINDS = {"attn": "attn.out", "attention": "attn.out", "mlp": "mlp.out", "resid": "resid_post"}
_EMBEDDINGS = ("embed", "hook_embed", "gpt_neox.embed_in", "model.embed_tokens", "embed_tokens")

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_SHORT = re.compile(r"(attn|attention|mlp|resid)(?:_(out|post|pre|mid))?(?:_layer_?|_)(\d+)")
_MODULE = re.compile(r"(?:[\w.]*\.)?(?:layers|h)\.(\d+)(?:\.([\w.]+?))??(?:\.(input|output))?")

_SAELENS = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "resid_mid": "hook_resid_mid",
    "attn.out": "hook_attn_out",
    "attn.z": "attn.hook_z",
    "mlp.out": "hook_mlp_out",
    "mlp.post": "mlp.hook_post",
    "mlp.in": "mlp.hook_in",
}


def site_of(hook: str) -> Site | None:
    """Return the site that a name stands for.

    Args:
        hook: In the words of any library above.

    Returns:
        The site, a residual by the layer that it leaves; None if the name stands for none.
    """
    if Site.is_path(hook):
        site = Site.parse(hook)
        return site if site.layer is None else _canonical(site.layer, site.name)
    if hook in _EMBEDDINGS:
        return EMBED
    if found := _BLOCK.fullmatch(hook):
        name = _IN_BLOCK.get(found[2])
        return None if name is None else _canonical(int(found[1]), name)
    if found := _SHORT.fullmatch(hook):
        kind, side, layer = found.groups()
        name = f"resid_{side}" if kind == "resid" and side in ("pre", "mid") else _KINDS[kind]
        return _canonical(int(layer), name)
    if found := _MODULE.fullmatch(hook):
        name = _OF_MODULE.get((found[2] or "", found[3] or "output"))
        return None if name is None else _canonical(int(found[1]), name)
    return None


def hook_of(site: Site) -> str:
    """Return what SAELens calls a site; headwater's own path where it has no name.

    Args:
        site: A place.
    """
    if site.name == "embed":
        return "hook_embed"
    name = _SAELENS.get(site.name)
    return str(site) if name is None else f"blocks.{site.layer}.{name}"


def named_by(path: Path) -> str | None:
    """Return the name of a file's folder that stands for a place, the innermost first.

    Args:
        path: A file of weights: `.../mlp_out_layer3/10_32768/ae.pt`.
    """
    folders = reversed(path.absolute().parts[:-1])
    return next((name for name in folders if site_of(name) is not None), None)


def is_module_in_norm(hook: str | None) -> bool:
    """Whether a name is of a module's output that a norm after it may change.

    Args:
        hook: As a file says it.
    """
    found = _MODULE.fullmatch(hook or "")
    return found is not None and found[2] in _WRITERS and found[3] != "input"


def read_site(dictionary: Dictionary) -> Site:
    """Return the site that a dictionary encodes, by what its file says.

    Args:
        dictionary: With an origin.

    Raises:
        DictionaryError: If its file names no place, or one that is no site.
    """
    return _known(dictionary.origin.hook, dictionary, "its place")


def written_site(dictionary: Dictionary) -> Site:
    """Return the site that a dictionary decodes: the same unless it is a transcoder.

    Args:
        dictionary: With an origin.

    Raises:
        DictionaryError: If its file names no place, or one that is no site.
    """
    if not dictionary.transcoder:
        return read_site(dictionary)
    return _known(dictionary.origin.hook_out, dictionary, "the place that it writes")


def _known(hook: str | None, dictionary: Dictionary, place: str) -> Site:
    site = None if hook is None else site_of(hook)
    if site is not None:
        return site
    path = dictionary.origin.path or "this dictionary"
    said = (
        f"does not name {place}"
        if hook is None
        else f"names {hook!r} as {place}, which is no site of headwater"
    )
    raise DictionaryError(
        f"{path} {said}.\n"
        f"Say which: hw.Dictionaries.read(..., sites={{{Path(path).parent.name!r}: "
        f"'layers.3.mlp.out'}}); on the command line -d {Path(path).parent}=layers.3.mlp.out, or "
        "for `dictionaries inspect` --site. `headwater sites MODEL` lists a model's sites."
    )


def _canonical(layer: int, name: str) -> Site:
    if name != "resid_pre":
        return Site(layer, name)
    return EMBED if layer == 0 else Site(layer - 1, "resid_post")
