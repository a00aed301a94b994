"""Text an embedded model knows, one prompt after another without end: what it was trained on, or
text of the same kind that it has not seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from headwater.errors import UnknownModelError
from headwater.loading import embedded_names
from headwater.zoo.grammar import window
from headwater.zoo.python_source import is_held_out, read_source, source_files, source_root

PYTHON = "tiny-python"
CHARACTERS = 127
"""Of a window of source, as in the training of `tiny-python`."""
REPEATED = 0.2
"""Share of windows that are one string again and again, as late in the other models' training."""


def texts(name: str, seed: int = 0, *, held_out: bool = False) -> Iterator[str]:
    """Yield prompts of an embedded model's own kind of text.

    Args:
        name: The model.
        seed: Which prompts.
        held_out: For `tiny-python`, of files that the model has never seen; for the others, other
            windows of the grammar than without it.

    Raises:
        UnknownModelError: If there is no such embedded model.
    """
    if name not in embedded_names():
        raise UnknownModelError(
            f"{name!r} is no embedded model, so its kind of text is not known here.\n"
            f"Embedded: {', '.join(embedded_names())}. For others give a corpus."
        )
    rng = random.Random(f"held out {seed}" if held_out else seed)
    return _source(rng, held_out=held_out) if name == PYTHON else _grammar(rng)


def described(name: str) -> str:
    """Return in words what `texts` yields.

    Args:
        name: The model.
    """
    if name == PYTHON:
        return "source of Python's standard library"
    return "the grammar it was trained on"


def _grammar(rng: random.Random) -> Iterator[str]:
    while True:
        # without the start token, which the tokenizer adds
        yield " ".join(window(rng, repeated=REPEATED)[1:])


def _source(rng: random.Random, *, held_out: bool) -> Iterator[str]:
    root = source_root()
    paths = [path for path in source_files(root) if is_held_out(path) == held_out]
    files = [text for path in paths if len(text := read_source(root, path)) >= CHARACTERS]
    lengths = [len(text) for text in files]
    while True:
        (text,) = rng.choices(files, lengths)
        start = rng.randint(0, len(text) - CHARACTERS)
        piece = text[start : start + CHARACTERS]
        if piece.isascii():  # a character is a byte, and the window no longer than in training
            yield piece
