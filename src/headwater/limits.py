"""What a model can be asked: which token ids it embeds, and how many positions it has learned.

Looking an index up beyond a table is an IndexError without names on the CPU, and ends the process'
use of the device on CUDA.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn

from headwater.errors import PromptError

_POSITION_TABLES = ("wpe", "embed_positions")


def position_limit(module: nn.Module) -> int | None:
    """How many positions a model has a table for.

    Args:
        module: A causal language model.

    Returns:
        Rows of its table of positions (GPT-2, OPT, GPT-Neo, GPT-J); None where positions are
        computed (rotary, ALiBi) or there are none.
    """
    for name, part in module.named_modules():
        if name.rpartition(".")[2] in _POSITION_TABLES and isinstance(part, nn.Embedding):
            # OPT keeps two unused rows in front
            return part.num_embeddings - int(getattr(part, "offset", 0))
    for name, table in module.named_buffers():
        if name.rpartition(".")[2] in _POSITION_TABLES and table.ndim == 2:
            return len(table)
    return None


def trained_positions(module: Any) -> int | None:
    """How many positions a model was made for, by its configuration; None if that does not say.

    Models that compute their positions (rotary) run beyond it, and predict badly there.
    """
    config = getattr(module, "config", None)
    config = getattr(config, "get_text_config", lambda: config)()
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def notice_untrained(model: Any, longest: int) -> None:
    """Say once that a prompt is longer than what a model was made for.

    Args:
        model: The model.
        longest: Tokens of the longest prompt.
    """
    limit = trained_positions(model.module)
    if limit is not None and longest > limit:
        message = (
            f"a prompt of {longest} tokens, and {model.name} was made for {limit} (its "
            "max_position_embeddings): what it predicts beyond is not what it was trained to."
        )
        model._notice("long prompts", message, stacklevel=3)


def refuse_unknown_ids(module: Any, ids: Int[Tensor, "batch pos"]) -> None:
    """Refuse token ids that the model has no embedding for; looks only at ids on the CPU.

    Args:
        module: The causal language model.
        ids: What it shall run on.

    Raises:
        PromptError: Names the first such id and where it is.
    """
    rows = getattr(module.get_input_embeddings(), "num_embeddings", None)
    if rows is None or ids.device.type != "cpu" or not ids.numel():
        return
    lowest, highest = ids.aminmax()
    if lowest >= 0 and highest < rows:
        return
    row, position = ((ids < 0) | (ids >= rows)).nonzero()[0].tolist()
    raise PromptError(
        f"token id {int(ids[row, position])} in prompt {row} at position {position}: "
        f"{type(module).__name__} embeds the ids 0 to {rows - 1}.\n"
        "Encode with the model's own tokenizer; if tokens were added to it, call "
        "module.resize_token_embeddings(len(tokenizer)) first."
    )


def refuse_long_prompts(
    module: nn.Module,
    limit: int | None,
    ids: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"] | None,
    position_ids: Int[Tensor, "batch pos"] | None,
) -> None:
    """Refuse prompts with more positions than the model has learned.

    Args:
        module: The model, for the message.
        limit: What `position_limit` said.
        ids: What it shall run on.
        mask: True where a token is real; padding takes no position.
        position_ids: The positions, if given.

    Raises:
        PromptError: Names both numbers.
    """
    if limit is None or ids.shape[1] <= limit:
        return
    if position_ids is not None:
        longest = int(position_ids.max()) + 1
    elif mask is not None:
        longest = int(mask.sum(-1).max())
    else:
        longest = ids.shape[1]
    if longest > limit:
        raise PromptError(
            f"a prompt of {longest} tokens, but {type(module).__name__} has positions for only "
            f"{limit}.\nShorten or drop the prompts with more than {limit} tokens (answers of "
            "several tokens count), or take a model with a longer context."
        )
