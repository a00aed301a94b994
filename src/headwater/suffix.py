"""A float64 copy of a model's last layers: what gradient checks run, at the cost of those layers.

Weights of the layers before are not copied: a run of the copy starts at its first whole layer.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headwater.architectures.adapter import resolve
from headwater.errors import UnsupportedModelError
from headwater.models import Model
from headwater.precision import is_float64


def float64_suffix(model: Model, layer: int) -> Model:
    """Return a float64 model that can run from `layer` on.

    Args:
        model: The model; one in float64 already is returned as it is.
        layer: The first layer that will run; the number of layers: norm and unembedding only.

    Returns:
        A copy whose layers before `layer` hold no weights: start its runs there.

    Raises:
        UnsupportedModelError: If the weights cannot be converted (quantized, offloaded), or the
            copy would not fit into the free memory.
    """
    if is_float64(model.module):
        return model
    _refuse_inconvertible(model)
    adapter = model.anatomy()
    skipped = {id(p) for one in adapter.layers[:layer] for p in one.parameters()}
    later = [*adapter.layers[layer:], adapter.unembed]
    skipped -= {id(p) for one in later for p in one.parameters()}  # layers can share weights
    _refuse_too_large(model, skipped, layer)
    with model.lock:
        memo: dict[int, Any] = {}
        for weight in model.module.parameters():
            kept = weight.new_empty(0) if id(weight) in skipped else weight.detach()
            kept = kept.to(torch.float64) if kept.is_floating_point() else kept.clone()
            memo[id(weight)] = nn.Parameter(kept, requires_grad=False)
        module = copy.deepcopy(model.module, memo)
    module = module.to(torch.float64)  # buffers, that is
    twin = Model(module, model.tokenizer, name=model.name, notes=model.notes)
    twin.adapter = dataclasses.replace(resolve(module, adapter.family), pads=adapter.pads)
    twin.proof = model.proof
    return twin


def _refuse_inconvertible(model: Model) -> None:
    because, instead = "", "load the unquantized checkpoint on one device"
    if getattr(model.module, "is_quantized", False):
        because = "is quantized: its weights have no float64 twin"
    elif any(p.device.type == "meta" for p in model.module.parameters()):
        because = "has weights that are offloaded and cannot be copied"
    elif model.device.type == "mps":
        because = "is on mps, which has no float64"
        instead = "move it: model.to(device='cpu')"
    if because:
        raise UnsupportedModelError(
            f"{model.name} {because}.\nWrite dtype='native' to check in the model's own numbers "
            f"(which settles less), or {instead}."
        )


def _refuse_too_large(model: Model, skipped: set[int], layer: int) -> None:
    """Refuse a copy that would fill the memory: a killed process says nothing."""
    weights = {id(p): p for p in model.module.parameters() if id(p) not in skipped}
    needed = 8 * sum(p.numel() for p in weights.values())
    free = _free_bytes(model.device)
    if free is not None and needed > 0.9 * free:
        raise UnsupportedModelError(
            f"a float64 copy of {model.name} from layer {layer} on takes {needed / 2**30:.1f} GiB; "
            f"{free / 2**30:.1f} GiB are free on {model.device}.\n"
            "Check a site in a later layer, or write dtype='native' to check in the model's own "
            "numbers (which settles less)."
        )


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None  # not Linux: the allocator will tell
    sizes = dict(line.split(":", 1) for line in lines)
    return int(sizes["MemAvailable"].split()[0]) * 1024
