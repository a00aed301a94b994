"""A linear probe: whether one vector a text tells its two classes apart.

Costs one forward a text as far as the probe's site, and a fit that takes milliseconds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.attribution.manifest import describe_model, versions
from headwater.errors import PromptError, ResultError
from headwater.folders import Folder, without_versions
from headwater.metrics import Metric, metric
from headwater.models import Model
from headwater.prompts import Batch, Pair, Task
from headwater.shifts.accuracy import Accuracies, Rate, accuracies
from headwater.shifts.examples import Examples
from headwater.shifts.logistic import Logistic, fit_logistic
from headwater.shifts.pooling import Pooling, Taps, pooled, refuse_pooling, site_of
from headwater.shifts.probed import ProbedModel
from headwater.sites import Site

L2 = 0.01
FOLDER = Folder(
    report="probe.json",
    tensors="probe.safetensors",
    what="probe",
    made_by="hw.Probe.fit(model, examples).save('FOLDER')",
    identity=lambda data: without_versions(data["provenance"]),
)


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier of what a model has at one site.

    A positive logit means the second of its two classes.

    Example:
        ```python
        probe = hw.Probe.fit(model, examples, "layers.2.resid_post")
        probe.accuracy(model, others)
        hw.attribute(probe.on(model), probe.task(others), hw.heads(), reference=hw.Zero())
        ```
    """

    site: Site
    """Where it reads."""
    pooling: Pooling
    """Over positions."""
    classes: tuple[str, str]
    fitted: Logistic
    l2: float
    trained: Rate
    """Accuracy on the examples that it was fitted to."""
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def fit(
        cls,
        model: Model,
        examples: Examples,
        site: Site | str | None = None,
        *,
        pooling: Pooling = "mean",
        l2: float = L2,
        taps: Taps | None = None,
        batch_size: int = 32,
        progress: bool | None = None,
    ) -> Probe:
        """Fit a probe: logistic regression on standardized activations.

        Args:
            model: The model.
            examples: Texts of two classes.
            site: Where it reads; by default the residual in the middle of the model.
            pooling: `"mean"` over a text's tokens, padding left out, or its `"last"` token.
            l2: Price of the squared weights, beside the mean loss of an example.
            taps: What changes each run, such as `Ablation.taps`.
            batch_size: Most texts in one forward.
            progress: True, False, or None to show a bar only on a terminal.

        Returns:
            The probe; the same data give the same probe, for the loss has one minimum.

        Raises:
            PromptError: If the examples are not of two classes, or a text cannot be used.
            UnknownOptionError: If an option has a value it cannot have.
            UnavailableSiteError: If there is no vector to read at the site.
            NonFiniteError: If an activation is NaN or infinite.
        """
        there = site_of(model, site)
        refuse_pooling(pooling)
        classes = two_classes(examples)
        x = read_at(
            model, there, pooling, examples, taps=taps, batch_size=batch_size, progress=progress
        )
        return cls.of(model, examples, there, x, pooling=pooling, classes=classes, l2=l2)

    @classmethod
    def of(
        cls,
        model: Model,
        examples: Examples,
        site: Site,
        x: Float[Tensor, "example d"],
        *,
        pooling: Pooling,
        classes: tuple[str, str],
        l2: float,
    ) -> Probe:
        """Fit a probe to activations that have been read.

        Args:
            model: Where they were read.
            examples: Of what.
            site: Where.
            x: The activations.
            pooling: How they were pooled.
            classes: The two classes, the one of a positive logit second.
            l2: Price of the weights.
        """
        positive = positives(examples, classes)
        fitted = fit_logistic(x, positive, l2)
        right = (fitted.logit(x) > 0) == positive
        provenance = {
            "model": describe_model(model),
            "examples": examples.to_dict(),
            "site": str(site),
            "pooling": pooling,
            "l2": l2,
            "versions": versions(),
        }
        trained = Rate(int(right.sum()), len(right))
        return cls(site, pooling, classes, fitted, l2, trained, provenance)

    def read(
        self,
        model: Model,
        examples: Examples,
        *,
        taps: Taps | None = None,
        batch_size: int = 32,
        progress: bool | None = None,
    ) -> Float[Tensor, "example d"]:
        """Return what the probe reads of examples; see `Probe.fit`."""
        return read_at(
            model, self.site, self.pooling, examples, taps=taps, batch_size=batch_size,
            progress=progress,
        )  # fmt: skip

    def logits(self, x: Float[Tensor, "example d"]) -> Float[Tensor, " example"]:
        """Return the logits of what `read` returned.

        Raises:
            ResultError: If that has another width than the probe.
        """
        width = len(self.fitted.weights)
        if x.shape[-1] != width:
            raise ResultError(
                f"the probe reads {width} numbers at '{self.site}', and was given {x.shape[-1]}.\n"
                "Use the model that it was fitted to."
            )
        return self.fitted.logit(x)

    def accuracy(
        self,
        model: Model,
        examples: Examples,
        *,
        taps: Taps | None = None,
        batch_size: int = 32,
        progress: bool | None = None,
    ) -> Accuracies:
        """Return how often the probe is right: in all, and in each group.

        Args:
            model: The model that it was fitted to.
            examples: Texts of its classes.
            taps: What changes each run, such as `Ablation.taps`.
            batch_size: Most texts in one forward.
            progress: True, False, or None to show a bar only on a terminal.

        Raises:
            PromptError: If a label is none of its classes.
        """
        positives(examples, self.classes)  # refuses other labels before anything runs
        x = self.read(model, examples, taps=taps, batch_size=batch_size, progress=progress)
        return accuracies(self.logits(x) > 0, examples, self.classes)

    def on(self, model: Model) -> ProbedModel:
        """Return the model with this probe's logit as its only output.

        Whatever takes a model takes it: `hw.attribute`, `hw.feature_circuit`.

        Args:
            model: The model that it was fitted to.
        """
        return ProbedModel(model, self)

    def task(self, examples: Examples) -> Task:
        """Return examples as a task for `on`, whose metric is the margin of the right class."""
        pairs = [Pair(row.text, label=row.label) for row in examples]
        return Task(pairs, self.margin(examples), name=examples.name, source=examples.source)

    def margin(self, examples: Examples) -> Metric:
        """Return the metric of `task`: the logit toward each example's own label."""
        positive = positives(examples, self.classes)
        signs = torch.where(positive, 1.0, -1.0)

        def margin(logits: Float[Tensor, "row one"], batch: Batch) -> Float[Tensor, " row"]:
            return signs[list(batch.pairs)].to(logits) * logits[:, 0]

        return metric(margin, name="margin", needs=())

    def sha256(self) -> str:
        """Return a hash of what it computes."""
        fitted = self.fitted
        numbers = torch.cat([fitted.direction, torch.tensor([fitted.offset]).double()])
        text = f"{self.site} {self.pooling} {self.classes} {numbers.tolist()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def __repr__(self) -> str:
        negative, positive = self.classes
        name = self.provenance["examples"]["name"] if self.provenance else "examples"
        return (
            f"Probe at {self.site} ({WORDS[self.pooling]}): {positive} or {negative}, "
            f"{len(self.fitted.weights)} weights; {self.trained} right on the "
            f"{self.trained.total} examples of {name} that it was fitted to"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the weights as plain data."""
        return {
            "site": str(self.site),
            "pooling": self.pooling,
            "classes": list(self.classes),
            "bias": self.fitted.bias,
            "l2": self.l2,
            "trained": self.trained.to_dict(),
            "provenance": self.provenance,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights by name."""
        fitted = self.fitted
        return {"mean": fitted.mean, "scale": fitted.scale, "weights": fitted.weights}

    @classmethod
    def from_dict(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> Probe:
        """Return the probe that `to_dict` and `tensors` describe."""
        negative, positive = data["classes"]
        weights = {name: tensors[name] for name in ("mean", "scale", "weights")}
        return cls(
            Site.parse(data["site"]),
            data["pooling"],
            (negative, positive),
            Logistic(**weights, bias=data["bias"]),
            data["l2"],
            Rate(data["trained"]["right"], data["trained"]["total"]),
            data["provenance"],
        )

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write `probe.json` and `probe.safetensors`.

        Args:
            path: A folder; made if it does not exist.
            overwrite: Replace another probe instead of refusing.

        Raises:
            RunFolderError: If it cannot be written, or holds something else.
        """
        return FOLDER.write(Path(path), self.to_dict(), self.tensors(), overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Probe:
        """Read what `save` wrote.

        Raises:
            RunFolderError: If the folder holds no probe that this release can read.
        """
        data, tensors = FOLDER.read(Path(path))
        with FOLDER.reading(Path(path)):
            return cls.from_dict(data, tensors)


WORDS = {"mean": "mean over tokens", "last": "last token"}
"""Poolings in words."""


def read_at(
    model: Model,
    site: Site,
    pooling: Pooling,
    examples: Examples,
    *,
    taps: Taps | None,
    batch_size: int,
    progress: bool | None,
) -> Float[Tensor, "example d"]:
    """Return what a probe at a site reads of examples.

    Args:
        model: The model.
        site: Where.
        pooling: Over positions.
        examples: The texts.
        taps: What changes each run.
        batch_size: Most texts in one forward.
        progress: True, False, or None to show a bar only on a terminal.
    """
    with model.frozen():
        return pooled(
            model, examples.texts, site, pooling, taps=taps, batch_size=batch_size,
            title=f"reading {site}", progress=progress,
        )  # fmt: skip


def two_classes(examples: Examples) -> tuple[str, str]:
    """Return the two classes of examples, sorted.

    Raises:
        PromptError: If there are more, or fewer.
    """
    if len(examples.classes) != 2:
        listed = ", ".join(map(repr, examples.classes[:8]))
        raise PromptError(
            f"{examples.name} has {len(examples.classes)} labels ({listed}); a probe tells two "
            "apart.\nGive examples of two."
        )
    negative, positive = examples.classes
    return negative, positive


def positives(examples: Examples, classes: tuple[str, str]) -> Bool[Tensor, " example"]:
    """Return which examples are of the second class.

    Raises:
        PromptError: If a label is neither.
    """
    for place, row in enumerate(examples):
        if row.label not in classes:
            raise PromptError(
                f"example {place} of {examples.name} is labeled {row.label!r}; the probe tells "
                f"{classes[0]!r} from {classes[1]!r}.\nLeave others out."
            )
    return torch.tensor([row.label == classes[1] for row in examples])
