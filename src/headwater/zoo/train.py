"""Train an embedded model: `python -m headwater.zoo.train --arch llama --out DIR`.

Takes five to ten minutes on one core and writes a folder that `headwater.load` and transformers
read. The same seed on the same machine gives the same weights. Training a Mamba needs the package
mambapy, whose scan is ten times as fast here as transformers' own; running it does not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from jaxtyping import Float, Int
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from headwater.errors import MissingExtraError
from headwater.zoo.behaviors import BEHAVIORS
from headwater.zoo.examination import accuracy
from headwater.zoo.grammar import WINDOW, window
from headwater.zoo.words import PADDING, START, UNKNOWN, VOCABULARY

_POSITIONS = 64


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the trained weights."""

    arch: str = "llama"
    """`llama`, `gpt2` or `mamba`."""

    seed: int = 0
    """Seed of the initial weights and of the text."""

    steps: int = 3500
    """Optimizer steps."""

    batch: int = 32
    """Windows a step."""

    learning_rate: float = 2e-3
    """Highest learning rate, reached after `warmup` steps and brought to zero by a cosine."""

    warmup: int = 100
    """Steps of linear warm-up."""

    weight_decay: float = 0.01
    """Decoupled weight decay."""

    early_share: float = 0.3
    """Share of the steps that see many repeated strings."""

    repeated_early: float = 0.6
    """Share of repeated-string windows in the early steps; with fewer, induction never forms."""

    repeated_late: float = 0.2
    """Share of repeated-string windows afterwards."""


def main(arguments: list[str] | None = None) -> None:
    """Train one model and write its folder.

    Args:
        arguments: Command line without the program's name; by default the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m headwater.zoo.train", description=__doc__)
    parser.add_argument("--arch", choices=sorted(_ARCHITECTURES), default="llama")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, help="by default those of the architecture's recipe")
    parser.add_argument("--pairs", type=int, default=500, help="pairs a task to measure it on")
    given = parser.parse_args(arguments)
    recipe = replace(RECIPES[given.arch], seed=given.seed)
    if given.steps is not None:
        recipe = replace(recipe, steps=given.steps)
    # One thread: sums in another order would give other weights.
    torch.set_num_threads(1)
    started = time.process_time()
    model, tokenizer = train(recipe, log=_print), build_tokenizer()
    seconds = time.process_time() - started
    figures = {
        name: accuracy(model, tokenizer, name, count=given.pairs)._asdict() for name in BEHAVIORS
    }
    save(given.out, model, tokenizer, _record(recipe, model, figures, seconds))
    for name, figure in figures.items():
        _print(f"{name:>12}  " + "  ".join(f"{key} {value:.3f}" for key, value in figure.items()))
    _print(f"{seconds:.0f} core-seconds; written to {given.out}")


def train(recipe: Recipe, log: Callable[[str], None] | None = None) -> PreTrainedModel:
    """Train a model from scratch.

    Args:
        recipe: What to train and how.
        log: Receives a line of progress every 100 steps.

    Returns:
        The trained model, in evaluation mode.

    Raises:
        MissingExtraError: If a Mamba is to be trained without the package mambapy.
    """
    if recipe.arch == "mamba" and importlib.util.find_spec("mambapy") is None:
        raise MissingExtraError(
            "training a Mamba needs mambapy, whose parallel scan makes it ten times as fast.\n"
            "Install it with: pip install mambapy==1.2.0 (loading and running need nothing)."
        )
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    model = _ARCHITECTURES[recipe.arch]()
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    for step in range(recipe.steps):
        rate = learning_rate(recipe, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        tokens = _batch(recipe, step, rng)
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if log and (step + 1) % 100 == 0:
            log(f"step {step + 1}/{recipe.steps}  loss {loss.item():.3f}")
    if isinstance(model, MambaForCausalLM):
        _choose_scan(model, mambapy=False)
    return model.eval()


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate of a step."""
    return scheduled(recipe.learning_rate, step, warmup=recipe.warmup, steps=recipe.steps)


