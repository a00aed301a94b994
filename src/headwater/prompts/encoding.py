"""From text to token ids: prompts, answers, and the tokens as texts to show.

The ids of an answer are ids(prompt + answer) minus ids(prompt), without special tokens: what the
model would have to produce next. Everything a tokenizer can do quietly is refused here: unknown
words, answers that change the prompt's last token, an end-of-text token after the prompt.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from headwater.errors import AnswerError, PromptError, UnknownWordError, did_you_mean
from headwater.prompts.pairs import Answer

Ids: TypeAlias = tuple[int, ...]

Tokenizer: TypeAlias = PreTrainedTokenizerBase
"""A Hugging Face tokenizer, fast or slow."""


class Encoder:
    """A tokenizer with a memory, so that texts are encoded many at a time and once each."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        """Keep `tokenizer`.

        Raises:
            PromptError: If there is none.
        """
        if tokenizer is None:
            raise PromptError(
                "the model has no tokenizer, so prompts cannot be turned into token ids. "
                "Give it one: hw.wrap(module, tokenizer=...)."
            )
        self.tokenizer = tokenizer
        self._bare: dict[str, Ids] = {}
        self._full: dict[str, Ids] = {}

    def prime(self, texts: Iterable[str], *, special: bool = False) -> None:
        """Encode all the texts not known yet in one call."""
        known = self._full if special else self._bare
        unknown = [text for text in dict.fromkeys(texts) if text not in known]
        if unknown:
            ids = self.tokenizer(
                unknown,
                add_special_tokens=special,
                padding=False,
                truncation=False,
                return_attention_mask=False,
                verbose=False,
            )["input_ids"]
            known.update(zip(unknown, map(tuple, ids), strict=True))

    def bare(self, text: str) -> Ids:
        """Return the ids of `text` without special tokens."""
        if text not in self._bare:
            self.prime([text])
        return self._bare[text]

    def prompt(self, text: str, *, ending: bool = False) -> Ids:
        """Return the ids of a prompt as the model is used to it.

        Args:
            text: The prompt.
            ending: Whether special tokens behind the text stay. A causal model predicts nothing
                after them; one that reads in both directions (BERT, T5) is used to them.

        Returns:
            The ids, special tokens in front included.

        Raises:
            UnknownWordError: If a word has no token.
            PromptError: If nothing is left to run on.
        """
        bare = self.bare(text)
        self.refuse_unknown_words(text, bare)
        self.prime([text], special=True)
        full = self._full[text]
        ids = full if ending else self._without_ending(full, bare)
        if not ids:
            raise PromptError(f"the tokenizer turns {text!r} into no tokens at all.")
        return ids

    def answer(self, prompt: str, answer: Answer) -> Ids:
        """Return the ids that continue `prompt` to `prompt + answer`.

        Where that join changes the prompt's own tokens or is unknown, a blank is put between; a
        number that goes on the prompt's last number keeps its own tokens instead.

        Raises:
            AnswerError: If both ways of joining fail, or a token id is out of range.
            UnknownWordError: If the answer has no token.
        """
        if isinstance(answer, int):
            return (self._checked_id(answer),)
        stem, joined = self.bare(prompt), self.bare(prompt + answer)
        unknown = self._has_unknown(joined[len(stem) :] or joined, answer)
        if _continues(joined, stem) and not unknown:
            return joined[len(stem) :]
        if not unknown and prompt[-1].isdigit() and answer[0].isdigit():
            # " 19" + "00" may be one token, but what is asked is how likely "00" follows " 19";
            # a blank between would quietly ask about another number.
            alone = self.bare(answer)
            if self._text((*stem, *alone)) == prompt + answer:
                return alone
        elif not (answer[0].isspace() or prompt[-1].isspace()):
            spaced = self.bare(f"{prompt} {answer}")
            if _continues(spaced, stem) and not self._has_unknown(spaced[len(stem) :], answer):
                return spaced[len(stem) :]
        if unknown:
            self.refuse_unknown_words(answer, self.bare(answer))
        raise AnswerError(
            f"{answer!r} cannot be told apart from its prompt: their join has other tokens.\n"
            f"  prompt:          {show_tokens(self.tokenizer, stem)}\n"
            f"  prompt + answer: {show_tokens(self.tokenizer, joined)}\n"
            "Write the answer as it stands in running text, with the blank in front "
            f"({' ' + answer.strip()!r}) and none at the end of the prompt, or give a token id."
        )

    def refuse_unknown_words(self, text: str, ids: Sequence[int]) -> None:
        """Raise if the tokenizer has only its unknown token for a word of `text`."""
        if not self._has_unknown(ids, text):
            return
        words = [word for word in text.split() if self._has_unknown(self.bare(word), word)]
        # A word known alone may be unknown in place; then all that can be shown is the text.
        word = words[0] if words else text.strip()
        core = word.strip(".,;:!?\"'()") or word
        raise UnknownWordError(
            f"the tokenizer has no token for {core!r} in {text!r}."
            f"{did_you_mean(core, self._words())} "
            "Use a word it knows; headwater never runs on the unknown token."
        )

    @property
    def pad_id(self) -> int:
        """An id to fill padding with; any will do, since padding is masked."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((one for one in ids if isinstance(one, int)), 0)

    def _has_unknown(self, ids: Sequence[int], text: str) -> bool:
        unknown = self.tokenizer.unk_token_id
        if not isinstance(unknown, int) or unknown not in ids:
            return False
        # GPT-2's unknown token is also its end-of-text token, which a text may spell out.
        return str(self.tokenizer.convert_ids_to_tokens(unknown)) not in text

    def _without_ending(self, full: Ids, bare: Ids) -> Ids:
        # Some tokenizers close every text with an end token, after which nothing is predicted.
        for start in range(len(full) - len(bare) + 1):
            if bare and full[start : start + len(bare)] == bare:
                return full[: start + len(bare)]
        ends_on_purpose = bool(bare) and bare[-1] == self.tokenizer.eos_token_id
        while full and full[-1] == self.tokenizer.eos_token_id and not ends_on_purpose:
            full = full[:-1]
        return full

    def _text(self, ids: Ids) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def _checked_id(self, token_id: int) -> int:
        size = len(self.tokenizer)
        if not 0 <= token_id < size:
            raise AnswerError(
                f"token id {token_id} is outside this tokenizer's vocabulary (0 to {size - 1}). "
                "Were the ids made with another model's tokenizer? Give the answer as text."
            )
        return token_id

    def _words(self) -> list[str]:
        return [token.lstrip("Ġ▁").removeprefix("##") for token in self.tokenizer.get_vocab()]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return each token as the text it stands for, with its leading blank."""
    return [_token_text(tokenizer, one) for one in ids]


def show_tokens(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return tokens on one line for an error message: `'The'|' capital'|' of'`."""
    return "|".join(repr(text) for text in token_texts(tokenizer, ids)) or "(no tokens)"


def _token_text(tokenizer: Any, token_id: int) -> str:
    token = str(tokenizer.convert_ids_to_tokens(token_id))
    if token.startswith("▁"):
        # SentencePiece decoders drop the blank of a token that is decoded alone.
        return " " + token[1:].replace("▁", " ")
    text = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
    # Part of a character has no text of its own.
    return text if text and "\ufffd" not in text else token


def _continues(joined: Sequence[int], stem: Sequence[int]) -> bool:
    return len(joined) > len(stem) and tuple(joined[: len(stem)]) == tuple(stem)
