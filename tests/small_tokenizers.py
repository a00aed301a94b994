"""Tokenizers built in memory: whole words, and bytes."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("[UNK]", "[BOS]", "[EOS]")


def word_tokenizer(text: str, template: str = "[BOS] $A") -> PreTrainedTokenizerFast:
    """One token for each blank-separated word of `text`; any other word is `[UNK]`."""
    vocabulary = {
        word: index for index, word in enumerate(dict.fromkeys([*SPECIAL, *text.split()]))
    }
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]"
    )


def byte_tokenizer(merges: tuple[tuple[str, str], ...] = ()) -> PreTrainedTokenizerFast:
    """One token a byte, as GPT-2 spells them (`Ġ` is a blank), plus `merges`; no special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(left + right for left, right in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    inner = Tokenizer(models.BPE(vocabulary, list(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)
