"""Where the features of a circuit are strongest in a corpus: the result, and its file."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headwater import strict_json
from headwater.errors import RunFolderError, UnknownComponentError, did_you_mean
from headwater.files import make_writable, write_text

FILE = "contexts.json"
SCHEMA = 1
SHOWN = 10
"""Features of a printed result."""


@dataclass(frozen=True)
class Context:
    """A feature's strongest token in one prompt, with the tokens around it."""

    prompt: int
    """The prompt's number in the corpus."""
    position: int
    """Of the strongest token in its prompt."""
    start: int
    """Position of the first token shown."""
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    """The feature at each of them."""

    @property
    def activation(self) -> float:
        """The feature at its strongest token."""
        return self.activations[self.position - self.start]

    def marked(self) -> str:
        """Return the tokens as one text, the strongest in double brackets."""
        # tokens that are whole words hold no blank of their own
        between = "" if any(token[:1].isspace() for token in self.tokens) else " "
        strongest = self.position - self.start
        return between.join(
            f"[[{token}]]" if place == strongest else token
            for place, token in enumerate(self.tokens)
        )


@dataclass(frozen=True)
class FeatureContexts:
    """What one feature does in a corpus."""

    name: str
    """Without a position: `m3.f77`."""
    fires: int
    """Tokens at which it is not 0."""
    prompts: int
    """Prompts in which it is not 0 somewhere."""
    contexts: tuple[Context, ...]
    """The strongest first; each of another prompt, and no two the same tokens."""


@dataclass(frozen=True)
class Contexts:
    """Top activating contexts of features, by name.

    Attributes:
        features: By name without a position.
        tokens: Tokens of the corpus that count.
        prompts: Prompts of the corpus.
        provenance: Model, dictionaries, corpus and options.
    """

    features: Mapping[str, FeatureContexts]
    tokens: int
    prompts: int
    provenance: dict[str, Any] = field(repr=False)

    def __getitem__(self, name: str) -> FeatureContexts:
        """Return a feature's contexts; those of `m3.f77@5` are those of `m3.f77`.

        Raises:
            UnknownComponentError: If they were not looked for.
        """
        found = self.features.get(base(name))
        if found is None:
            raise UnknownComponentError(
                f"no contexts of {name!r}: they were looked for of {len(self.features)} features."
                f"{did_you_mean(base(name), list(self.features))}\n"
                "All names: `contexts.features`."
            )
        return found

    def __contains__(self, name: str) -> bool:
        return base(name) in self.features

    def __len__(self) -> int:
        return len(self.features)

    def __iter__(self) -> Iterator[FeatureContexts]:
        return iter(self.features.values())

    def __repr__(self) -> str:
        corpus = self.provenance.get("corpus", {}).get("source", "a corpus")
        lines = [
            f"Top contexts of {len(self)} features in {corpus}: {self.prompts:,} prompts, "
            f"{self.tokens:,} tokens"
        ]
        wide = max([7, *(len(name) for name in self.features)])
        lines.append(f"{'feature':<{wide}}  {'fires':>7}  {'most':>8}  where")
        for one in list(self)[:SHOWN]:
            share = f"{one.fires / max(self.tokens, 1):.2%}"
            most = f"{one.contexts[0].activation:.3g}" if one.contexts else "-"
            where = one.contexts[0].marked().strip() if one.contexts else "nowhere"
            lines.append(f"{one.name:<{wide}}  {share:>7}  {most:>8}  {where[:90]}")
        if len(self) > SHOWN:
            lines.append(f"... {len(self) - SHOWN:,} more in contexts.features")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "tokens": self.tokens,
            "prompts": self.prompts,
            "features": [asdict(one) for one in self],
            "provenance": self.provenance,
        }

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write `contexts.json` into a folder: the circuit's, or any other.

        Args:
            path: The folder; made if it does not exist.
            overwrite: Replace contexts of other features or another corpus instead of refusing.

        Returns:
            The file.

        Raises:
            RunFolderError: If it cannot be written, or holds other contexts.
        """
        folder = Path(path)
        make_writable(folder)
        file = folder / FILE
        text = strict_json.dumped({"schema_version": SCHEMA, **self.to_dict()})
        if file.exists() and not overwrite and self._differs(strict_json.loaded(text), file):
            raise RunFolderError(
                f"{file} holds contexts of other features, another corpus or other options.\n"
                "Choose another folder, or write save(..., overwrite=True)."
            )
        write_text(file, text)
        return file

    def _differs(self, now: Mapping[str, Any], file: Path) -> bool:
        there = _read(file)
        if there["provenance"] != now["provenance"]:
            return True
        names = [[one["name"] for one in data["features"]] for data in (there, now)]
        return names[0] != names[1]

    @classmethod
    def load(cls, path: str | Path) -> Contexts:
        """Read what `save` wrote.

        Args:
            path: The folder, or the file.

        Raises:
            RunFolderError: If there are no contexts that this release can read.
        """
        file = Path(path)
        file = file / FILE if file.is_dir() else file
        data = _read(file)
        try:
            features = [_feature(one) for one in data["features"]]
            return cls(
                {one.name: one for one in features},
                tokens=data["tokens"],
                prompts=data["prompts"],
                provenance=data["provenance"],
            )
        except (LookupError, TypeError, ValueError) as error:
            raise _unreadable(file, f"{type(error).__name__}: {error}") from error


def base(name: str) -> str:
    """Return a node's name without its position."""
    return name.split("@", 1)[0]


def _feature(data: Mapping[str, Any]) -> FeatureContexts:
    contexts = tuple(
        Context(**{**one, **{key: tuple(one[key]) for key in ("tokens", "activations")}})
        for one in data["contexts"]
    )
    return FeatureContexts(**{**data, "contexts": contexts})


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise RunFolderError(
            f"{file} is not there.\nMake it: circuit.contexts(corpus).save({str(file.parent)!r})."
        )
    try:
        data = strict_json.loaded(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _unreadable(file, str(error)) from error
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA:
        found = data.get("schema_version") if isinstance(data, dict) else None
        raise _unreadable(file, f"it has schema {found}, and {SCHEMA} is read")
    return data


def _unreadable(file: Path, why: str) -> RunFolderError:
    return RunFolderError(
        f"{file} holds no contexts that this release can read: {why.splitlines()[0]}.\n"
        f"Make them again: circuit.contexts(corpus).save({str(file.parent)!r}, overwrite=True)."
    )
