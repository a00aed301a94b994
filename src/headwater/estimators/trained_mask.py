"""A mask learned by gradient descent: which components to keep, all at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.errors import GateError, UnknownOptionError
from headwater.estimators.choices import refuse_below, refuse_unknown
from headwater.estimators.estimator import Estimate, Estimator
from headwater.estimators.hard_concrete import GATES
from headwater.estimators.mask_training import Training
from headwater.estimators.trained_circuit import TrainedCircuit
from headwater.gates import Family, GatedFunction

DEFAULT_PRICE = 0.1
"""Paid for keeping everything, where neither price nor sparsity is given."""
UNDECIDED = (0.1, 0.9)
"""A gate that is open with a probability between these has not been decided."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "gates": tuple(GATES),
    "distance": ("squared", "absolute"),
}


@dataclass(frozen=True)
class TrainedMask(Estimator):
    """Learn one mask for all pairs that keeps the metric while closing as many gates as it can.

    Minimizes `mean d(f(m), f(1)) / mean d(f(0), f(1)) + penalty`, where d is a distance, the means
    are over pairs, and m is drawn anew for every pair and step: the loss is 0 in the clean run and
    1 with everything closed. The model stays frozen. The penalty is `price` times the expected
    share of open gates, or a Lagrangian that pushes the expected sparsity to a target.

    The score of a component is the probability that its gate is open (with sigmoid gates, how far
    it is open), the same on every pair, with the sign of the mean `df/dm_i` taken where training
    left the gates, without noise: at `sigmoid(location)`, for hard-concrete gates stretched and
    clamped, so a gate may be partly open there. It is no effect and has no unit: of two components
    that replace each other one is kept and the other closed, where leaving one out gives both 0.
    So an audit compares its ranking with exact leave-one-out effects; sizes mean nothing.

    The circuit is another rule's: it keeps every gate whose probability (sigmoid: whose value) is
    above 0.5, or with a target sparsity exactly as many as that asks for, the most open ones. It
    is run once, exactly, with every gate at 0 or 1: `scores.trained_circuit`.

    Costs one forward-backward over one batch a step, `steps` of them; batches take turns.

    Source: Louizos et al. (arXiv 1712.01312); Cao, Sanh and Rush, "Low-complexity probing via
    finding subnetworks" (arXiv 2104.03514); the Lagrangian: Bhaskar et al., "Finding transformer
    circuits with Edge Pruning" (arXiv 2406.16778).
    """

    gates: Literal["hard-concrete", "sigmoid"] = "hard-concrete"
    """`"hard-concrete"`: random gates that close for good. `"sigmoid"`: no noise; gates stay
    partly open."""
    price: float | None = None
    """What keeping every component costs, in units of the loss; one of n costs `price / n`. A
    component is kept if closing it raises the loss by more than that; with hard-concrete gates
    also one that raises it a few times less, because noise that half-closes an open gate costs as
    well. 0.1 if no sparsity is given either."""
    sparsity: float | None = None
    """Share of the components to close, between 0 and 1, instead of a price: exactly that many are
    closed in the circuit. The target is raised from 0 over the first half of the steps."""
    distance: Literal["squared", "absolute"] = "squared"
    """How far f(m) is from f(1). `"absolute"` with `metric=hw.kl` minimizes the KL divergence."""
    steps: int = 1000
    """Most steps."""
    learning_rate: float = 0.1
    """Adam's, for gates and multipliers."""
    patience: int | None = 5
    """Stop early after this many checks (one in 20 steps) at which the kept subset was the same
    and the loss had not moved by more than 0.02. None: take all steps."""
    seed: int = 0
    """Seed of the noise."""
    checkpoints: str | Path | None = None
    """Folder to keep the state in, beside that of the run and not inside it. The same call
    continues there with exactly the numbers of an uninterrupted run."""

    name: ClassVar[str] = "trained-mask"
    estimand: ClassVar[str] = (
        "which components to keep together so that the metric stays: a ranking, not effects"
    )

    def __post_init__(self) -> None:
        refuse_unknown(self, _CHOICES)
        if self.price is not None and self.sparsity is not None:
            raise UnknownOptionError(
                f"both price={self.price} and sparsity={self.sparsity} were given.\n"
                "Give one: a price lets the number of kept components follow from the loss, a "
                "sparsity fixes it."
            )
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise UnknownOptionError(
                f"price={self.price}: a price is a finite number from 0 on. Type price=0.1."
            )
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise UnknownOptionError(
                f"sparsity={self.sparsity} is not between 0 and 1: it is the share of components "
                "to close. Type sparsity=0.9 to close nine in ten."
            )
        refuse_below(self, "steps", 1, example=1000)
        refuse_below(self, "seed", 0, example=0)
        if self.patience is not None:
            refuse_below(self, "patience", 1, example=5)
        if not 0 < self.learning_rate < float("inf"):
            raise UnknownOptionError(
                f"learning_rate={self.learning_rate} is not above 0. Type learning_rate=0.1."
            )

    @property
    def price_paid(self) -> float:
        """The price where there is no target sparsity."""
        return DEFAULT_PRICE if self.price is None else self.price

    @property
    def are_effects(self) -> bool:
        """Scores are chances of being kept."""
        return False

    @property
    def uses_slopes(self) -> bool:
        """It looks at the metric along the whole mask, not at one end."""
        return False

    @property
    def magnitudes(self) -> bool:
        """True: a probability is the size of something, with a sign attached."""
        return True

    def fitted(
        self, functions: Iterable[GatedFunction], *, progress: bool | None = False
    ) -> FittedMask:
        """Learn the mask on every batch, and run the circuit it keeps.

        Raises:
            GateError: If closing every component does not move the metric.
            NestedComponentsError: If one component lies inside another: gates move together.
            RunFolderError: If a checkpoint is of other settings or another function.
        """
        training = Training(self, functions)
        training.run(progress=progress)
        kept = training.kept()
        signs, value = _signs(training), _value(training, kept)
        rounds = training.rounds
        circuit = TrainedCircuit(
            kept=tuple(n for n, keep in zip(training.names, kept.tolist(), strict=True) if keep),
            components=len(training.names),
            value=value,
            clean=float(torch.cat(rounds.open).mean()),
            closed=float(torch.cat(rounds.closed).mean()),
            steps=training.state.step,
            settled=training.state.done,
        )
        return FittedMask(
            self, training.names, training.open_share() * signs, circuit, _notes(training)
        )

    def scores(self, function: GatedFunction) -> Float[Tensor, "batch component"]:
        """Return the scores of a mask learned on this batch alone, [batch, component]."""
        return self.estimate(function).scores

    def estimate(self, function: GatedFunction) -> Estimate:
        """Return the scores of a mask learned on this batch alone, and what was left undecided."""
        return self.fitted([function]).estimate(function)

    def forwards(self, families: Sequence[Family]) -> float:
        """At most, of a task of one batch; of more, each pair takes part in fewer steps.

        Both ends, every step, the circuit and the signs. Then the mask is put on the batches, which
        are made again for it: the reference's run once more, and the clean one.
        """
        return 6.0 + self.steps

    def to_dict(self) -> dict[str, Any]:
        """Return name and fields; where checkpoints lie decides no number and is left out."""
        return {key: value for key, value in super().to_dict().items() if key != "checkpoints"}


