"""Which model a translator belongs to, and the refusal of any other."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from headwater.errors import ResultError
from headwater.fingerprints import SAMPLED, WHOLE
from headwater.models import Model


def identity_of(model: Model) -> dict[str, Any]:
    """Return what says which model a translator was fitted to, as plain data."""
    adapter = model.anatomy()
    return {
        "name": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "n_layers": adapter.n_layers,
        "d_model": adapter.d_model,
        "vocab": adapter.vocab,
        "unembedding": unembedding_hash(model),
        **model.fingerprint(),
    }


def unembedding_hash(model: Model) -> str:
    """Hash the signs and the size of the unembedding: a checkpoint is itself in any number format.

    Rounding to another format keeps every sign, which no rounding of ours would: rounded twice, a
    number may end elsewhere. Large matrices are sampled evenly, as in `Model.fingerprint`.
    """
    weight = _unembedding(model)
    flat = weight.reshape(-1)
    if flat.numel() > WHOLE:
        flat = flat[:: flat.numel() // SAMPLED]
    size = round(4 * math.log2(float(flat.double().norm()) or 1.0))
    signs = np.packbits(flat.signbit().cpu().numpy()).tobytes()
    return hashlib.sha256(f"{list(weight.shape)} {size}".encode() + signs).hexdigest()


def tuned_lens_hash(model: Model) -> str:
    """Hash the unembedding as tuned-lens 0.2.0 does: of the matrix as NumPy prints it.

    Large matrices are printed by their corners to one digit, so this tells models apart, not
    checkpoints that differ a little.
    """
    weight = _unembedding(model).cpu().float().numpy()
    # what NumPy prints depends on options that a user may have set
    with np.printoptions(
        threshold=1000, edgeitems=3, linewidth=75, suppress=False, floatmode="maxprec"
    ):
        text = np.array_str(weight, precision=1)
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_other(identity: Mapping[str, Any], model: Model, *, where: str = "") -> None:
    """Refuse a translator that belongs to another model.

    Args:
        identity: Of the model it was fitted to.
        model: The model it shall be used on.
        where: The folder it was read from.

    Raises:
        ResultError: Saying which model it belongs to, and what differs.
    """
    adapter = model.anatomy()
    own: dict[str, Any] = {"n_layers": adapter.n_layers, "d_model": adapter.d_model}
    if identity.get("unembedding"):
        own["unembedding"] = unembedding_hash(model)
    elif identity.get("unembed_hash"):
        own["unembed_hash"] = tuned_lens_hash(model)
    different = [name for name, value in own.items() if identity.get(name) != value]
    if not different:
        _notice_other_weights(identity, model)
        return
    sizes = "{n_layers} layers, d_model {d_model}".format
    what = f"{sizes(**own)}, and {identity.get('name')} has {sizes(**identity)}"
    if different[0].startswith("unembed"):
        what = f"the two have different unembeddings ({sizes(**own)})"
    raise ResultError(
        f"the translator{f' in {where}' if where else ''} was fitted to {identity.get('name')}, "
        f"and this model is {model.name}: {what}.\n"
        "Load the model it belongs to, or fit one to this model: hw.fit_lens(model, texts)."
    )


def _notice_other_weights(identity: Mapping[str, Any], model: Model) -> None:
    """Say that only the unembedding is the same: a model that was trained further, for example."""
    if identity.get("dtype") != str(model.dtype).removeprefix("torch."):
        return  # the same weights in another format have another hash
    known = identity.get("weights_hash")
    if known and known != model.fingerprint()["weights_hash"]:
        model._notice(
            f"translator of {known}",
            f"the translator was fitted to other weights than those of {model.name}, with the same "
            "unembedding: it is used as it is, and says how the earlier model would read these.",
            stacklevel=4,
        )


def _unembedding(model: Model) -> Tensor:
    weight: Any = getattr(model.anatomy().unembed, "weight", None)
    if not isinstance(weight, Tensor) or weight.device.type == "meta":
        raise ResultError(
            f"{model.name} has no unembedding that could be read, so a translator could not say "
            "which model it belongs to.\nLoad the model without offloading."
        )
    return weight.detach()
