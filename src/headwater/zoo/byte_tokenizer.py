"""The tokenizer of `tiny-python`: every byte is a token, and a text begins with a start token.

A byte's id is its value, so `ord("(")` is the id of an opening bracket.
"""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BYTES = 256
START_ID, PADDING_ID = BYTES, BYTES + 1
VOCABULARY_SIZE = BYTES + 2
START, PADDING = "[BOS]", "[PAD]"


def build_tokenizer(positions: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer, a stock one of transformers.

    Args:
        positions: The longest prompt the model can read, in tokens.

    Returns:
        A tokenizer without an unknown token: no text is foreign to it. A text that spells
        `[BOS]` is five bytes, not a start token.
    """
    inner = tokenizers.Tokenizer(models.BPE(vocab=_byte_symbols(), merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, START_ID)]
    )
    inner.add_special_tokens([START, PADDING])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=START,
        pad_token=PADDING,
        padding_side="left",
        model_max_length=positions,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def _byte_symbols() -> dict[str, int]:
    """Return the printable character that stands for each byte, with the byte's value as id.

    The rule is GPT-2's: bytes that print stand for themselves, the others for the characters
    from U+0100 on, in order.
    """
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    symbols, others = {}, 0x100
    for byte in range(BYTES):
        symbols[chr(byte if byte in printing else others)] = byte
        others += byte not in printing
    return symbols
