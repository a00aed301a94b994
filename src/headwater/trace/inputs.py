"""From what a user gives to a trace to what the module is called with.

A trace runs the model as it is: prompts become ids, and nothing else is added or changed. Text is
encoded as in a task, so a trace and an attribution of one prompt see the same ids. Modules that are
not Hugging Face's get their inputs untouched.
"""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.utils.generic import TransformersKwargs

from headwater import limits
from headwater.errors import PromptError, UnknownOptionError, did_you_mean
from headwater.prompts.encoding import Encoder

if TYPE_CHECKING:
    from headwater.models import Model

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a module."""

_MASKS = ("attention_mask", "decoder_attention_mask")
_IDS = ("input_ids", "decoder_input_ids", "token_type_ids", "position_ids")
_PER_TOKEN = frozenset((*_IDS, *_MASKS))
"""Keywords with one whole number a token: lists become tensors, one prompt becomes a batch."""

_SWALLOWED = frozenset((*TransformersKwargs.__annotations__, "return_dict", "token_type_ids"))
"""What transformers' forwards take without naming it; models without token types ignore them."""


def prepared(
    model: Model,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    for_generate: bool = False,
    options: Collection[str] = (),
) -> Inputs:
    """Turn the inputs of a trace into arguments of `model.module`.

    Args:
        model: The model that shall run.
        args: A text, token ids, several of either, a mapping of keywords, or tensors; for modules
            that are not Hugging Face's, whatever their forward takes.
        kwargs: Keyword inputs; they win over the mask and positions that come with text.
        for_generate: Whether they are for `generate`, which counts positions itself and takes
            keywords that forward does not.
        options: Names of the caller's own options, offered where a keyword is misspelled.

    Returns:
        Positional and keyword arguments. A Hugging Face model gets ids and everything that belongs
        to them as keywords, on its device.

    Raises:
        PromptError: If there is nothing to run on, or not what the model takes.
        UnknownWordError: If the tokenizer has no token for a word.
        UnknownOptionError: If forward does not take a keyword.
    """
    if not _is_hugging_face(model):
        return _of_any_module(model, args, kwargs)
    if len(args) == 1 and not kwargs and _is_ready(model, args[0]):
        return (), {"input_ids": args[0]}
    if len(args) == 1:
        args, kwargs = _of_one_input(model, args[0], kwargs, for_generate)
    elif any(_is_text(one) for one in args):
        raise PromptError(
            f"{len(args)} positional inputs, and text among them.\n"
            "Give several prompts as one list, and everything else by keyword."
        )
    if not (args or kwargs):
        verb = "generate" if for_generate else "trace"
        raise PromptError(
            f"there is nothing to run {_named(model)} on.\n"
            f'Give a prompt, model.{verb}("The cat"), or token ids, model.{verb}([5, 9, 3]).'
        )
    if kwargs.keys() - model._takes and not for_generate:
        _refuse_unknown_keywords(model, kwargs, options)
    kwargs = {
        name: _per_token(name, value) if name in _PER_TOKEN else value
        for name, value in kwargs.items()
    }
    _refuse_unusable_ids(model, kwargs)
    device = _device(model.module)
    return (
        tuple([_moved(value, device) for value in args]),
        {name: _moved(value, device) for name, value in kwargs.items()},
    )


def _is_ready(model: Model, given: Any) -> bool:
    """Whether these are ids that need nothing, for speed.

    Looking for ids without an embedding takes five times as long as all of this, and on the CPU the
    model itself refuses them; elsewhere they would end the process' use of the device.
    """
    return (
        isinstance(given, Tensor)
        and given.ndim == 2
        and given.numel() > 0
        and given.shape[1] <= (model._longest or given.shape[1])
        and not given.is_floating_point()
        and given.is_cpu
        and "input_ids" in model._takes
        and given.device == _device(model.module)
        and (given.shape[0] == 1 or _padded_row(model, given) is None)
    )


def _of_one_input(model: Model, given: Any, kwargs: dict[str, Any], for_generate: bool) -> Inputs:
    language = "input_ids" in model._takes
    if isinstance(given, Mapping) and (language or given.keys() & model._takes):
        return (), _merged(given, kwargs)
    if isinstance(given, Tensor):
        if not language or given.is_floating_point():
            return (given,), kwargs
        made = {"input_ids": given}
    elif language:
        made = _encoded(model, given, positions=not for_generate)
    elif _is_text(given):
        raise PromptError(f"{_named(model)}'s forward has no input_ids: it cannot run on text.")
    else:
        return (given,), kwargs
    _refuse_second(kwargs, "input_ids", "inputs_embeds", "inputs")
    return (), {**made, **kwargs}


