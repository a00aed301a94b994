"""Models for the tests of traces, and what plain PyTorch says about them.

Nothing of headwater's traces comes in here but the count of idle threads: expected values and
gradients are found with ordinary forward hooks, `retain_grad` and `detach`.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import headwater as hw
import tiny_models
from headwater.models import Model
from headwater.trace import threads

PROMPT = "Mary bought the book . Then Paul met Mary near the station"
BATCH, POSITIONS = 2, 6
IDS = tiny_models.tokens(BATCH, POSITIONS, seed=5)
ONE = IDS[:1]
"""A batch of one prompt."""


@dataclass(frozen=True)
class Layout:
    """Module paths of a language model; those of a layer start at the layer."""

    layers: str = "model.layers"
    backbone: str = "model"
    attn: str = "self_attn"
    mid: str | None = "post_attention_layernorm"
    """What takes the residual stream between attention and MLP; None where nothing does."""
    mlp: str = "mlp"
    final_norm: str = "norm"


LAYOUTS: dict[str, Layout] = {
    "GPT-2": Layout("transformer.h", "transformer", "attn", "ln_2", final_norm="ln_f"),
    "Llama": Layout(),
    # writes are the outputs of norms here
    "Gemma 2": Layout(
        attn="post_attention_layernorm",
        mid="pre_feedforward_layernorm",
        mlp="post_feedforward_layernorm",
    ),
    "GPT-NeoX": Layout(
        "gpt_neox.layers", "gpt_neox", "attention", None, final_norm="final_layer_norm"
    ),
    "GPT-J": Layout("transformer.h", "transformer", "attn", None, final_norm="ln_f"),
    # the block adds attention's output to the MLP's output in place
    "Falcon": Layout("transformer.h", "transformer", "self_attention", None, final_norm="ln_f"),
    "Mamba": Layout("backbone.layers", "backbone", "mixer", None, "", final_norm="norm_f"),
}
"""Sequential blocks, blocks with norms behind the branches, parallel blocks, state space."""


def float64_model(family: str) -> Model:
    """A tiny random model of `family` in float64, its parameters asking for gradients."""
    return hw.wrap(tiny_models.build(family, dtype=torch.float64))


@cache
def shared_model(family: str) -> Model:
    """The float64 model built once; tests must leave its weights as they are."""
    return float64_model(family)


@cache
def loaded_model(name: str) -> Model:
    """An embedded model with frozen parameters, loaded once."""
    return hw.load(name)


def part(model: Any, path: str) -> Any:
    """Follow a dotted path as a user would type it: attributes and `[3]`."""
    for name in path.split("."):
        model = model[int(name)] if name.isdigit() else getattr(model, name)
    return model


def embedding_path(module: nn.Module) -> str:
    """The path of the token embedding."""
    embedding = module.get_input_embeddings()
    return next(path for path, found in module.named_modules() if found is embedding)


def first(value: Any) -> Tensor:
    """The hidden states of a module's output, which may be a tuple or a tensor."""
    return value[0] if isinstance(value, tuple) else value


def with_first(value: Any, new: Tensor) -> Any:
    """`value` with its hidden states replaced."""
    return (new, *value[1:]) if isinstance(value, tuple) else new


def loss_of(logits: Tensor) -> Tensor:
    """A number whose gradient differs at every position and token."""
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).reshape(logits.shape)
    return (logits.tanh() * weights.sin()).sum()


