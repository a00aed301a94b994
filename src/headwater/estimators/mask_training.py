"""Training one mask on all batches of a task, with a check now and then and a way to resume.

Costs one forward-backward over one batch a step. The metric's ends are computed once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.errors import GateError, NonFiniteError, UnknownOptionError
from headwater.estimators.checkpoints import Checkpoints
from headwater.estimators.hard_concrete import GATES
from headwater.gates import GatedFunction
from headwater.progress import log, progress_bar

if TYPE_CHECKING:
    from headwater.estimators.trained_mask import TrainedMask

HELD = 16
"""Batches whose off values are held in memory; of longer tasks they are made again each round."""
CHECK = 20
"""Steps between checks; at each the state is saved, and compared with the one before."""
START = 0.99
"""Share by which every gate is open at first: training starts beside the clean run."""
ANNEALED = 0.5
"""Share of the steps over which a target sparsity is raised from 0."""
ASCENT = 0.3
"""Share of the learning rate at which the multipliers rise: as fast as the gates they overshoot."""
STILL = 0.02
"""A mean loss that moves by no more than this (1: everything closed) has not changed."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of each tensor it has moved."""
EDGE = 1e-6
"""Noise is kept this far from 0 and 1, where its logit is infinite."""


class Rounds:
    """Every batch of a task, over and over in the same order, with the metric at both ends.

    Batches are seen from the clean end, whichever they come from.
    """

    def __init__(self, functions: Iterable[GatedFunction]) -> None:
        self._functions = functions
        held: list[GatedFunction] = []
        self.open: list[Float[Tensor, " batch"]] = []
        self.closed: list[Float[Tensor, " batch"]] = []
        with torch.no_grad():
            for function in self._anew():
                gates = function.gates()
                self.open.append(function(gates)[0])
                self.closed.append(function(torch.zeros_like(gates))[0])
                if len(self.open) <= HELD:
                    held.append(function)
        self._held = held if len(self.open) <= HELD else None
        self.first = held[0]

    def __len__(self) -> int:
        return len(self.open)

    @property
    def pairs(self) -> int:
        """Pairs in all batches."""
        return sum(len(values) for values in self.open)

    def __iter__(self) -> Iterator[GatedFunction]:
        """Yield each batch once."""
        yield from self._anew() if self._held is None else self._held

    def _anew(self) -> Iterator[GatedFunction]:
        return (function.at("clean") for function in self._functions)

    def after(self, steps: int) -> Iterator[tuple[int, GatedFunction]]:
        """Yield number and batch without end, from where `steps` steps have led."""
        endless = itertools.chain.from_iterable(enumerate(self) for _ in itertools.count())
        return itertools.islice(endless, steps % len(self), None)