def _of_any_module(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    if not args:
        if not kwargs:
            _refuse_missing_inputs(model)
        return args, kwargs
    given = args[0]
    if isinstance(given, Tensor):
        return args, kwargs
    if isinstance(given, Mapping) and len(args) == 1 and given and given.keys() <= model._takes:
        return (), _merged(given, kwargs)
    if not _is_text(given):
        return args, kwargs
    if model.tokenizer is None:
        raise PromptError(
            f"{_named(model)} has no tokenizer, so text cannot be turned into token ids.\n"
            "Give it one: hw.wrap(module, tokenizer). If forward itself takes text, give it by "
            "keyword."
        )
    _refuse_second(kwargs, "input_ids")
    device = _device(model.module)
    made = {name: _moved(value, device) for name, value in _encoded(model, given).items()}
    if "input_ids" in model._takes and len(args) == 1:
        return (), {**made, **kwargs}
    return (made.pop("input_ids"), *args[1:]), {**made, **kwargs}


def _encoded(model: Model, given: Any, *, positions: bool = True) -> dict[str, Any]:
    texts = _is_text(given)
    rows = _text_rows(model, given) if texts else _id_rows(given)
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        return _padded(model, rows, positions=positions)
    made = {"input_ids": torch.tensor(rows)}
    if texts and "attention_mask" in model._takes:
        made["attention_mask"] = torch.ones_like(made["input_ids"])
    return made


def _text_rows(model: Model, given: str | Sequence[Any]) -> list[list[int]]:
    texts = [given] if isinstance(given, str) else list(given)
    others = [one for one in texts if not isinstance(one, str)]
    if others:
        raise PromptError(
            f"a list of prompts holds text, but also {others[0]!r}.\n"
            'Give one kind in a list: texts, ["The cat", "A dog"], or ids, [[5, 9], [7]].'
        )
    encoder = Encoder(model.tokenizer)
    encoder.prime(texts)
    encoder.prime(texts, special=True)
    for number, text in enumerate(texts):
        if not encoder.bare(text):
            raise PromptError(
                f"prompt {number} is {text!r}, which has no tokens of its own.\n"
                "Give it a word; to run on a special token alone, give its id: [[1]]."
            )
    ending = _is_hugging_face(model) and not _is_causal(model)
    return [list(encoder.prompt(text, ending=ending)) for text in texts]


def _id_rows(given: Any, name: str = "the prompt") -> list[list[int]]:
    several = isinstance(given, (list, tuple))
    rows = [given] if several and given and isinstance(given[0], Integral) else given
    if not several or not all(isinstance(row, (list, tuple)) for row in rows):
        raise PromptError(
            f"{name} is neither text nor token ids, but of type {type(given).__name__}.\n"
            'Give a text, "The cat", ids, [5, 9, 3], a list of either, or a tensor of ids.'
        )
    if not rows:
        raise PromptError(
            f'{name} is an empty list. Give at least one prompt: "The cat" or [5, 9, 3].'
        )
    for number, row in enumerate(rows):
        if not row:
            raise PromptError(f"row {number} of {name} has no token ids. Leave it out or fill it.")
        wrong = next((one for one in row if not isinstance(one, Integral)), None)
        if wrong is not None:
            raise PromptError(
                f"row {number} of {name} holds {wrong!r}, which is no token id.\n"
                "Give whole numbers only, [5, 9, 3], or the text they stand for."
            )
    return [[int(one) for one in row] for row in rows]


def _padded(model: Model, rows: list[list[int]], *, positions: bool) -> dict[str, Any]:
    """Rows of several lengths as one batch, with all that keeps padding from changing a number."""
    _refuse_padding(model, rows)
    width = max(len(row) for row in rows)
    fill = _fill(model)
    left = _is_causal(model) or getattr(model.tokenizer, "padding_side", "left") == "left"
    ids, mask = [], []
    for row in rows:
        gap = width - len(row)
        ids.append([fill] * gap + row if left else row + [fill] * gap)
        mask.append([0] * gap + [1] * len(row) if left else [1] * len(row) + [0] * gap)
    made = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    # with padding on the right every model's own count is right already
    if positions and left and "position_ids" in model._takes and not _counts_itself(model.module):
        made["position_ids"] = (made["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return made


def _fill(model: Model) -> int:
    # models that find padding by its id (RoBERTa) mean this one
    own = getattr(vars(model.module).get("config"), "pad_token_id", None)
    if isinstance(own, int) and own >= 0:
        return own
    return 0 if model.tokenizer is None else Encoder(model.tokenizer).pad_id


def _counts_itself(module: nn.Module) -> bool:
    """Whether positions start behind an unused row, as in RoBERTa: it counts them from the ids."""
    return any(
        name.rpartition(".")[2] == "position_embeddings"
        and getattr(part, "padding_idx", None) is not None
        for name, part in module.named_modules()
    )


def _merged(given: Mapping[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    twice = sorted(given.keys() & kwargs.keys())
    if twice:
        raise PromptError(
            f"{', '.join(twice)} was given twice: in the mapping and as a keyword. Leave one out."
        )
    return {**given, **kwargs}


def _per_token(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.unsqueeze(0) if value.ndim == 1 else value
    if isinstance(value, str):
        raise PromptError(f"{name} is text, {value!r}. Give text first and without a name.")
    if not isinstance(value, (list, tuple)):
        return value
    rows = _id_rows(value, name)
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1:
        raise PromptError(
            f"the rows of {name} have lengths {', '.join(map(str, lengths))}.\n"
            "Give prompts of several lengths without a name, as texts or lists of ids: they are "
            "padded then."
        )
    return torch.tensor(rows)


def _moved(value: Any, device: torch.device | None) -> Any:
    return value.to(device) if isinstance(value, Tensor) and device is not None else value


def _device(module: nn.Module) -> torch.device | None:
    """Where the first parameter is, several times as fast as `next(module.parameters())`."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter.device
    for child in module._modules.values():
        found = None if child is None else _device(child)
        if found is not None:
            return found
    return None


def _is_hugging_face(model: Model) -> bool:
    # not getattr: nn.Module is slow to say that it has no such attribute
    return isinstance(vars(model.module).get("config"), PretrainedConfig)


def _is_causal(model: Model) -> bool:
    """Whether the last position predicts the next token, so that padding belongs on the left."""
    if model.adapter is not None:
        return True
    if not _is_hugging_face(model):
        return False
    can_generate = getattr(model.module, "can_generate", None)
    decoder_only = not getattr(model.module.config, "is_encoder_decoder", False)
    return can_generate is not None and decoder_only and bool(can_generate())


def _is_text(given: Any) -> bool:
    return any(
        isinstance(one, str) for one in (given if isinstance(given, (list, tuple)) else [given])
    )


def _refuse_missing_inputs(model: Model) -> None:
    if not model._takes:
        return
    needed = [
        name
        for name, parameter in inspect.signature(model.module.forward).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        listed = ", ".join(needed)
        raise PromptError(
            f"{_named(model)}'s forward needs {listed}, but there is no input at all.\n"
            f"Give what you would call the module with: model.trace({listed})."
        )


def _refuse_second(kwargs: dict[str, Any], *names: str) -> None:
    for name in kwargs.keys() & names:
        raise PromptError(f"a prompt and {name} were both given. Leave one out.")


def _refuse_unknown_keywords(
    model: Model, kwargs: dict[str, Any], options: Collection[str]
) -> None:
    catchall = next(
        (
            parameter.annotation
            for parameter in inspect.signature(model.module.forward).parameters.values()
            if parameter.kind is parameter.VAR_KEYWORD
        ),
        None,
    )
    known = model._takes | frozenset(options)
    if catchall is not None:
        known |= _SWALLOWED
        for listed in typing.get_args(catchall):
            known |= frozenset(getattr(listed, "__annotations__", ()))
    # an unannotated **kwargs may mean anything, except a slip of the pen
    anything = catchall is not None and not typing.get_args(catchall)
    for name in kwargs:
        if name in known or (anything and not get_close_matches(name, known, n=1, cutoff=0.85)):
            continue
        raise UnknownOptionError(
            f"{_named(model)}'s forward takes no {name!r}.{did_you_mean(name, known)}"
        )


def _refuse_unusable_ids(model: Model, kwargs: dict[str, Any]) -> None:
    ids = kwargs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        return
    if not ids.numel():
        raise PromptError(
            f"input_ids has shape {list(ids.shape)}: there are no tokens. "
            "Give at least one in each prompt."
        )
    row = None if "attention_mask" in kwargs else _padded_row(model, ids)
    if row is not None:
        raise PromptError(
            f"row {row} of the ids begins with padding and there is no attention_mask, so the "
            "padding would count as text.\nGive attention_mask= and position_ids= with the ids, "
            "or the prompts as text, or run rows of one length together."
        )
    # a model without a table of token embeddings says so
    with contextlib.suppress(NotImplementedError):
        limits.refuse_unknown_ids(model.module, ids)
    longest = model._longest
    if longest is not None and ids.shape[1] > longest:
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        mask = mask.bool() if isinstance(mask, Tensor) and mask.shape == ids.shape else None
        limits.refuse_long_prompts(model.module, longest, ids, mask, positions)


def _padded_row(model: Model, ids: Tensor) -> int | None:
    """The first row that begins with the padding token; None if all rows do, or none."""
    pad = getattr(model.tokenizer, "pad_token_id", None)
    if pad is None or ids.shape[0] < 2 or "attention_mask" not in model._takes:
        return None
    begins = (ids[:, 0] == pad).tolist()
    return begins.index(True) if any(begins) and not all(begins) else None


def _refuse_padding(model: Model, rows: list[list[int]]) -> None:
    if model.adapter is not None and not model.adapter.pads:
        reason = "padding changes its numbers, whatever the mask says"
    elif "attention_mask" not in model._takes:
        reason = "its forward takes no attention_mask, so padding would count as text"
    else:
        return
    raise PromptError(
        f"prompts of {', '.join(str(len(row)) for row in rows)} tokens cannot share a batch of "
        f"{_named(model)}: {reason}.\nTrace prompts of one length together, or one at a time."
    )


def _named(model: Model) -> str:
    return type(model.module).__name__