@contextmanager
def hooked(
    module: nn.Module,
    outputs: Mapping[str, Callable[[Any], Any]] | None = None,
    inputs: Mapping[str, Callable[[Tensor], Tensor | None]] | None = None,
) -> Iterator[None]:
    """Plain forward hooks: each gets a module's output (or first input), may return another."""

    with ExitStack() as stack:
        for path, change in (outputs or {}).items():
            handle = module.get_submodule(path).register_forward_hook(_after(change))
            stack.callback(handle.remove)
        for path, change in (inputs or {}).items():
            part = module.get_submodule(path)
            handle = part.register_forward_pre_hook(_before(change), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _after(change: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda _, __, output: change(output)


def _before(change: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = None if args else next(iter(kwargs))
        new = change(args[0] if args else kwargs[name])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, name: new})

    return hook


@dataclass
class Plain:
    """What one run of the plain module gave."""

    logits: Tensor
    values: dict[str, Tensor]
    """Path -> the module's output, its gradient retained; the loss still has its graph."""

    def gradients(self, loss: Tensor | None = None) -> dict[str, Tensor]:
        """The gradient that flows into each watched output, by `torch.autograd.grad`."""
        loss = loss_of(self.logits) if loss is None else loss
        found = torch.autograd.grad(loss, list(self.values.values()), retain_graph=True)
        return dict(zip(self.values, found, strict=True))


def plain_run(
    module: nn.Module, ids: Tensor, paths: Iterable[str] = (), *, through_embedding: bool = False
) -> Plain:
    """Run the module as it is and keep what left the modules at `paths`.

    Args:
        module: The module, with or without frozen parameters.
        ids: Prompts.
        paths: Whose outputs are kept.
        through_embedding: Have the embedding's output ask for gradients, for frozen models.

    Returns:
        The logits and the outputs, with their graph.
    """
    kept: dict[str, Tensor] = {}

    def keeping(path: str) -> Callable[[Any], None]:
        return lambda output: kept.__setitem__(path, first(output))

    def asking(output: Tensor) -> Tensor:
        return output.detach().requires_grad_().clone()

    start = {embedding_path(module): asking} if through_embedding else {}
    with hooked(module, start), hooked(module, {path: keeping(path) for path in paths}):
        logits = module(ids, use_cache=False).logits
    return Plain(logits, kept)


def parameter_gradients(module: nn.Module) -> dict[str, Tensor]:
    """A copy of each parameter's accumulated gradient, zeros where nothing arrived."""
    return {
        name: torch.zeros_like(one) if one.grad is None else one.grad.clone()
        for name, one in module.named_parameters()
    }


def forget_gradients(model: Model) -> None:
    """Set every parameter's `.grad` to None."""
    model.module.zero_grad(set_to_none=True)


def assert_all_close(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], rtol: float = 1e-10
) -> None:
    """Compare two sets of float64 tensors by name.

    The absolute tolerance is `rtol` times the largest expected entry, since a sum of terms of that
    size is rounded at that size.
    """
    assert list(actual) == list(expected)
    scale = max(float(one.abs().max()) for one in expected.values())
    assert scale > 0, "the oracle's values are all zero: this case cannot fail"
    for name, one in expected.items():
        torch.testing.assert_close(
            actual[name], one, rtol=rtol, atol=rtol * scale, msg=lambda m, name=name: f"{name}: {m}"
        )


class Block(nn.Module):
    """A residual block: its input plus a branch of it."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.branch = nn.Linear(width, width)

    def forward(self, stream: Tensor) -> Tensor:
        return stream + self.branch(stream)


class Net(nn.Module):
    """A residual network on plain numbers, with a module that is never called."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.embed(x)
        for block in self.blocks:
            stream = block(stream)
        return self.head(stream)


def net() -> Model:
    """A `Net` in float64 with fixed weights, wrapped."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hw.wrap(Net().double())


def x(rows: int = 5) -> Tensor:
    """Input of a `Net`."""
    return torch.linspace(-1, 1, 3 * rows, dtype=torch.float64).reshape(rows, 3)


UNPATCHED = {
    name: inspect.getattr_static(torch.Tensor, name, None)
    for name in ("backward", "grad", "retain_grad", "save")
}


def worker_threads() -> list[threading.Thread]:
    """Threads of traces that are alive and have work, or should have ended.

    A thread that is through waits a moment for the next trace and then ends by itself; so this
    waits, a second at most, until none of them is idle.
    """
    deadline = time.monotonic() + 1
    while threads.idle_workers() and time.monotonic() < deadline:
        time.sleep(0.002)
    return [one for one in threading.enumerate() if one.name.startswith("headwater-trace")]


def assert_nothing_left(*modules: nn.Module) -> None:
    """No thread, patch, hook or replaced call outlives a trace."""
    deadline = time.monotonic() + 2
    while worker_threads() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert worker_threads() == []
    for name, original in UNPATCHED.items():
        assert inspect.getattr_static(torch.Tensor, name, None) is original, name
    for module in modules:
        for path, one in module.named_modules():
            assert vars(one).get("_compiled_call_impl") is None, path
            assert "forward" not in vars(one), path
            assert not one._forward_hooks, path
            assert not one._forward_pre_hooks, path