@dataclass(frozen=True, eq=False)
class FittedMask(Estimator):
    """A mask that has been learned: the same scores for every pair."""

    settings: TrainedMask
    names: tuple[str, ...]
    mask: Float[Tensor, " component"]
    """Probability that each gate is open, with a sign."""
    circuit: TrainedCircuit
    """The subset kept, run once."""
    notes: tuple[str, ...] = ()

    name: ClassVar[str] = TrainedMask.name
    estimand: ClassVar[str] = TrainedMask.estimand

    @property
    def magnitudes(self) -> bool:
        """As for `TrainedMask`."""
        return self.settings.magnitudes

    @property
    def are_effects(self) -> bool:
        """As for `TrainedMask`."""
        return self.settings.are_effects

    @property
    def uses_slopes(self) -> bool:
        """As for `TrainedMask`."""
        return self.settings.uses_slopes

    def scores(self, function: GatedFunction) -> Float[Tensor, "batch component"]:
        """Return the mask once an example.

        Raises:
            GateError: If the function's components are not those the mask was learned for.
        """
        if tuple(function.names) != self.names:
            raise GateError(
                f"the mask was learned for {len(self.names):,} other components than the "
                f"{len(function.names):,} of this function.\nTrain it again for these."
            )
        return self.mask.expand(function.batch, -1).clone()

    def estimate(self, function: GatedFunction) -> Estimate:
        """Return the scores, the circuit, and what was left undecided."""
        return Estimate(self.scores(function), notes=self.notes, circuit=self.circuit)

    def forwards(self, families: Sequence[Family]) -> float:
        """The clean run of the result: the mask is there."""
        return 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return what it was learned with."""
        return self.settings.to_dict()


def _signs(training: Training) -> Float[Tensor, " component"]:
    """Return the signs of the mean `df/dm` at the gates without noise; 0 counts as positive."""
    settled = training.gates.settled(training.state.location.detach())
    total = torch.zeros_like(settled)
    for function in training.rounds:
        m = settled.expand(1, function.batch, -1).clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(function(m).sum(), m)
        total += slope[0].sum(0)
    return torch.where(total < 0, -1.0, 1.0).to(total)


@torch.no_grad()
def _value(training: Training, kept: Bool[Tensor, " component"]) -> float:
    """Return the mean metric with only the kept gates open."""
    values = [
        function(kept.to(function.dtype).expand(1, function.batch, -1).clone())[0]
        for function in training.rounds
    ]
    return float(torch.cat(values).mean())


def _notes(training: Training) -> tuple[str, ...]:
    """Return what a reader must know: gates left undecided, a target that was not reached."""
    notes = []
    share = training.open_share()
    low, high = UNDECIDED
    undecided = int(((share > low) & (share < high)).sum())
    if undecided:
        notes.append(
            f"the mask left {undecided:,} of {len(share):,} gates undecided after "
            f"{training.state.step:,} steps (open with a probability between {low} and {high})."
        )
    missed = training.missed()
    if missed is not None:
        notes.append(
            f"the mask's expected sparsity is {missed:.3f}, not {training.settings.sparsity} "
            "as asked for: raise steps=, or the learning rate."
        )
    kept = training.kept()
    dropped, forced = int((~kept & (share > 0.5)).sum()), int((kept & (share < 0.5)).sum())
    if dropped or forced:
        said = f"drops {dropped:,} that the mask left open" if dropped else ""
        also = f"keeps {forced:,} that it closed" if forced else ""
        notes.append(
            f"to keep exactly {int(kept.sum()):,} components the circuit "
            f"{' and '.join(filter(None, [said, also]))}: nobody trained that set. Raise steps=, "
            "or choose another sparsity."
        )
    return tuple(notes)
