"""What is read: prompts as texts, token ids or a task, made into rows of ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from headwater.errors import HeadwaterError, PromptError
from headwater.models import Model
from headwater.prompts import Batch, Task
from headwater.prompts.batches import Row, pack
from headwater.prompts.encoding import Encoder

Prompts: TypeAlias = (
    str
    | Sequence[str]
    | Sequence[int]
    | Sequence[Sequence[int]]
    | Tensor
    | np.ndarray
    | Mapping[str, Any]
    | Task
)
"""One text or several, token ids of one prompt or several, what a tokenizer returned for them, or a
task's clean prompts."""


@dataclass(frozen=True)
class Prompt:
    """One prompt, encoded."""

    ids: tuple[int, ...]
    text: str | None
    """None where token ids were given."""


def encoded(model: Model, prompts: Prompts) -> list[Prompt]:
    """Return prompts with their token ids.

    Args:
        model: Whose tokenizer reads texts.
        prompts: What to read.

    Raises:
        PromptError: If there is no prompt, one is empty, or it is none at all.
        UnknownWordError: If the tokenizer has no token for a word.
    """
    given: Any = prompts
    if isinstance(given, Task):
        given = [pair.clean for pair in given.pairs]
    if isinstance(given, Mapping) and "input_ids" in given:
        given = _tokenized(given)
    if hasattr(given, "__array__") and not isinstance(given, Tensor):
        given = torch.as_tensor(given)
    if isinstance(given, Tensor):
        given = _listed(given)
    if isinstance(given, str):
        given = [given]
    listed = list(_refuse_no_list(given))
    if listed and all(isinstance(one, int) for one in listed):
        listed = [listed]
    if not listed:
        raise PromptError("there is no prompt to read.\nGive a text, or a list of texts.")
    return _encode(model, listed)


def batches(
    model: Model, prompts: Sequence[Prompt], batch_size: int, *, first: int = 0
) -> list[Batch]:
    """Return prompts as batches for a model, those of similar length together.

    Args:
        model: What they will run on.
        prompts: Encoded prompts.
        batch_size: Most prompts in a batch.
        first: The number of the first prompt.
    """
    rows = [Row(first + number, one.ids) for number, one in enumerate(prompts)]
    pads = model.anatomy().pads
    packed = pack(rows, batch_size=batch_size, pad_id=0, pad=pads)
    return [batch.to(model.device) for batch in packed]


def _encode(model: Model, prompts: Sequence[Any]) -> list[Prompt]:
    texts = [one for one in prompts if isinstance(one, str)]
    encoder = Encoder(model.tokenizer) if texts else None
    if encoder is not None:
        encoder.prime([one for one in texts if one])
        encoder.prime([one for one in texts if one], special=True)
    found = []
    for number, one in enumerate(prompts):
        which = f"prompt {number}: " if len(prompts) > 1 else ""
        try:
            found.append(_one(one, encoder))
        except HeadwaterError as error:
            raise type(error)(f"{which}{error}") from None
    return found


def _one(prompt: Any, encoder: Encoder | None) -> Prompt:
    if isinstance(prompt, str):
        if not prompt:
            raise PromptError("the text is empty, so there is nothing to read.")
        assert encoder is not None
        return Prompt(encoder.prompt(prompt), prompt)
    ids = prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)
    if not ids:
        raise PromptError("there are no token ids, so there is nothing to read.")
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise PromptError(
            f"{ids!r:.60} is neither a text nor a list of token ids.\nGive one or the other."
        )
    return Prompt(tuple(ids), None)


def _tokenized(found: Mapping[str, Any]) -> Any:
    """Return the ids of what a tokenizer returned, padding left out."""
    ids, mask = found["input_ids"], found.get("attention_mask")
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or ids.ndim != 2:
        return ids
    return [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]


def _listed(ids: Tensor) -> list[list[int]]:
    if ids.dtype.is_floating_point or ids.dtype == torch.bool or ids.ndim not in (1, 2):
        raise PromptError(
            f"a tensor of shape {list(ids.shape)} and dtype {ids.dtype} holds no token ids.\n"
            "Give ids as [position] or [prompt, position]; of prompts of several lengths give a "
            "list of lists, without padding."
        )
    return [ids.tolist()] if ids.ndim == 1 else ids.tolist()


def _refuse_no_list(prompts: Any) -> Iterable[Any]:
    if isinstance(prompts, Iterable) and not isinstance(prompts, Mapping | bytes):
        return prompts
    raise PromptError(
        f"{prompts!r:.60} ({type(prompts).__name__}) is no prompt.\n"
        "Give a text, a list of texts, token ids, or a task."
    )
