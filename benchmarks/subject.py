"""What is measured: a randomly initialised model of gpt2-small's size and 8 pairs of 15 tokens."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import headwater as hw

PAIRS, LENGTH = 8, 15


def module() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config()).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"[UNK]": 0, "[PAD]": 1} | {f"w{i}": i for i in range(2, GPT2Config().vocab_size)}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")


def task() -> hw.Task:
    generator = torch.Generator().manual_seed(1)
    pairs = []
    for _ in range(PAIRS):
        ids = torch.randint(2, 50_000, (LENGTH + 3,), generator=generator).tolist()
        words = [f"w{i}" for i in ids]
        clean, corrupted = words[:LENGTH], list(words[:LENGTH])
        corrupted[4], corrupted[9] = words[LENGTH], words[LENGTH + 1]
        pairs.append(
            hw.Pair(
                " ".join(clean), " ".join(corrupted), answer=" " + words[0], wrong=" " + words[-1]
            )
        )
    return hw.Task(pairs, metric=hw.logit_diff(), name="random words")


def model() -> hw.Model:
    return hw.wrap(module(), tokenizer())
