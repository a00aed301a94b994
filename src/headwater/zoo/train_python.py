"""Train `tiny-python`: `python -m headwater.zoo.train_python --out DIR`.

A Llama over bytes, trained on the source of the standard library of the Python that runs this.
Takes twenty minutes on one core. The same seed, Python and torch on the same machine give the same
weights. The folder also gets the tasks, cut from files the model has never seen
(`headwater.zoo.python_pairs`). Needs torch 2.9 or newer, for Muon.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from headwater.zoo.byte_tokenizer import PADDING_ID, START_ID, VOCABULARY_SIZE, build_tokenizer
from headwater.zoo.python_pairs import write_pairs
from headwater.zoo.python_source import (
    is_held_out,
    read_source,
    source_files,
    source_hash,
    source_root,
)
from headwater.zoo.python_windows import Windows, bits_per_byte
from headwater.zoo.train import save, scheduled

POSITIONS = 192
"""The longest prompt the model reads, in tokens."""


@dataclass(frozen=True)
class PythonRecipe:
    """Everything that decides the trained weights, but for the text."""

    seed: int = 0
    """Seed of the initial weights and of the windows."""

    steps: int = 3200
    """Optimizer steps."""

    batch: int = 16
    """Windows a step."""

    window: int = 127
    """Bytes in a window; with the start token one more."""

    matrix_rate: float = 1e-2
    """Highest learning rate of the layers' matrices, for Muon."""

    other_rate: float = 3e-3
    """Highest learning rate of the embedding and the norms, for AdamW."""

    warmup: int = 100
    """Steps of linear warm-up; a cosine brings the rates to zero afterwards."""


def main(arguments: list[str] | None = None) -> None:
    """Train the model and write its folder.

    Args:
        arguments: Command line without the program's name; by default the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m headwater.zoo.train_python")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=PythonRecipe.seed)
    parser.add_argument("--steps", type=int, default=PythonRecipe.steps)
    given = parser.parse_args(arguments)
    recipe = PythonRecipe(seed=given.seed, steps=given.steps)
    # One thread: sums in another order would give other weights.
    torch.set_num_threads(1)
    root = source_root()
    files = source_files(root)
    train_texts = [read_source(root, path) for path in files if not is_held_out(path)]
    held_out_texts = [read_source(root, path) for path in files if is_held_out(path)]
    started = time.process_time()
    model = train(recipe, train_texts, log=_print)
    seconds = time.process_time() - started
    held_out = Windows.of(held_out_texts, recipe.window)
    before = bits_per_byte(model, held_out)
    # Half the bytes on disk. What is measured and shipped are the rounded weights.
    model = model.half().float()
    record = {
        "recipe": asdict(recipe),
        "text": "source of Python's standard library",
        "train_files": _described(train_texts),
        "held_out_files": _described(held_out_texts),
        "parameters": model.num_parameters(),
        "core_seconds": round(seconds),
        "bits_per_byte": {
            "held_out": bits_per_byte(model, held_out),
            "held_out_before_rounding": before,
            "train": bits_per_byte(model, Windows.of(train_texts, recipe.window)),
        },
        "versions": _versions(),
    }
    save_rounded(given.out, model, record)
    write_pairs(given.out, log=_print)
    _print(f"{seconds:.0f} core-seconds, {record['bits_per_byte']}; written to {given.out}")


def train(
    recipe: PythonRecipe, texts: Sequence[str], log: Callable[[str], None] | None = None
) -> PreTrainedModel:
    """Train a model from scratch.

    Args:
        recipe: How to train.
        texts: The files to train on.
        log: Receives a line of progress every 100 steps.

    Returns:
        The trained model in float32, in evaluation mode.
    """
    torch.manual_seed(recipe.seed)
    model = _llama()
    model.train()
    generator = torch.Generator().manual_seed(recipe.seed)
    windows = Windows.of(texts, recipe.window)
    optimizers = _optimizers(recipe, model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda step: rate_share(recipe, step))
        for one in optimizers
    ]
    for step in range(recipe.steps):
        tokens = windows.draw(recipe.batch, generator)
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if log and (step + 1) % 100 == 0:
            bits = loss.item() / math.log(2)
            log(f"step {step + 1}/{recipe.steps}  {bits:.3f} bits a byte")
    return model.eval()


def rate_share(recipe: PythonRecipe, step: int) -> float:
    """Return the share of the highest rates at a step."""
    return scheduled(1.0, step, warmup=recipe.warmup, steps=recipe.steps)


def save_rounded(folder: Path, model: PreTrainedModel, record: dict[str, Any]) -> None:
    """Write the weights in float16, with a configuration that loads them as float32."""
    save(folder, model.half(), build_tokenizer(POSITIONS), record)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    # Without this, the model would compute in float16, which no gradient here could stand.
    config["dtype"] = "float32"
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=START_ID,
            pad_token_id=PADDING_ID,
            eos_token_id=None,
        )
    )


def _optimizers(recipe: PythonRecipe, model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers and AdamW for the rest.

    Muon (Jordan et al. 2024) reaches a loss in about half the steps that AdamW needs here.
    """
    inside = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    known = {id(weight) for weight in inside}
    rest = [weight for weight in model.parameters() if id(weight) not in known]
    return [
        torch.optim.Muon(
            inside, lr=recipe.matrix_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(
            rest, lr=recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        ),
    ]


def _described(texts: Sequence[str]) -> dict[str, Any]:
    return {
        "files": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "sha256": source_hash(texts),
    }


def _versions() -> dict[str, str]:
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