@dataclass
class State:
    """Everything that the next step depends on."""

    location: Float[Tensor, " component"]
    multipliers: Float[Tensor, "two"]
    """Of the gap between sparsity and target, and of its square."""
    optimizer: torch.optim.Adam
    generator: torch.Generator
    kept: Bool[Tensor, " component"]
    """What was kept at the last check that found a change."""
    loss: float = float("inf")
    """The mean loss at that check."""
    step: int = 0
    unchanged: int = 0
    """Checks since then."""
    done: bool = False

    @staticmethod
    def new(settings: TrainedMask, function: GatedFunction) -> State:
        """Return the state before the first step."""
        like = {"dtype": function.dtype, "device": function.device}
        count = len(function.names)
        start = GATES[settings.gates].location(START)
        location = torch.full((count,), start, requires_grad=True, **like)
        multipliers = torch.zeros(2, requires_grad=True, **like)
        rate = settings.learning_rate
        learned: list[dict[str, Any]] = [{"params": [location]}]
        if settings.sparsity is not None:
            learned.append({"params": [multipliers], "lr": ASCENT * rate, "maximize": True})
        return State(
            location=location,
            multipliers=multipliers,
            optimizer=torch.optim.Adam(learned, lr=rate),
            generator=torch.Generator().manual_seed(settings.seed),
            kept=torch.ones(count, dtype=torch.bool),
        )

    @property
    def learned(self) -> list[Tensor]:
        """What the optimizer moves: the location, and the multipliers if there is a target."""
        return [tensor for group in self.optimizer.param_groups for tensor in group["params"]]

    def names(self) -> set[str]:
        """Return the names that `tensors` has from the first step on."""
        moments = {f"adam.{i}.{one}" for i in range(len(self.learned)) for one in MOMENTS}
        return self.tensors().keys() | moments

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as tensors on the CPU, to be saved."""
        numbers = [self.loss, self.step, self.unchanged, self.done]
        saved = {
            "location": self.location,
            "multipliers": self.multipliers,
            "generator": self.generator.get_state(),
            "kept": self.kept,
            "numbers": torch.tensor(numbers, dtype=torch.float64),
        }
        for number, moments in self.optimizer.state_dict()["state"].items():
            saved |= {f"adam.{number}.{name}": value for name, value in moments.items()}
        return {name: value.detach().cpu().clone() for name, value in saved.items()}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Go back to a saved state."""
        with torch.no_grad():
            self.location.copy_(saved["location"])
            self.multipliers.copy_(saved["multipliers"])
        self.generator.set_state(saved["generator"])
        self.kept = saved["kept"]
        loss, step, unchanged, done = saved["numbers"].tolist()
        self.loss, self.step, self.unchanged = loss, int(step), int(unchanged)
        self.done = bool(done)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in saved.items():
            if name.startswith("adam."):
                _, number, key = name.split(".")
                moments.setdefault(int(number), {})[key] = value
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict(whole | {"state": moments})


