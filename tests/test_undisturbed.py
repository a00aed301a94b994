"""Attribution leaves the user's model as it was, whatever happens in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import headwater as hw
from headwater.architectures.adapter import resolve
from headwater.attribution import attribute
from headwater.errors import ModelStateError
from headwater.models import Model
from tiny_models import build
from tiny_tasks import model, one_of_each, task, tokenizer

FAMILIES = ["GPT-2", "Llama", "Mixtral", "Falcon", "Mamba"]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def state(module: nn.Module) -> dict[str, Any]:
    """Everything of a model that a run could leave behind."""
    parts = list(module.modules())
    config = module.config
    return {
        "hooks": [[len(getattr(part, name)) for name in HOOKS] for part in parts],
        "attributes": [sorted(part.__dict__) for part in parts],
        "modes": [part.training for part in parts],
        "asks": [parameter.requires_grad for parameter in module.parameters()],
        "gradients": [parameter.grad for parameter in module.parameters()],
        "attention": config._attn_implementation,
        "experts": getattr(config, "_experts_implementation", None),
        "cache": getattr(config, "use_cache", None),
        "dtypes": [str(parameter.dtype) for parameter in module.parameters()],
        "weights": [float(parameter.detach().sum()) for parameter in module.parameters()],
        "mode": (torch.is_grad_enabled(), torch.get_default_dtype()),
        "functions": len(torch.overrides._get_current_function_mode_stack()),
    }


@pytest.fixture(params=FAMILIES)
def mine(request: pytest.FixtureRequest) -> nn.Module:
    """A model of the user's, of which some parameters are already frozen."""
    module = build(request.param, dtype=torch.float64)
    next(module.parameters()).requires_grad_(False)
    return module


def test_a_run_that_ends_well_changes_nothing(mine):
    wrapped = hw.wrap(mine, tokenizer())
    before, components = state(mine), one_of_each(wrapped)
    for estimator in (hw.Gradient(), hw.Exact(), hw.Exact(at="corrupted")):
        attribute(wrapped, task(4, 3), components, estimator)
        assert state(mine) == before


class Sabotage:
    """Counts calls, and raises in one of them."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.calls, self.fatal = error, 0, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.fatal:
            raise self.error


def every_failure(sabotage: Sabotage, run: Any) -> list[int]:
    """Which calls to fail in, of those a run makes: the first ones, the middle, and the last."""
    run()
    assert sabotage.calls >= 2
    return sorted({1, 2, sabotage.calls // 2, sabotage.calls})


@pytest.mark.parametrize("place", ["metric", "gate", "layer"])
@pytest.mark.parametrize(
    ("estimator", "error"),
    [(hw.Exact(), RuntimeError("broken")), (hw.Gradient(), KeyboardInterrupt())],
    ids=["exact", "gradient"],
)
def test_a_run_that_fails_anywhere_leaves_nothing_behind(
    mine, place, error, estimator, monkeypatch
):
    sabotage = Sabotage(error)
    wrapped = Model(mine, tokenizer(), adapter=resolve(mine))

    def failing_metric(logits: torch.Tensor, batch: Any) -> torch.Tensor:
        if place == "metric":
            sabotage()
        return logits[:, 5] - logits[:, 6]

    if place == "gate":
        lerp = torch.lerp
        monkeypatch.setattr(torch, "lerp", lambda *args: (sabotage(), lerp(*args))[1])
    if place == "layer":
        child = list(wrapped.adapter.layers[-1].children())[-1]
        child.register_forward_hook(lambda *_: sabotage())
    before, components = state(mine), one_of_each(wrapped)

    def run() -> None:
        sabotage.calls = 0
        attribute(wrapped, task(4, 3), components, estimator, metric=failing_metric)

    for fatal in every_failure(sabotage, run):
        sabotage.fatal = fatal
        with pytest.raises(type(error)):
            run()
        assert state(mine) == before
    sabotage.fatal = 0
    run()


@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "ctrl-c"]
)
def test_a_tap_that_fails_leaves_nothing_behind(mine, error):
    wrapped = Model(mine, tokenizer(), adapter=resolve(mine))
    before = state(mine)

    def fail(value: torch.Tensor) -> None:
        raise error

    for site in wrapped.sites():
        with pytest.raises(type(error)):
            wrapped.forward(torch.tensor([[5, 6, 7]]), taps={site: fail})
        assert state(mine) == before


def test_active_dropout_is_refused_by_name():
    module = build("GPT-2")
    wrapped = hw.wrap(module, tokenizer())
    module.train()
    with pytest.raises(ModelStateError) as refused:
        attribute(wrapped, task(4), hw.heads())
    assert str(refused.value) == (
        "dropout is active in transformer.drop (p=0.1), transformer.h.0.attn.attn_dropout (p=0.1), "
        "transformer.h.0.attn.resid_dropout (p=0.1) and 4 more: the model is in training mode, so "
        "every run would give other numbers.\nCall model.eval() first."
    )
    assert module.training


def test_training_mode_without_dropout_is_left_on():
    module = build("Llama").train()
    attribute(hw.wrap(module, tokenizer()), task(4), hw.heads())
    assert all(part.training for part in module.modules())


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    attribute(model("Llama"), task(4, 4), hw.heads(), reference=hw.Resample())
    assert torch.equal(torch.rand(2), expected)
