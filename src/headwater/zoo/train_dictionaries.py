"""Train the dictionaries that ship with `tiny`: `python -m headwater.zoo.train_dictionaries`.

One for the embedding and for every attention, MLP and residual of a layer: sparse features of what
flows there, trained on the grammar that the model was trained on and measured on other windows of
it. Takes about eight minutes on one core. The same seed on the same machine gives the same weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from headwater.dictionaries import write_dictionary
from headwater.dictionaries.hooks import hook_of
from headwater.files import write_text
from headwater.loading import embedded_folder
from headwater.models import Model, load
from headwater.saes import Inspection, inspect_dictionary, train_dictionary
from headwater.sites import EMBED, Site
from headwater.zoo.corpus import texts

NAMES = ("attn.out", "mlp.out", "resid_post")
"""The sites of a layer that get a dictionary."""


@dataclass(frozen=True)
class DictionaryRecipe:
    """Everything that decides the trained dictionaries, but for the model."""

    seed: int = 0
    """Seed of the weights, the text and its order."""

    features: int = 384
    """Features of each: four times the width."""

    active: int = 8
    """Features active at a position, at the embedding and behind an MLP."""

    active_mixed: int = 16
    """The same behind an attention and of a residual, where many writers are added up."""

    windows: int = 4096
    """Windows of text to train on."""

    held_out: int = 256
    """Other windows, on which the figures are measured."""

    steps: int = 1200
    """Steps of Adam."""

    tokens: int = 1024
    """Tokens a step."""

    learning_rate: float = 3e-3
    """Highest learning rate."""

    buffer: int = 2**18
    """Tokens shuffled together: all of them."""

    batch_size: int = 32
    """Windows in a forward."""

    def k(self, site: Site) -> int:
        """Return how many features of a site are active at a position."""
        few = site.name in ("embed", "mlp.out")
        return self.active if few else self.active_mixed


def main(arguments: list[str] | None = None) -> None:
    """Train all dictionaries of one model and write their folder.

    Args:
        arguments: Command line without the program's name; by default the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m headwater.zoo.train_dictionaries")
    parser.add_argument("--model", default="tiny", help="an embedded model")
    parser.add_argument("--out", type=Path, help="folder to write; default the package's own")
    parser.add_argument("--seed", type=int, default=DictionaryRecipe.seed)
    parser.add_argument("--steps", type=int, default=DictionaryRecipe.steps)
    given = parser.parse_args(arguments)
    recipe = DictionaryRecipe(seed=given.seed, steps=given.steps)
    # One thread: sums in another order would give other weights.
    torch.set_num_threads(1)
    out = given.out or embedded_folder() / given.model / "dictionaries"
    started = time.process_time()
    model = load(given.model)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Written elsewhere first: an interrupted run leaves the folder as it was.
    with tempfile.TemporaryDirectory(dir=out.parent) as elsewhere:
        unfinished = Path(elsewhere) / out.name
        figures = train(model, recipe, unfinished, log=_print)
        seconds = time.process_time() - started
        record = _record(model, recipe, figures, seconds)
        write_text(unfinished / "training.json", json.dumps(record, indent=2) + "\n")
        shutil.rmtree(out, ignore_errors=True)
        unfinished.rename(out)
    _print(f"{seconds:.0f} core-seconds; written to {out}")


def sites(model: Model) -> list[Site]:
    """Return the sites that get a dictionary, in the order of a forward pass."""
    return [EMBED, *(site for site in model.sites() if site.name in NAMES)]


def train(
    model: Model, recipe: DictionaryRecipe, out: Path, log: Callable[[str], None] | None = None
) -> dict[str, dict[str, float]]:
    """Train a dictionary for each site.

    Args:
        model: An embedded model.
        recipe: How to train.
        out: The folder of the dictionaries' folders, which are named by site.
        log: Receives a line for each that is done.

    Returns:
        Figures by site, of the dictionaries as they stand on disk.
    """
    prompts = partial(_first, model.name, recipe.seed, recipe.windows)
    figures: dict[str, dict[str, float]] = {}
    for site in sites(model):
        found = train_dictionary(
            model,
            prompts,
            site,
            features=recipe.features,
            k=recipe.k(site),
            steps=recipe.steps,
            tokens=recipe.tokens,
            learning_rate=recipe.learning_rate,
            buffer=recipe.buffer,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            progress=False,
        )
        folder = out / str(site)
        # Half the bytes on disk. What is measured and shipped are the rounded weights.
        write_dictionary(found, folder, hook=hook_of(site), model=model.name, dtype=torch.float16)
        judged = inspect_dictionary(
            folder,
            model,
            list(islice(texts(model.name, recipe.seed, held_out=True), recipe.held_out)),
            batch_size=recipe.batch_size,
            progress=False,
        )
        figures[str(site)] = _figures(judged)
        if log:
            said = "  ".join(f"{name} {value:.4g}" for name, value in figures[str(site)].items())
            log(f"{site!s:>20}  {said}")
    return figures


def _first(name: str, seed: int, count: int) -> list[str]:
    return list(islice(texts(name, seed), count))


def _figures(judged: Inspection) -> dict[str, float]:
    found = judged.figures
    assert found is not None
    return {
        "explained_variance": round(found.explained_variance, 4),
        "active_features": round(found.active, 2),
        "dead_features": found.dead,
        "cosine": round(found.cosine, 4),
        "cross_entropy": round(found.clean, 4),
        "spliced_cross_entropy": round(found.spliced, 4),
        "loss_recovered": round(found.loss_recovered, 4),
        "loss_recovered_from_zero": round(found.loss_recovered_from_zero, 4),
    }


def _record(
    model: Model, recipe: DictionaryRecipe, figures: dict[str, dict[str, float]], seconds: float
) -> dict[str, Any]:
    return {
        "model": model.name,
        "weights_hash": model.fingerprint()["weights_hash"],
        "recipe": asdict(recipe),
        "core_seconds": round(seconds),
        "figures": figures,
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
    }


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