class Training:
    """One mask being learned.

    Args:
        settings: What to learn and how.
        functions: Every batch of the task.

    Raises:
        GateError: If closing every component does not move the metric.
        NestedComponentsError: If one component lies inside another: gates move together.
        UnknownOptionError: If a target sparsity keeps none or all of the components.
        RunFolderError: If a checkpoint there is of other settings or another function.
    """

    def __init__(self, settings: TrainedMask, functions: Iterable[GatedFunction]) -> None:
        self.settings = settings
        self.gates = GATES[settings.gates]
        self.rounds = Rounds(functions)
        self.names = tuple(self.rounds.first.names)
        self.count = _count(settings, len(self.names))
        self.scale = self._scale()
        self.state = State.new(settings, self.rounds.first)
        self.checkpoints = Checkpoints.of(settings, self.rounds)
        saved = None if self.checkpoints is None else self.checkpoints.read(self.state.names())
        if saved is not None:
            self.state.restore(saved)

    def run(self, *, progress: bool | None = False) -> None:
        """Take steps until nothing changes any more, or they run out."""
        state, settings = self.state, self.settings
        total = (settings.steps - state.step) * self.rounds.pairs / len(self.rounds)
        title = f"training a mask over {len(self.names):,} components"
        losses: list[float] = []
        with self._resumable(), progress_bar(title, total, show=progress) as advance:
            for number, function in self.rounds.after(state.step):
                if state.done or state.step >= settings.steps:
                    break
                losses.append(self._step(number, function))
                state.step += 1
                closed = 1 - float(self.open_share().mean())
                advance(function.batch, f"loss {losses[-1]:.3g}, {closed:.0%} closed")
                if state.step % CHECK == 0 or state.step == settings.steps:
                    self._check(sum(losses) / len(losses))
                    losses = []
                    if self.checkpoints is not None:
                        self.checkpoints.write(state.tensors())

    @contextmanager
    def _resumable(self) -> Iterator[None]:
        """Say, when interrupted, that nothing is lost but the steps since the last check."""
        try:
            yield
        except KeyboardInterrupt:
            if self.checkpoints is not None and self.checkpoints.path.exists():
                log.warning(
                    "the mask after %s of at most %s steps is kept in %s: type the same again to "
                    "go on from there.",
                    f"{self.state.step - self.state.step % CHECK:,}",
                    f"{self.settings.steps:,}",
                    self.checkpoints.path,
                )
            raise

    @torch.no_grad()
    def open_share(self) -> Float[Tensor, " component"]:
        """Return how likely (hard concrete) or how far (sigmoid) each gate is open."""
        return self.gates.open_share(self.state.location)

    @torch.no_grad()
    def kept(self) -> Bool[Tensor, " component"]:
        """Return which gates are kept: the target's number of them, or all that are half open."""
        if self.count is None:
            return self.open_share() > 0.5
        kept = torch.zeros(len(self.names), dtype=torch.bool, device=self.state.location.device)
        order = self.state.location.argsort(descending=True, stable=True)
        kept[order[: self.count]] = True
        return kept

    def _distance(self, value: Tensor, clean: Tensor) -> Tensor:
        difference = value - clean
        return difference.square() if self.settings.distance == "squared" else difference.abs()

    def _scale(self) -> float:
        """The loss of closing everything, by which every loss is divided."""
        clean, closed = torch.cat(self.rounds.open), torch.cat(self.rounds.closed)
        scale = float(self._distance(closed, clean).mean())
        if scale == 0:
            raise GateError(
                f"closing all {len(self.names):,} components leaves the metric exactly as it is on "
                f"all {len(clean):,} pairs: there is nothing a mask could learn to keep.\n"
                "Check that clean and corrupted prompts differ, or choose other components."
            )
        return scale

    def _step(self, number: int, function: GatedFunction) -> float:
        state = self.state
        shape = (function.batch, len(self.names))
        uniform = torch.rand(shape, generator=state.generator, dtype=torch.float64)
        uniform = uniform.clamp(EDGE, 1 - EDGE).to(state.location)
        with torch.enable_grad():
            m = self.gates.sample(state.location, uniform)
            errors = self._distance(function(m[None])[0], self.rounds.open[number])
            # a short batch weighs as its pairs do: over a round, the mean over all pairs
            loss = errors.sum() * len(self.rounds) / self.rounds.pairs / self.scale
            objective = loss + self._penalty()
            state.optimizer.zero_grad()
            objective.backward(inputs=state.learned)
        reached = float(loss.detach())
        state.optimizer.step()
        if not bool(torch.isfinite(state.location).all()):
            raise NonFiniteError(
                f"training the mask diverged at step {state.step} (loss {reached:.3g}).\n"
                f"Lower learning_rate={self.settings.learning_rate}, or run in a wider dtype."
            )
        return reached

    def _penalty(self) -> Float[Tensor, ""]:
        share = self.gates.open_share(self.state.location).mean()
        if self.settings.sparsity is None:
            return self.settings.price_paid * share
        gap = (1 - share) - self._target()
        return self.state.multipliers[0] * gap + self.state.multipliers[1] * gap.square()

    def _target(self) -> float:
        assert self.settings.sparsity is not None
        annealed = ANNEALED * self.settings.steps
        return self.settings.sparsity * min(1.0, (self.state.step + 1) / annealed)

    def _check(self, loss: float) -> None:
        """Compare with the last check that found a change; done after `patience` without one."""
        state, kept = self.state, self.kept().cpu()
        reached = self.settings.sparsity is None or (
            state.step >= ANNEALED * self.settings.steps and self.missed() is None
        )
        if reached and torch.equal(kept, state.kept) and abs(loss - state.loss) <= STILL:
            state.unchanged += 1
        else:
            state.kept, state.loss, state.unchanged = kept, loss, 0
        patience = self.settings.patience
        state.done = patience is not None and state.unchanged >= patience

    def missed(self) -> float | None:
        """Return the expected sparsity if it is further from its target than a gate."""
        if self.settings.sparsity is None:
            return None
        sparsity = 1 - float(self.open_share().mean())
        allowed = max(0.01, 1 / len(self.names))
        return None if abs(sparsity - self.settings.sparsity) <= allowed else sparsity


def _count(settings: TrainedMask, components: int) -> int | None:
    """Return how many components a target sparsity keeps."""
    if settings.sparsity is None:
        return None
    count = round((1 - settings.sparsity) * components)
    if not 0 < count < components:
        kept = "none" if count == 0 else "all"
        raise UnknownOptionError(
            f"sparsity={settings.sparsity} keeps {kept} of {components} components.\n"
            f"Type a share between {1 / components:.3g} and {1 - 1 / components:.3g}."
        )
    return count
