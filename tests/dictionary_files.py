"""Files of dictionaries as other libraries write them, beside plain formulas of what they compute.

Names, shapes and formulas are those of the libraries' own documentation and saved files; nothing
here uses headwater.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

D, F, O = 6, 10, 7  # noqa: E741
"""Width of the input, features, width of a transcoder's output: all different."""

Twin = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Returns features and reconstruction."""


def inputs() -> Tensor:
    """Return vectors of very different sizes, [batch, pos, D]."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(3, 5, D, generator=generator, dtype=torch.float64)
    return x * torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)[:, None, None]


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Return random float64 tensors; thresholds positive, log-scales small."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if "threshold" in name:
            value = value.abs()
        found[name] = value * 0.3 if name == "r_mag" else value
    return found


def relu(pre: Tensor) -> Tensor:
    return torch.where(pre > 0, pre, torch.zeros_like(pre))


def top(k: int, pre: Tensor, by: Tensor) -> Tensor:
    """Keep the k entries with the largest `by`, found one row after the other."""
    flat, order = pre.reshape(-1, pre.shape[-1]), by.reshape(-1, by.shape[-1])
    kept = torch.zeros_like(flat)
    for row in range(len(flat)):
        for place in sorted(range(flat.shape[1]), key=lambda i: -float(order[row, i]))[:k]:
            kept[row, place] = flat[row, place]
    return kept.reshape(pre.shape)


def write(folder: Path, weights: str, tensors: Mapping[str, Any], **configs: Any) -> Path:
    """Write weights and configurations (`cfg_json={...}` as `cfg.json`) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / weights
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    elif path.suffix == ".npz":
        import numpy as np

        np.savez(path, **{name: value.numpy() for name, value in tensors.items()})
    else:
        torch.save(dict(tensors), path)
    for name, config in configs.items():
        stem, _, suffix = name.rpartition("_")
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / f"{stem}.{suffix}").write_text(text)
    return folder


SAELENS_KEYS: dict[str, dict[str, tuple[int, ...]]] = {
    "standard": {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)},
    "gated": {
        "W_enc": (D, F),
        "W_dec": (F, D),
        "b_dec": (D,),
        "b_gate": (F,),
        "b_mag": (F,),
        "r_mag": (F,),
    },
    "transcoder": {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, O), "b_dec": (O,)},
}
SAELENS_KEYS["topk"] = SAELENS_KEYS["abstopk"] = SAELENS_KEYS["standard"]
SAELENS_KEYS["jumprelu"] = {**SAELENS_KEYS["standard"], "threshold": (F,)}
SAELENS_KEYS["batchtopk"] = {**SAELENS_KEYS["standard"], "topk_threshold": ()}
SAELENS_KEYS["matryoshka_batchtopk"] = SAELENS_KEYS["batchtopk"]
SAELENS_KEYS["skip_transcoder"] = {**SAELENS_KEYS["transcoder"], "W_skip": (O, D)}
SAELENS_KEYS["jumprelu_transcoder"] = {**SAELENS_KEYS["transcoder"], "threshold": (F,)}
SAELENS_KEYS["jumprelu_skip_transcoder"] = {
    **SAELENS_KEYS["jumprelu_transcoder"],
    "W_skip": (O, D),
}

K = 3


def saelens_config(architecture: str, **changes: Any) -> dict[str, Any]:
    """Return a configuration of SAELens 6."""
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": D,
        "d_sae": F,
        "dtype": "float64",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "model_name": "gpt2-small",
            "hook_name": "blocks.3.hook_mlp_out",
        },
    }
    if "topk" in architecture:
        config |= {"k": K, "rescale_acts_by_decoder_norm": False}
    if "transcoder" in architecture:
        config |= {"apply_b_dec_to_input": False, "d_out": O}
        config["metadata"] |= {
            "hook_name": "blocks.3.mlp.hook_in",
            "hook_name_out": "blocks.3.hook_mlp_out",
        }
    return {**config, **changes}


def saelens_twin(config: Mapping[str, Any], t: Mapping[str, Tensor]) -> Twin:
    """Return what SAELens computes, its features in units of the decoder as it is saved."""
    kind, normalize = config["architecture"], config["normalize_activations"]
    norms = t["W_dec"].norm(dim=1) if config.get("rescale_acts_by_decoder_norm") else torch.ones(F)

    def features(inside: Tensor) -> Tensor:
        if kind == "gated":
            gate = inside @ t["W_enc"] + t["b_gate"] > 0
            return gate * relu(inside @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"])
        pre = inside @ t["W_enc"] + t["b_enc"]
        if kind == "topk":
            return relu(top(K, pre * norms, pre * norms)) / norms
        if kind == "abstopk":
            return top(K, pre * norms, (pre * norms).abs()) / norms
        if "batchtopk" in kind:
            return relu(pre * norms) * (pre * norms > t["topk_threshold"]) / norms
        if "jumprelu" in kind:
            return relu(pre) * (pre > t["threshold"])
        return relu(pre)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, size = torch.zeros_like(x[..., :1]), torch.ones_like(x[..., :1])
        inside = x
        if normalize == "layer_norm":
            mean = x.mean(-1, keepdim=True)
            size = ((x - mean) ** 2).sum(-1, keepdim=True).div(D - 1).sqrt()
            inside = (x - mean) / (size + 1e-5)
        if normalize == "constant_norm_rescale":
            size = (x**2).mean(-1, keepdim=True).sqrt()
            inside = x / size
        if config["apply_b_dec_to_input"]:
            inside = inside - t["b_dec"]
        f = features(inside)
        out = (f @ t["W_dec"] + t["b_dec"]) * size + mean
        if "W_skip" in t:
            out = out + x @ t["W_skip"].T
        return f * size, out

    return run


LEARNING_KEYS: dict[str, dict[str, tuple[int, ...]]] = {
    "AutoEncoder": {
        "bias": (D,),
        "encoder.weight": (F, D),
        "encoder.bias": (F,),
        "decoder.weight": (D, F),
    },
    "GatedAutoEncoder": {
        "decoder_bias": (D,),
        "r_mag": (F,),
        "gate_bias": (F,),
        "mag_bias": (F,),
        "encoder.weight": (F, D),
        "decoder.weight": (D, F),
    },
    "JumpReluAutoEncoder": {
        "W_enc": (D, F),
        "b_enc": (F,),
        "W_dec": (F, D),
        "b_dec": (D,),
        "threshold": (F,),
    },
    "AutoEncoderNew": {
        "encoder.weight": (F, D),
        "encoder.bias": (F,),
        "decoder.weight": (D, F),
        "decoder.bias": (D,),
    },
    "AutoEncoderTopK": {
        "b_dec": (D,),
        "threshold": (),
        "encoder.weight": (F, D),
        "encoder.bias": (F,),
        "decoder.weight": (D, F),
    },
    "MatryoshkaBatchTopKSAE": {
        "W_enc": (D, F),
        "b_enc": (F,),
        "W_dec": (F, D),
        "b_dec": (D,),
        "threshold": (),
    },
}
LEARNING_KEYS["BatchTopKSAE"] = LEARNING_KEYS["AutoEncoderTopK"]


def learning_tensors(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Return a state_dict of a class of dictionary_learning."""
    tensors = random_tensors(LEARNING_KEYS[name], seed)
    if "TopK" in name:
        tensors["k"] = torch.tensor(K, dtype=torch.int)
    if "Matryoshka" in name:
        tensors["group_sizes"] = torch.tensor([4, 6])
    return tensors


