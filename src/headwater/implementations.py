"""Switch what a model's configs select (attention, experts), and put it back exactly.

Costs one walk over the modules to enter; the model itself is not touched.
transformers reads `config._attn_implementation` on every forward, so changing the configs is
enough. Its own setters are not used: they log warnings, skip nested sub-configs, and cannot
put back a state that they would not have accepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

_ABSENT = object()


def hugging_face_parts(module: nn.Module) -> list[PreTrainedModel]:
    """Return every transformers model inside `module`, itself included, outermost first."""
    return [part for part in module.modules() if isinstance(part, PreTrainedModel)]


def configs_of(parts: list[PreTrainedModel]) -> list[PreTrainedConfig]:
    """Return every config object the `parts` read, each once: their own, nested and cached ones.

    Attention modules usually share their model's config, but some keep a copy or a sub-config of
    their own; both are found because every module below a part is asked for its `config`.
    """
    waiting = [getattr(module, "config", None) for part in parts for module in part.modules()]
    found: dict[int, PreTrainedConfig] = {}
    while waiting:
        config = waiting.pop(0)
        if isinstance(config, PreTrainedConfig) and id(config) not in found:
            found[id(config)] = config
            waiting += [getattr(config, key, None) for key in config.sub_configs]
    return list(found.values())


@contextmanager
def selected(configs: list[PreTrainedConfig], attribute: str, choice: str) -> Iterator[None]:
    """Hold `attribute` of every config at `choice`, then restore what each had, also on errors.

    Args:
        configs: What `configs_of` returned.
        attribute: For example `"_attn_implementation_internal"`; the plain attribute behind
            transformers' property, because the property also writes to sub-configs.
        choice: The value inside the context.
    """
    before = [vars(config).get(attribute, _ABSENT) for config in configs]
    try:
        for config in configs:
            vars(config)[attribute] = choice
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            if value is _ABSENT:
                vars(config).pop(attribute, None)
            else:
                vars(config)[attribute] = value
