"""`hw.train_dictionary`: train a dictionary on the activations of one site.

A step costs three products with the dictionary's weights; the activations one forward a prompt,
once where the corpus fits into the buffer. Memory is the buffer and the weights, four times over.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from headwater.dictionaries import Dictionary, Origin, read_dictionary
from headwater.dictionaries.hooks import hook_of
from headwater.models import Model
from headwater.progress import log, progress_bar, silent
from headwater.prompts.streams import Dataset, described, source_of
from headwater.saes.checkpoint import Checkpoints
from headwater.saes.learner import Learner, Units
from headwater.saes.reading import refuse_not_positive, site_for
from headwater.saes.recipe import Kind, Recipe
from headwater.saes.stream import Filled, Place, Stream
from headwater.sites import Site


def train_dictionary(
    model: Model,
    dataset: Dataset,
    site: Site | str,
    *,
    features: int,
    activation: Kind = "topk",
    k: int | None = None,
    l1: float | None = None,
    steps: int = 2000,
    tokens: int = 1024,
    learning_rate: float = 1e-3,
    buffer: int = 2**16,
    limit: int | None = None,
    length: int | None = None,
    skip: int = 0,
    out: str | Path | None = None,
    save_every: int = 250,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool | None = None,
) -> Dictionary:
    """Train a sparse dictionary of what flows at a site.

    Small and plain: one site, one kind of loss, one device. It minimizes the squared error of the
    reconstruction: of the `k` largest features (`"topk"`), or with a price on their sum (`"relu"`).
    Features that fall silent are begun anew, pointing at what is reconstructed worst.

    Args:
        model: A causal language model.
        dataset: Texts, lists of ids, rows with a text, a file with one a line (.txt, .jsonl), or
            a function that returns such things; read again and again until the steps are done.
        site: Where, for example `"layers.3.mlp.out"`; heads (`attn.z`) are laid side by side.
        features: How many.
        activation: `"topk"` or `"relu"`.
        k: Most features active at a position, of `"topk"`; None: 32.
        l1: Price of activations, of `"relu"`; None: 0.1.
        steps: Steps of Adam.
        tokens: Tokens a step.
        learning_rate: Highest rate; it rises over a twentieth of the steps and falls to zero over
            the last fifth.
        buffer: Tokens that are shuffled together.
        limit: Read at most this many prompts.
        length: Cut each prompt to this many tokens.
        skip: Positions at the front of each prompt that are left out, such as a start token whose
            values are far larger than all others.
        out: A folder to write it to in SAELens' format, with `training.json`. While it trains its
            state is kept there: the same call goes on where it was ended, with the same numbers.
        save_every: Steps between states.
        batch_size: Most prompts in a forward.
        seed: Of everything random.
        progress: A bar or log lines; None: where there is a terminal.

    Returns:
        The dictionary, on the model's device; as it stands in `out` if that is given.

    Raises:
        UnknownSiteError: If there is no such site, or it has no vector at each position.
        UnavailableSiteError: If the model does not offer it.
        UnknownOptionError: If a setting has no meaning.
        PromptError: If the corpus cannot be read, or has fewer tokens than a step takes.
        ModelStateError: If dropout is active.
        NonFiniteError: If an activation or the loss is NaN or infinite.
        RunFolderError: If `out` holds something else, or cannot be written.
    """
    place = site_for(model, site)
    recipe = Recipe(
        features=features,
        activation=activation,
        k=k,
        l1=l1,
        steps=steps,
        tokens=tokens,
        learning_rate=learning_rate,
        buffer=buffer,
        batch_size=batch_size,
        limit=limit,
        length=length,
        skip=skip,
        seed=seed,
    )
    refuse_not_positive(save_every=save_every)
    training = _Training(model, dataset, place, recipe, out, save_every)
    with model.frozen():
        return training.run(progress)


class _Training:
    """One dictionary being trained."""

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        site: Site,
        recipe: Recipe,
        out: str | Path | None,
        save_every: int,
    ) -> None:
        self.model, self.site, self.recipe = model, site, recipe
        self.source = described(source_of(dataset))
        self.stream = Stream(
            model,
            dataset,
            site,
            **{
                name: getattr(recipe, name)
                for name in ("tokens", "buffer", "batch_size", "limit", "length", "skip", "seed")
            },
        )
        self.save_every = save_every
        self.place = Place()
        self.kept = None
        if out is not None:
            self.kept = Checkpoints(Path(out), self._settings())
            self.kept.claim()

    def _settings(self) -> dict[str, Any]:
        hashes = self.model.fingerprint()
        return {
            "weights_hash": hashes["weights_hash"],
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "site": str(self.site),
            **asdict(self.recipe),
        }

    def run(self, progress: bool | None) -> Dictionary:
        """Train from where the folder is, or from the start."""
        if self.kept is not None and self.kept.done:
            self.stream.confirm(self.kept.reached())
            return read_dictionary(self.kept.folder).to(device=self.model.device)
        learner, rounds, prompts = self._begun(progress)
        title = f"training {self.recipe.features:,} features of {self.site}"
        left = (self.recipe.steps - learner.done) * prompts
        with self._resumable(learner), progress_bar(title, left, show=progress) as done:
            for place, x in itertools.chain.from_iterable(map(self.stream.batches, rounds)):
                if learner.done >= self.recipe.steps:
                    break
                self.place = place
                lost, active = learner.step(x)
                done(prompts, f"explained {1 - lost:.3f}, {active:.1f} active")
                if self.kept is not None and learner.done % self.save_every == 0:
                    self.kept.write(learner.tensors(), place)
        return self._finished(learner)

    def _begun(self, progress: bool | None) -> tuple[Learner, Iterator[Filled], float]:
        """Return the learner, its rounds from here on, and how many prompts a step is."""
        saved = None if self.kept is None else self.kept.read()
        if saved is not None:
            self.place = saved[1]
        rounds = self.stream.rounds(self.place)
        with progress_bar(f"reading {self.site}", float("inf"), show=progress) as advance:
            self.stream.advance = advance
            first = next(rounds)
        self.stream.advance = silent  # what is read later is counted with the steps
        if saved is None:
            learner = Learner(self.recipe, Units.of(first.values))
        else:
            learner = Learner.restored(self.recipe, saved[0], self.model.device)
        read = first.place.end - first.place.read
        prompts = read * self.recipe.tokens / len(first.values)
        return learner, itertools.chain([first], rounds), prompts

    @contextmanager
    def _resumable(self, learner: Learner) -> Iterator[None]:
        """Say, when interrupted, how much is kept."""
        try:
            yield
        except KeyboardInterrupt:
            reached = learner.done - learner.done % self.save_every
            if self.kept is not None and reached:
                log.warning(
                    "%s of %s steps are kept in %s: type the same again to go on from there.",
                    f"{reached:,}",
                    f"{self.recipe.steps:,}",
                    self.kept.folder,
                )
            raise

    def _finished(self, learner: Learner) -> Dictionary:
        dictionary, figures = learner.found(), learner.figures()
        if self.kept is not None:
            record = {
                "model": self.model.name,
                "corpus": self.source,
                "reached": asdict(self.place),
                "tokens_seen": self.recipe.steps * self.recipe.tokens,
                "last_steps": figures,
            }
            written = self.kept.finish(dictionary, record, self.site, self.model.name)
            return written.to(device=self.model.device)
        origin = Origin(
            format="headwater",
            kind=dictionary.activation.name,
            hook=hook_of(self.site),
            model=self.model.name,
            config={"training": {**self._settings(), "last_steps": figures}},
        )
        return replace(dictionary, origin=origin)
