"""Words to token ids, and ids to texts to show."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.errors import AnswerError, PromptError
from headwater.models import Model
from headwater.prompts.encoding import Encoder, token_texts


def token_ids(model: Model, tokens: Sequence[str | int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return tokens as texts and ids.

    Args:
        model: Whose tokens they are.
        tokens: Words of one token each, as they stand in running text (`" Paris"`), or ids.

    Raises:
        AnswerError: If a word is not one token, or an id is none of the model's.
        UnknownWordError: If the tokenizer does not know the word.
    """
    if isinstance(tokens, str):
        tokens = [tokens]
    vocab = model.anatomy().vocab
    words, ids = [], []
    for token in tokens:
        found = token
        if isinstance(token, str):
            found = _only_token(Encoder(model.tokenizer), token)
        if not 0 <= int(found) < vocab:
            raise AnswerError(f"token id {token} is none of the model's, 0 to {vocab - 1}.")
        words.append(token if isinstance(token, str) else texts(model, [int(found)])[0])
        ids.append(int(found))
    return tuple(words), tuple(ids)


def texts(model: Model, ids: Sequence[int]) -> list[str]:
    """Return each token as text; its id in brackets where the model has no tokenizer for it."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return [f"[{one}]" for one in ids]
    size = len(tokenizer)
    return [token_texts(tokenizer, [one])[0] if one < size else f"[{one}]" for one in ids]


def _only_token(encoder: Encoder, word: str) -> int:
    if not word:
        raise PromptError("an empty word is no token.")
    ids = encoder.bare(word)
    encoder.refuse_unknown_words(word, ids)
    if len(ids) != 1:
        raise AnswerError(
            f"{word!r} is {len(ids)} tokens, and a lens ranks single tokens.\n"
            f"Write one as it stands in running text ({' ' + word.strip()!r}?), or a token id."
        )
    return ids[0]
