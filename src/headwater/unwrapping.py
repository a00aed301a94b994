"""The causal language model inside what people wrap around it: PEFT, torch.compile, DDP."""

from __future__ import annotations

from typing import Any

from torch import nn

from headwater.errors import UnsupportedModelError


def unwrapped(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Find the model to hook inside its wrappers; the wrappers stay as they are.

    Args:
        module: A model, perhaps wrapped by PEFT, `torch.compile` or DistributedDataParallel.

    Returns:
        The model inside, and a sentence for each wrapper left out.

    Raises:
        UnsupportedModelError: If the wrapper changes what the model inside computes.
    """
    notes: list[str] = []
    while True:
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if "OptimizedModule" in kinds:
            notes.append("torch.compile is bypassed: compiled code skips hooks")
            module = module._orig_mod  # type: ignore[assignment]
        elif "PeftModel" in kinds:
            _refuse_prompt_learning(module)
            notes.append("the PEFT adapters run as part of the model inside the PeftModel")
            module = module.base_model.model  # type: ignore[union-attr, assignment]
        elif "FullyShardedDataParallel" in kinds:
            raise UnsupportedModelError(
                "FullyShardedDataParallel gathers weights only in its own forward, so the model "
                "inside cannot be hooked.\nLoad the model with device_map='auto' instead."
            )
        elif kinds & {"DistributedDataParallel", "DataParallel"}:
            notes.append(f"{type(module).__name__} is bypassed")
            module = module.module  # type: ignore[assignment]
        else:
            return module, tuple(notes)


def refuse_no_module(given: Any) -> None:
    """Refuse what is no module, and say what to write instead.

    Args:
        given: What was given to `wrap`.

    Raises:
        UnsupportedModelError: If it is a name, a headwater model, or anything else.
    """
    if isinstance(given, nn.Module):
        return
    kind = type(given).__name__
    if isinstance(given, str):
        advice = f"To load a model by its name write hw.load({given!r})."
    elif isinstance(getattr(given, "module", None), nn.Module):
        advice = "It is wrapped already: use it as it is, or write hw.wrap(model.module)."
    else:
        advice = "Write hw.wrap(module, tokenizer), or hw.load(name)."
    raise UnsupportedModelError(f"hw.wrap takes a torch.nn.Module, but got {kind}.\n{advice}")


def _refuse_prompt_learning(module: Any) -> None:
    config = getattr(module, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        kind = getattr(config, "peft_type", "prompt learning")
        raise UnsupportedModelError(
            f"PEFT {kind} adds virtual tokens outside the model, so positions would not be those "
            "of the prompt.\nMerge or drop the adapter: hw.wrap(model.get_base_model())."
        )
