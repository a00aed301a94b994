"""What is known of a dictionary: what its file says, and how it does on a model's activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from headwater.dictionaries import Dictionary, TopK

UNFIT = 0.2
"""Explained variance below which a dictionary is said not to fit."""
SMALL = 0.01
"""Nats that an ablation costs, below which a share of them says little."""


@dataclass(frozen=True)
class Figures:
    """How a dictionary does on the activations of one site.

    Cross-entropies are of the next token, in nats, means over all predictions of the same prompts.
    """

    model: str
    """The model's name."""
    site: str
    """What was replaced by its reconstruction."""
    reads: str
    """What was encoded: of a transcoder another site."""
    prompts: int
    tokens: int
    """Real tokens that were reconstructed."""
    predictions: int
    """Next tokens that were predicted."""
    explained_variance: float
    """`1 - |x - xhat|^2 / |x - mean|^2`, sums over tokens: 0 for a constant, 1 if exact."""
    cosine: float
    """Mean cosine between values and their reconstruction."""
    active: float
    """Mean number of features active at a token (L0)."""
    dead: int
    """Features active at none of these tokens."""
    clean: float
    """Cross-entropy of the model as it is."""
    spliced: float
    """With the reconstruction in place of the values."""
    mean_ablated: float
    """With their mean over these tokens in their place."""
    zero_ablated: float
    """With zeros in their place."""

    @property
    def loss_recovered(self) -> float:
        """`(mean_ablated - spliced) / (mean_ablated - clean)`: 1 if nothing is lost; NaN if
        ablating costs nothing."""
        return _share(self.mean_ablated, self.spliced, self.clean)

    @property
    def loss_recovered_from_zero(self) -> float:
        """The same with zeros as what is lost at worst."""
        return _share(self.zero_ablated, self.spliced, self.clean)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            **asdict(self),
            "loss_recovered": self.loss_recovered,
            "loss_recovered_from_zero": self.loss_recovered_from_zero,
        }


@dataclass(frozen=True, eq=False)
class Inspection:
    """A dictionary looked into. Print it, or use `to_dict()`."""

    dictionary: Dictionary
    figures: Figures | None = None
    """None if it was only looked at, not run."""

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        one, origin = self.dictionary, self.dictionary.origin
        return {
            "features": one.features,
            "d_in": one.d_in,
            "d_out": one.d_out,
            "activation": one.activation.name,
            "k": one.activation.k if isinstance(one.activation, TopK) else None,
            "scaling": one.scaling,
            "centered": one.centered,
            "transcoder": one.transcoder,
            "skip": one.skip is not None,
            "dtype": str(one.encoder.dtype).removeprefix("torch."),
            "path": origin.path,
            "format": origin.format,
            "kind": origin.kind,
            "hook": origin.hook,
            "hook_out": origin.hook_out,
            "model": origin.model,
            "sha256": origin.sha256,
            "notes": list(origin.notes),
            "figures": None if self.figures is None else self.figures.to_dict(),
            "warnings": self.warnings(),
        }

    def lines(self) -> list[str]:
        """Return what is known, a line each."""
        told = [self.title(), *self._origin()]
        if self.figures is not None:
            told += ["", *_measured(self.figures, self.dictionary.features)]
        return [*told, *(f"note: {one}" for one in (*self.dictionary.origin.notes,
                                                    *self.warnings()))]  # fmt: skip

    def title(self) -> str:
        """Return in a line what it is."""
        one = self.dictionary
        kind = one.activation.name
        if isinstance(one.activation, TopK):
            kind += f", k={one.activation.k}"
        sizes = f"{one.d_in}" if one.d_in == one.d_out else f"{one.d_in} to {one.d_out}"
        more = {
            "its input normalized": one.scaling != "none",
            "for centered residuals": one.centered,
            "with a skip connection": one.skip is not None,
        }
        said = "".join(f", {words}" for words, true in more.items() if true)
        what = "transcoder" if one.transcoder else "dictionary"
        return f"a {what} of {one.features:,} features, width {sizes} ({kind}{said})"

    def warnings(self) -> list[str]:
        """Return what should be known before it is used, in sentences."""
        return [] if self.figures is None else list(self._warnings(self.figures))

    def _origin(self) -> Iterator[str]:
        origin = self.dictionary.origin
        if origin.path:
            yield f"file: {origin.path} ({origin.format}, sha256 {origin.sha256[:12]})"
        hook = " -> ".join(one for one in (origin.hook, origin.hook_out) if one)
        model, place = (
            origin.model or "a model it does not name",
            hook or "a place it does not name",
        )
        yield f"trained on: {model}, {place}"

    def _warnings(self, figures: Figures) -> Iterator[str]:
        features, origin = self.dictionary.features, self.dictionary.origin
        if not figures.explained_variance >= UNFIT:
            said = " and ".join(one for one in (origin.model, origin.hook) if one)
            yield (
                f"explained variance {figures.explained_variance:.3f}: this dictionary does not "
                f"fit the activations of {figures.model} at {figures.reads}. Another model, layer, "
                f"centering or scale? Its file says {said or 'nothing of its place'}."
            )
        if figures.dead > features / 2:
            yield (
                f"{figures.dead:,} of {features:,} features are active at none of these "
                f"{figures.tokens:,} tokens: too few tokens, another kind of text, or dead."
            )
        for name, ablated in {"mean": figures.mean_ablated, "zero": figures.zero_ablated}.items():
            if ablated - figures.clean < SMALL:
                yield (
                    f"{name} ablation costs {ablated - figures.clean:+.4f} nats here: the share "
                    "of them that is recovered says little."
                )


def _measured(figures: Figures, features: int) -> list[str]:
    at = figures.site if figures.site == figures.reads else f"{figures.reads} -> {figures.site}"
    return [
        f"on {figures.model}, {at}: {figures.tokens:,} tokens of {figures.prompts:,} prompts",
        f"  explained variance  {figures.explained_variance:.4f}  (a constant explains 0)",
        f"  cosine              {figures.cosine:.4f}",
        f"  active features     {figures.active:.1f} a token; {figures.dead:,} of {features:,} "
        "never",
        f"  cross-entropy       {figures.clean:.4f} clean, {figures.spliced:.4f} spliced, "
        f"{figures.mean_ablated:.4f} at the mean, {figures.zero_ablated:.4f} at zero",
        f"  loss recovered      {figures.loss_recovered:.4f} of mean ablation's, "
        f"{figures.loss_recovered_from_zero:.4f} of zero ablation's",
    ]


def _share(ablated: float, spliced: float, clean: float) -> float:
    whole = ablated - clean
    return float("nan") if whole == 0 else (ablated - spliced) / whole