def scheduled(highest: float, step: int, *, warmup: int, steps: int) -> float:
    """Return a rate at a step: linear warm-up to the highest, then a cosine to zero."""
    if step < warmup:
        return highest * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return highest * 0.5 * (1 + math.cos(math.pi * progress))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the word tokenizer of the embedded models: a start token, then a token a word."""
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    inner = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, ids[START])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token=UNKNOWN,
        pad_token=PADDING,
        bos_token=START,
        padding_side="left",
        model_max_length=_POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    record: dict[str, Any],
) -> None:
    """Write a folder that transformers can load, with `training.json` beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    # Written elsewhere first: an interrupted run leaves the folder's own files as they were.
    with tempfile.TemporaryDirectory(dir=folder.parent) as elsewhere:
        unfinished = Path(elsewhere)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        text = json.dumps(record, indent=2) + "\n"
        (unfinished / "training.json").write_text(text, encoding="utf-8")
        for file in unfinished.iterdir():
            os.replace(file, folder / file.name)


def sinusoids(positions: int, width: int) -> Float[Tensor, "pos d_model"]:
    """Return the fixed position code of the original transformer: sines, then cosines."""
    frequency = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(positions)[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


def _batch(recipe: Recipe, step: int, rng: random.Random) -> Int[Tensor, "batch pos"]:
    early = step < recipe.early_share * recipe.steps
    repeated = recipe.repeated_early if early else recipe.repeated_late
    return torch.tensor(
        [[_ID[word] for word in window(rng, repeated=repeated)] for _ in range(recipe.batch)]
    )


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=_POSITIONS,
            initializer_range=_SPREAD,
            tie_word_embeddings=True,
            **_SPECIAL_IDS,
        )
    )


def _gpt2() -> PreTrainedModel:
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(VOCABULARY),
            n_embd=96,
            n_layer=4,
            n_head=4,
            n_positions=_POSITIONS,
            initializer_range=_SPREAD,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **_SPECIAL_IDS,
        )
    )
    # From random positions the heads that look one token back, and so induction, form far too
    # late for this budget; from sinusoids a shift by one is a rotation from the first step on.
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(2 * _SPREAD * sinusoids(_POSITIONS, 96))
    return model


def _mamba() -> PreTrainedModel:
    model = MambaForCausalLM(
        MambaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=64,
            num_hidden_layers=4,
            state_size=8,
            time_step_rank=8,
            initializer_range=_SPREAD,
            tie_word_embeddings=True,
            **_SPECIAL_IDS,
        )
    )
    _choose_scan(model, mambapy=True)
    return model


def _choose_scan(model: MambaForCausalLM, *, mambapy: bool) -> None:
    """Switch between mambapy's parallel scan, for training, and transformers' own."""
    model.config.use_mambapy = mambapy
    for layer in model.backbone.layers:
        mixer: Any = layer.mixer
        mixer.use_mambapy = mambapy


def _record(
    recipe: Recipe, model: PreTrainedModel, figures: dict[str, Any], seconds: float
) -> dict[str, Any]:
    versions = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    if recipe.arch == "mamba":
        versions["mambapy"] = importlib.metadata.version("mambapy")
    return {
        "recipe": asdict(recipe),
        "window": WINDOW,
        "parameters": model.num_parameters(),
        "core_seconds": round(seconds),
        "unreliable_tasks": unreliable_tasks(figures),
        "figures": figures,
        "versions": versions,
    }


def unreliable_tasks(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the tasks of which a model answers more than one pair in ten wrong."""
    return [name for name, figure in figures.items() if figure["accuracy"] < 0.9]


def _print(line: str) -> None:
    print(line, flush=True)


_ID = {word: number for number, word in enumerate(VOCABULARY)}
_SPECIAL_IDS: dict[str, Any] = {
    "bos_token_id": _ID[START],
    "pad_token_id": _ID[PADDING],
    "eos_token_id": None,
}
_SPREAD = 0.05
_ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "gpt2": _gpt2,
    "mamba": _mamba,
}
RECIPES: dict[str, Recipe] = {
    "llama": Recipe("llama"),
    "gpt2": Recipe("gpt2"),
    "mamba": Recipe("mamba", steps=1500, learning_rate=3e-3, early_share=0.25),
}
"""What each embedded model was trained with."""

if __name__ == "__main__":
    main()
