"""Random prompt pairs over the tiny models' vocabulary, and a tokenizer that spells it.

Token id 17 is the word `w17`; the three special tokens have no word, so that what the tests feed a
model is exactly the ids they name.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import headwater as hw
from headwater.architectures.adapter import resolve
from headwater.components import Selection
from headwater.gates import GatedTask, ModelGates
from headwater.models import Model
from tiny_models import VOCAB, build

FIRST_WORD = 3
"""Ids below it are special tokens."""


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One word a token, separated by blanks."""
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(FIRST_WORD, VOCAB)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>")


@functools.cache
def model(family: str, dtype: torch.dtype = torch.float64, *, prove: bool = True) -> Model:
    """The tiny model of a family, ready to be attributed; tests must leave it as it is."""
    module = build(family, dtype=dtype)
    if prove:
        return hw.wrap(module, tokenizer())
    return Model(module, tokenizer(), adapter=resolve(module))


def one_of_each(model: Model) -> Selection:
    """A few components of every kind the model offers, in different layers."""
    choices = {
        "embed": hw.tokens(positions=[0, -1]),
        "attn.z": hw.heads(layers=[0, 1]),
        "attn.q": hw.queries(layers=1),
        "attn.k": hw.keys(layers=1, positions=[1]),
        "attn.v": hw.values(layers=0),
        "attn.out": hw.attentions(layers=1),
        "mlp.out": hw.mlps(layers=[0, 1]),
        "resid_post": hw.residual(layers=0, positions=[-1]),
        "mixer.out": hw.mixers(layers=[0, 1]),
    }
    offered = {site.name for site in model.sites()}
    return functools.reduce(
        lambda one, other: one + other,
        [choice for site, choice in choices.items() if site in offered],
    )


def text(ids: Sequence[int]) -> str:
    """The prompt that the tokenizer turns into `ids`."""
    return " ".join(f"w{i}" for i in ids)


def pair(length: int, *, seed: int, changed: Sequence[int] = (0, -1)) -> hw.Pair:
    """A random prompt and its twin, which differ at the positions `changed`."""
    draw = random.Random(seed)
    clean = [draw.randrange(FIRST_WORD, VOCAB) for _ in range(length)]
    corrupted = list(clean)
    for place in changed:
        corrupted[place] = draw.choice([i for i in range(FIRST_WORD, VOCAB) if i != clean[place]])
    answer, wrong = draw.sample(range(FIRST_WORD, VOCAB), 2)
    return hw.Pair(text(clean), text(corrupted), answer=answer, wrong=wrong)


def task(*lengths: int, seed: int = 0, metric: object = None) -> hw.Task:
    """One random pair a length, in this order."""
    pairs = [pair(length, seed=100 * seed + i) for i, length in enumerate(lengths)]
    return hw.Task(pairs, metric)


def gated(
    model: Model,
    task: hw.Task,
    components: Any,
    reference: Any = None,
    *,
    end: str = "clean",
    batch_size: int = 32,
) -> ModelGates:
    """The gated function of a task that fits in one batch."""
    reference = hw.Corrupted() if reference is None else reference
    ((_, function),) = GatedTask(model, task, components, reference, batch_size=batch_size)
    return function.at(end)
