"""What feature circuits are measured on: a GPT-NeoX of random weights under random dictionaries.

Imported by headwater's benchmark and, in an environment of its own, by its peer's: it needs torch
and transformers only, and gives both the same numbers.
"""

import json
import math
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Subject:
    """A model, its dictionaries, its prompts, and how much of a circuit is asked for."""

    features: int
    """Of each dictionary; there is one at the embedding and three a layer."""
    active: float
    """Fraction of features that are active at a position."""
    nodes: int
    """Of a circuit that keeps the strongest."""
    threshold: float
    """Of a circuit that keeps nodes by their effect on single pairs and positions."""
    pairs: int = 16
    length: int = 8
    layers: int = 4
    width: int = 128
    heads: int = 4
    vocab: int = 512

    @cached_property
    def module(self) -> GPTNeoXForCausalLM:
        """The model; every tensor is drawn by its name, so any transformers gives the same."""
        config = GPTNeoXConfig(
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            vocab_size=self.vocab,
            max_position_embeddings=64,
        )
        found = GPTNeoXForCausalLM(config).eval()
        for name, value in found.named_parameters():
            drawn = self._scale(name, value) * torch.randn(
                value.shape, generator=_generator(_same_name(name))
            )
            value.data = drawn + (1 if "norm" in name and name.endswith("weight") else 0)
        return found

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Token 17 is the word `w17`."""
        words = {"<pad>": 0, "<unk>": 1} | {f"w{i}": i for i in range(2, self.vocab)}
        inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")

    @cached_property
    def ids(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean and corrupted prompts, which differ at every position."""
        shape = self.pairs, self.length
        clean = torch.randint(3, self.vocab, shape, generator=_generator("clean"))
        other = torch.randint(1, self.vocab - 3, shape, generator=_generator("corrupted"))
        return clean, 3 + (clean - 3 + other) % (self.vocab - 3)

    @cached_property
    def answers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The right and the wrong answer of each pair."""
        right = torch.randint(3, self.vocab, (self.pairs,), generator=_generator("right"))
        other = torch.randint(1, self.vocab - 3, (self.pairs,), generator=_generator("wrong"))
        return right, 3 + (right - 3 + other) % (self.vocab - 3)

    @cached_property
    def dictionaries(self) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Encoder [d, feature], its bias [feature] and decoder [feature, d] of each site.

        The bias is what leaves the wanted fraction active; it is rounded, so that rounding
        elsewhere does not move it.
        """
        found = {}
        for name, value in self._values().items():
            decoder = torch.randn(self.features, self.width, generator=_generator(name))
            decoder /= decoder.norm(dim=1, keepdim=True)
            pre = (value.flatten(0, 1) @ decoder.T).flatten()
            place = max(1, round(self.active * len(pre)))
            bias = round(float(pre.topk(place).values[-1]), 3)
            found[name] = decoder.T.contiguous(), torch.full((self.features,), -bias), decoder
        return found

    def _scale(self, name: str, value: torch.Tensor) -> float:
        """Standard deviation of a tensor; later layers write more: no site is negligible."""
        if value.ndim < 2:
            return 0.1
        scale = (1.1 if "attention" in name else 0.9) / math.sqrt(self.width)
        writes = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
        return scale * (1 + int(name.split(".")[2]) if writes else 1)

    @torch.no_grad()
    def _values(self) -> dict[str, torch.Tensor]:
        """What passes each site in the first clean prompts."""
        found: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: object, _args: object, out: object) -> None:
                found[name] = out[0] if isinstance(out, tuple) else out

            return hook

        inner = self.module.gpt_neox
        places = {"embed": inner.embed_in}
        for layer, block in enumerate(inner.layers):
            places[f"attn_{layer}"] = block.attention
            places[f"mlp_{layer}"] = block.mlp
            places[f"resid_{layer}"] = block
        hooks = [place.register_forward_hook(keep(name)) for name, place in places.items()]
        self.module(input_ids=self.ids[0][:4], use_cache=False)
        for hook in hooks:
            hook.remove()
        return found


SUBJECTS = {
    "f512": Subject(features=512, active=0.2, nodes=676, threshold=0.159),
    "f2048": Subject(features=2048, active=0.2, nodes=2750, threshold=0.157),
    "pythia": Subject(
        features=32768, active=0.002, nodes=950, threshold=0.1, pairs=10, length=7,
        layers=6, width=512, heads=8, vocab=50304,
    ),
}  # fmt: skip


def given(words: list[str]) -> Subject:
    """A subject by its name, with what `field=value` changes: `f512 pairs=64`."""
    name, *changes = words
    subject = SUBJECTS[name]
    for field, value in (change.split("=") for change in changes):
        kind = type(getattr(subject, field))
        subject = replace(subject, **{field: kind(value)})
    return subject


def measured(warm: Callable[[], object], work: Callable[[], dict]) -> None:
    """Do a small work, then one with the clock on; print its time, its memory and what it says.

    Memory is what the process holds at the peak of the work beyond what it held before.
    """
    warm()
    with Path("/proc/self/clear_refs").open("w") as stream:
        stream.write("5")  # the peak so far is forgotten
    before, start = _status("VmRSS"), time.process_time()
    says = work()
    seconds = time.process_time() - start
    found = {"seconds": seconds, "mebibytes": _status("VmHWM") - before, **says}
    print(json.dumps(found), file=sys.__stdout__)


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def _same_name(name: str) -> str:
    """A parameter's name in every transformers: 5 calls `embed_out` `lm_head`."""
    return name.replace("embed_out", "lm_head")


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))
