"""Find a model by name: embedded in the package, in a local folder, or on the Hugging Face hub.

Weights are read from safetensors only; no pickle is ever opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.utils import logging as transformers_logging

from headwater.architectures.adapter import family_of, no_family
from headwater.errors import (
    UnknownModelError,
    UnknownOptionError,
    UnsupportedModelError,
    did_you_mean,
)

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "double": torch.float64,
    "float": torch.float32,
    "half": torch.float16,
}
"""Names accepted for a number type."""

_ALSO_CALLED = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "metal": "mps", "apple": "mps"}


def embedded_folder() -> Path:
    """The folder of the package that holds the embedded models."""
    return Path(str(files("headwater"))) / "zoo" / "data"


def embedded_names() -> list[str]:
    """The models that ship with headwater, for example `tiny`."""
    return sorted(path.parent.name for path in embedded_folder().glob("*/config.json"))


def to_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Read a number type given by name.

    Args:
        dtype: For example `"float64"`, `"bf16"` or `torch.float32`; None for the model's own.

    Returns:
        The torch type, or None.

    Raises:
        UnknownOptionError: If the name means no floating-point type.
    """
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    name = str(dtype).removeprefix("torch.").lower()
    if name not in DTYPES:
        raise UnknownOptionError(
            f"no floating-point dtype {str(dtype)!r}.{did_you_mean(name, DTYPES)}\n"
            "Use 'float64', 'float32', 'bfloat16' or 'float16'."
        )
    return DTYPES[name]


def to_device(device: str | int | torch.device | None) -> torch.device | None:
    """Read a device given by name, and see whether it is there.

    Args:
        device: For example `"cuda"`, `"cuda:1"` or `"cpu"`; None for no choice.

    Returns:
        The torch device, or None.

    Raises:
        UnknownOptionError: If there is no such device, or not on this machine.
    """
    if device is None:
        return None
    here = _devices_here()
    listed = f"Here: {', '.join(repr(name) for name in here)}."
    try:
        found = torch.device(device)
    except RuntimeError as error:
        name = str(device)
        near = _ALSO_CALLED.get(name.lower().partition(":")[0])
        hint = f" Closest: '{near}'." if near else did_you_mean(name, ("cpu", "cuda", "mps", "xpu"))
        raise UnknownOptionError(f"no device {name!r}.{hint}\n{listed}") from error
    looked_up = found.type in ("cuda", "mps", "xpu")
    if looked_up and f"{found.type}:{found.index or 0}" not in here:
        near = next((name for name in here if name.startswith(found.type)), "cpu")
        raise UnknownOptionError(
            f"the device {str(found)!r} is not available: torch {torch.__version__} does not see "
            f"it. Closest: {near!r}.\n{listed}"
        )
    return found


def _devices_here() -> list[str]:
    counts = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "xpu": torch.xpu.device_count() if torch.xpu.is_available() else 0,
    }
    numbered = [f"{kind}:{index}" for kind, count in counts.items() for index in range(count)]
    return ["cpu", *numbered]


def refuse_no_name(name: Any) -> str:
    """Return the name or folder of a model as text, and say what to write for anything else.

    Args:
        name: What was given to `load`.

    Returns:
        The name.

    Raises:
        UnsupportedModelError: If it is neither a text nor a path.
    """
    if isinstance(name, (str, os.PathLike)):
        return os.fspath(name)
    raise UnsupportedModelError(
        f"hw.load takes the name or folder of a model, but got {type(name).__name__}.\n"
        "For a module you already have write hw.wrap(module, tokenizer)."
    )


def fetch(
    name: str, *, dtype: torch.dtype | None, device_map: Any, trust_remote_code: bool
) -> tuple[nn.Module, Any]:
    """Load a causal language model and its tokenizer.

    Args:
        name: An embedded name, a folder, or a hub id.
        dtype: The number type of the weights; None for the stored one.
        device_map: Handed to `from_pretrained`.
        trust_remote_code: Whether code shipped with the model may run.

    Returns:
        The module in evaluation mode, and its tokenizer (None if it has none).

    Raises:
        UnknownModelError: If there is no such model, or it cannot be fetched.
        UnsupportedModelError: If it is not a causal language model headwater knows.
    """
    folder = embedded_folder() / name
    source = str(folder) if name in embedded_names() else name
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config = _config(name, source, common)
    refuse_config(config, (getattr(config, "architectures", None) or [name])[0])
    options = {**common, "config": config, "use_safetensors": True, "dtype": dtype or "auto"}
    if device_map is not None:
        options["device_map"] = device_map
    try:
        with _without_progress_bar():
            module = _auto_class(config).from_pretrained(source, **options)
    except OSError as error:
        raise UnknownModelError(_unfetched(name, error)) from error
    return module.eval(), _tokenizer(source, common)


def refuse_config(config: Any, described: str) -> None:
    """Refuse models that are no causal language model of a known family.

    Args:
        config: The Hugging Face configuration.
        described: The model's class, for the message.

    Raises:
        UnsupportedModelError: Names the class and what to do instead.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{described} is an encoder-decoder; headwater attributes causal (decoder-only) "
            "language models.\n`headwater models` lists the families."
        )
    if family_of(config) is None:
        raise UnsupportedModelError(no_family(described, config))


def _config(name: str, source: str, common: dict[str, Any]) -> Any:
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UnknownModelError(
            f"the folder {name!r} holds no config.json, so it is no saved Hugging Face model.\n"
            "Save one there with model.save_pretrained(folder)."
        )
    try:
        return transformers.AutoConfig.from_pretrained(source, **common)
    except OSError as error:
        raise UnknownModelError(_unfetched(name, error)) from error
    except ValueError as error:
        raise UnsupportedModelError(
            f"transformers {transformers.__version__} does not know the model {name!r}: "
            f"{_first_line(error)}\n`headwater models` lists the families."
        ) from error


def _auto_class(config: Any) -> Any:
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForImageTextToText


def _tokenizer(source: str, common: dict[str, Any]) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(source, **common)
    except (OSError, ValueError, KeyError):
        return None


def _unfetched(name: str, error: OSError) -> str:
    known = embedded_names()
    if Path(name).is_dir():
        return (
            f"the folder {name!r} could not be loaded: {_first_line(error)}\n"
            "headwater reads safetensors only: model.save_pretrained(folder) writes them."
        )
    return (
        f"no model {name!r}: not embedded, not a local folder, and the Hugging Face hub did not "
        f"give it ({_first_line(error)}).{did_you_mean(name, known)}\n"
        f"Embedded: {', '.join(known) or 'none'}. Otherwise type a folder or a hub id such as "
        "'openai-community/gpt2'."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