def learning_config(name: str, **trainer: Any) -> dict[str, Any]:
    """Return a run's config.json."""
    return {
        "trainer": {
            "trainer_class": "SomeTrainer",
            "dict_class": name,
            "activation_dim": D,
            "dict_size": F,
            "lm_name": "EleutherAI/pythia-70m-deduped",
            "layer": 3,
            "submodule_name": "resid_post_layer_3",
            **trainer,
        },
        "buffer": {"d_submodule": D, "io": "out", "ctx_len": 128},
    }


def learning_twin(name: str, t: Mapping[str, Tensor]) -> Twin:
    """Return what a class of dictionary_learning computes."""

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        if name == "AutoEncoder":
            f = relu((x - t["bias"]) @ t["encoder.weight"].T + t["encoder.bias"])
            return f, f @ t["decoder.weight"].T + t["bias"]
        if name == "AutoEncoderNew":
            f = relu(x @ t["encoder.weight"].T + t["encoder.bias"])
            return f, f @ t["decoder.weight"].T + t["decoder.bias"]
        if name == "GatedAutoEncoder":
            inside = (x - t["decoder_bias"]) @ t["encoder.weight"].T
            f = relu(t["r_mag"].exp() * inside + t["mag_bias"])
            f = f * (inside + t["gate_bias"] > 0)
            return f, f @ t["decoder.weight"].T + t["decoder_bias"]
        if name == "JumpReluAutoEncoder":
            pre = x @ t["W_enc"] + t["b_enc"]
            f = relu(pre * (pre > t["threshold"]))
            return f, f @ t["W_dec"] + t["b_dec"]
        if name == "MatryoshkaBatchTopKSAE":
            f = relu((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
            f = f * (f > t["threshold"])
            return f, f @ t["W_dec"] + t["b_dec"]
        f = relu((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"])
        f = top(K, f, f) if name == "AutoEncoderTopK" else f * (f > t["threshold"])
        return f, f @ t["decoder.weight"].T + t["b_dec"]

    return run
