"""A clean prompt and its corrupted twin must correspond token by token."""

from headwater.errors import PromptError, UnalignedPromptsError
from headwater.prompts.encoding import Ids, Tokenizer, show_tokens, token_texts


def refuse_unaligned(tokenizer: Tokenizer, clean: Ids, corrupted: Ids) -> None:
    """Raise unless the two prompts have one length and differ somewhere.

    Raises:
        UnalignedPromptsError: If they differ in length; both tokenizations are shown.
        PromptError: If they are the same.
    """
    if corrupted == clean:
        raise PromptError(
            f"clean and corrupted have the same tokens, {show_tokens(tokenizer, clean)}, so every "
            "effect would be 0. Change the word that carries the behavior."
        )
    if len(corrupted) == len(clean):
        return
    shorter = min(len(clean), len(corrupted))
    part = next((at for at in range(shorter) if clean[at] != corrupted[at]), shorter)
    there = [
        repr(token_texts(tokenizer, ids)[part]) if part < len(ids) else "the end"
        for ids in (clean, corrupted)
    ]
    raise UnalignedPromptsError(
        f"clean has {len(clean)} tokens, corrupted {len(corrupted)}; they part at position {part} "
        f"({' / '.join(there)}).\n"
        f"  clean:     {show_tokens(tokenizer, clean)}\n"
        f"  corrupted: {show_tokens(tokenizer, corrupted)}\n"
        "Rewrite one of them, or use a reference that needs no corrupted prompt: "
        'reference=hw.Mean(over="clean").'
    )
