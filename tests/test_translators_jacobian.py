"""The Jacobian lens, held against dense autograd by hooks and plain loops."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracles
import tiny_models
import tiny_tasks
from headwater.errors import PromptError, UnknownOptionError
from headwater.lenses.translators import fit_lens

FAMILIES = tuple(tiny_models.BUILDERS)
HIDDEN = "hidden_states"


def prompts(count: int, length: int = 9, seed: int = 5) -> list[list[int]]:
    return tiny_models.tokens(count, length, seed=seed).tolist()


def entering(args: Any, kwargs: Any) -> Tensor:
    return args[0] if args else kwargs[HIDDEN]


def plain_jacobians(family: str, ids: list[int]) -> list[Tensor]:
    """[row]: d final[t'] / d row[t] as [t', out, t, in], by hooks on the layers alone."""
    twin = oracles.Twin(family)
    twin.module.requires_grad_(False)
    kept: dict[str, Tensor] = {}

    def run(row: int, given: Tensor | None) -> Tensor:
        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            kept["row"] = entering(args, kwargs).detach().clone()
            if given is None:
                return None
            value = given[None].clone()
            return ((value, *args[1:]), kwargs) if args else (args, kwargs | {HIDDEN: value})

        def after(_: nn.Module, args: Any, output: Any) -> None:
            kept["final"] = output[0] if isinstance(output, tuple) else output

        handles = [
            twin.layers[row].register_forward_pre_hook(before, with_kwargs=True),
            twin.layers[-1].register_forward_hook(after),
        ]
        with oracles.Float64():
            twin.module(torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        return kept["final"][0]

    found = []
    for row in range(len(twin.layers)):
        run(row, None)
        here = functools.partial(run, row)
        found.append(torch.autograd.functional.jacobian(here, kept["row"][0]))
    return found


def averaged(whole: Tensor, skip: int) -> Tensor:
    """The mean over sources of the sum over later targets, by loops."""
    last = whole.shape[0] - 1
    sources = range(skip, last)
    total = torch.zeros(whole.shape[1], whole.shape[3], dtype=torch.float64)
    for source in sources:
        for target in range(source, last):
            total += whole[target, :, source]
    return total / len(sources)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_jacobian_equals_plain_autograd(family: str) -> None:
    given = [prompts(1, 5)[0], prompts(1, 4, seed=7)[0]]
    found = fit_lens(tiny_tasks.model(family), given, "jacobian", skip=1)
    each = [plain_jacobians(family, ids) for ids in given]
    for number, row in enumerate(("input", "r0")):
        twins = torch.stack([averaged(one[number], 1) for one in each])
        assert torch.allclose(found.matrix(row), twins.mean(0), atol=1e-9)
        assert torch.allclose(found.errors[row], twins.std(0) / 2**0.5, atol=1e-9)
        noise = twins.var(0).sum() / 2
        mean, square = twins.mean(0).square().sum(), twins.square().sum() / 2
        details = found.details[row]
        assert details["relative standard error"] == pytest.approx(float((noise / mean) ** 0.5))
        assert details["share of E||J||^2"] == pytest.approx(float((mean - noise) / square))


def test_copies_in_batches_of_any_size_give_the_same_jacobian(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_tasks.model("Llama")
    one = fit_lens(model, prompts(3), "jacobian")
    monkeypatch.setattr("headwater.lenses.translators.jacobian._TOKENS", 9 * 3 * 5)
    other = fit_lens(model, prompts(3), "jacobian", batch_size=2)
    assert torch.allclose(one.matrix("r0"), other.matrix("r0"), atol=1e-12)
    assert torch.allclose(one.errors["input"], other.errors["input"], atol=1e-12)


def test_short_prompts_lose_a_quarter_at_the_front() -> None:
    model = tiny_tasks.model("Llama")
    default = fit_lens(model, prompts(2, 9), "jacobian")
    spelled = fit_lens(model, prompts(2, 9), "jacobian", skip=2)
    other = fit_lens(model, prompts(2, 9), "jacobian", skip=3)
    assert torch.equal(default.matrix("r0"), spelled.matrix("r0"))
    assert not torch.allclose(default.matrix("r0"), other.matrix("r0"))


def test_prompts_too_short_for_a_jacobian_are_refused() -> None:
    with pytest.raises(PromptError, match=r"prompt 0 has 4 tokens; with the first 3 and the last"):
        fit_lens(tiny_tasks.model("Llama"), prompts(1, 4), "jacobian", skip=3)
    with pytest.raises(UnknownOptionError, match="skip=-1 is negative"):
        fit_lens(tiny_tasks.model("Llama"), prompts(1, 4), "jacobian", skip=-1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: prompts(2, 4), None),
        (lambda: prompts(3, 4), "24 backward passes a prompt; 3 prompts, 72 in all. limit= reads"),
        (lambda: iter(prompts(2, 4)), "24 backward passes a prompt; how many prompts there are is"),
    ],
)
def test_a_large_cost_of_jacobians_is_said_before_they_start(
    given: Callable[[], Any],
    said: str | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headwater.lenses.translators.jacobian.LARGE", 24 * 3)
    monkeypatch.setattr("headwater.lenses.translators.jacobian._columns", no_columns)
    with caplog.at_level(logging.WARNING, "headwater"), pytest.raises(StopAsyncIteration):
        fit_lens(tiny_tasks.model("Llama"), given(), "jacobian")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (said is not None)
    assert said is None or f"fit jacobian: {said}" in messages[0]


def no_columns(*_: Any) -> Iterator[Any]:
    """In place of the work: what is said comes before it."""
    raise StopAsyncIteration
