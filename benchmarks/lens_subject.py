"""What lenses are measured on: two models of random weights, 2 x 64 tokens.

Imported by headwater's benchmark and, in their own environments, by its peers': it needs torch and
transformers only.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

BATCH, LENGTH = 2, 64
SUBJECTS = ("gpt2", "llama")
WORDS = {
    "gpt2": "GPT-2 small's size: 12 layers, d 768, vocabulary 50,257",
    "llama": "Llama: 4 layers, d 512, vocabulary 128,256",
}


def module(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config()).eval().requires_grad_(False)
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def ids() -> torch.Tensor:
    return torch.randint(5, 50_000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(2))


def measured(works: dict[str, Callable[[], object]], repeats: int = 3) -> None:
    """Time works in turn, or take the peak memory of the one that is named; print JSON.

    Memory is what the process holds at the peak of the work beyond what it held before.
    """
    if len(sys.argv) > 2:
        with Path("/proc/self/clear_refs").open("w") as stream:
            stream.write("5")  # the peak so far is forgotten
        before = _status("VmRSS")
        works[sys.argv[2]]()
        print(json.dumps(_status("VmHWM") - before))
        return
    best = dict.fromkeys(works, float("inf"))
    for work in works.values():
        work()
    for _ in range(repeats):
        for name, work in works.items():
            start = time.process_time()
            work()
            best[name] = min(best[name], time.process_time() - start)
    print(json.dumps(best))


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
