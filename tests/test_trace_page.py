"""Every example of NNsight's page on gradients, on GPT-2's and Llama's layout.

Expected gradients are those of plain PyTorch: forward hooks, `retain_grad`, `torch.autograd.grad`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import headwater as hw
import tiny_models
from headwater.errors import GradientError, OutOfOrderError, UnknownModuleError, UnknownOptionError
from headwater.models import Model
from trace_models import (
    IDS,
    LAYOUTS,
    ONE,
    PROMPT,
    embedding_path,
    forget_gradients,
    loaded_model,
    parameter_gradients,
    part,
    plain_run,
)


@dataclass(frozen=True)
class Case:
    """A model and one prompt for it."""

    name: str
    model: Model
    prompt: Any
    ids: Tensor
    layers: str
    frozen: bool

    @property
    def blocks(self) -> Any:
        """What the page calls `model.transformer.h`."""
        return part(self.model, self.layers)

    @property
    def embedding(self) -> Any:
        """The token embedding."""
        return part(self.model, embedding_path(self.model.module))

    def plain_gradients(self, of: str, number: int = -1) -> Tensor:
        """The gradient that reaches a block's output, [1, pos, d_model].

        Args:
            of: "logits" for the sum of the logits, otherwise a module whose output is summed.
            number: Of the block; "embedding" is the token embedding instead.
        """
        path = embedding_path(self.model.module) if number is None else f"{self.layers}.{number}"
        path = path.replace(".-1", f".{len(self.model.module.get_submodule(self.layers)) - 1}")
        paths = [path] if of == "logits" else [path, of]
        run = plain_run(self.model.module, self.ids, paths, through_embedding=self.frozen)
        loss = run.logits.sum() if of == "logits" else run.values[of].sum()
        return torch.autograd.grad(loss, run.values[path])[0]

    def plain_parameter_gradients(self) -> dict[str, Tensor]:
        """The parameters' gradients of the sum of the logits."""
        forget_gradients(self.model)
        self.model.module(self.ids).logits.sum().backward()
        found = parameter_gradients(self.model.module)
        forget_gradients(self.model)
        return found


def _loaded(name: str, layers: str) -> Case:
    model = loaded_model(name)
    ids = torch.tensor(model.tokenizer(PROMPT)["input_ids"])[None]
    return Case(name, model, PROMPT, ids, layers, frozen=True)


def _random(family: str) -> Case:
    model = hw.wrap(tiny_models.build(family))
    return Case(f"random {family}", model, ONE, ONE, LAYOUTS[family].layers, frozen=False)


CASES = {
    "tiny-gpt2": lambda: _loaded("tiny-gpt2", "transformer.h"),
    "tiny": lambda: _loaded("tiny", "model.layers"),
    "random GPT-2": lambda: _random("GPT-2"),
    "random Llama": lambda: _random("Llama"),
}


@pytest.fixture(params=CASES, scope="module")
def shared_case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


@pytest.fixture
def case(shared_case: Case) -> Case:
    forget_gradients(shared_case.model)
    return shared_case


with_trainable_parameters = pytest.mark.parametrize(
    "shared_case", ["random GPT-2", "random Llama"], indirect=True
)


def assert_close(actual: Tensor, expected: Tensor, name: str = "") -> None:
    """Float32, and perhaps another attention mask: 1e-4 of the largest entry."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        actual, expected, rtol=1e-4, atol=1e-5 * scale, msg=lambda text: f"{name}: {text}"
    )


# ---- summary -------------------------------------------------------------------------------------


def test_summary_example(case: Case):
    model, k = case.model, 1
    with model.trace(case.prompt):
        embedded = case.embedding.output
        # access module inputs/outputs during forward pass
        hidden_states = case.blocks[k].output[0].save()
        logits = model.output.logits.save()

        # enter .backward() context
        with logits.sum().backward():
            # You can access gradients within backward context
            grad = logits.grad.save()
            first = embedded.grad

        with hidden_states.sum().backward():
            # you can intervene on gradients within backward context
            hidden_states.grad[:] = 0  # in-place setting operation
            second = embedded.grad

    assert torch.equal(grad, torch.ones_like(logits))
    assert_close(first, case.plain_gradients("logits", None))
    assert float(case.plain_gradients(f"{case.layers}.1", None).abs().max()) > 0.01
    assert torch.equal(second, torch.zeros_like(second))
    if not case.frozen:
        # the second pass was cut at its start: parameters hold the first pass alone
        actual = parameter_gradients(model.module)
        for name, expected in case.plain_parameter_gradients().items():
            assert_close(actual[name], expected, name)


def test_second_block_without_the_edit_adds_to_the_first(case: Case):
    with case.model.trace(case.prompt):
        embedded = case.embedding.output
        hidden_states = case.blocks[1].output[0]
        with case.model.output.logits.sum().backward():
            pass
        with hidden_states.sum().backward():
            arrived = embedded.grad
    assert_close(arrived, case.plain_gradients(f"{case.layers}.1", None))


def test_summary_as_the_page_spells_it_names_the_logits(case: Case):
    with (
        pytest.raises(UnknownModuleError, match=r"\.output\.logits"),
        case.model.trace(case.prompt),
    ):
        case.model.output[0].logits.save()


# ---- before 0.5 ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_the_style_before_nnsight_0_5_is_answered_with_the_new_one(case: Case):
    model = case.model

    def page() -> None:
        with model.trace(case.prompt) as tracer:
            hidden_states = case.blocks[-1].output[0].save()
            hidden_states_grad = case.blocks[-1].output[0].grad.save()

            model.output.logits.sum().backward()

        print(tracer, hidden_states)
        print(hidden_states_grad)

    with pytest.raises(GradientError, match=r"with .*\.backward\(") as caught:
        page()
    assert ".grad" in str(caught.value)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_the_style_before_nnsight_0_5_on_a_whole_output(case: Case):
    with pytest.raises(GradientError, match=r"with .*\.backward\("), case.model.trace(case.prompt):
        case.blocks[-1].output.grad.save()


# ---- accessing -----------------------------------------------------------------------------------


def test_gradient_of_the_summed_logits_is_all_ones(case: Case):
    with case.model.trace(case.prompt):
        logits = case.model.output.logits

        # .backward() context
        with logits.sum().backward():
            # access .grad within backward context
            grad = logits.grad.save()

    assert grad.shape == (*case.ids.shape, case.model.module.config.vocab_size)
    assert bool((grad == 1).all())


def test_retain_grad_and_a_bare_backward(case: Case):
    model = case.model
    with model.trace(case.prompt):
        hidden_states = case.blocks[-1].output[0].save()
        hidden_states.retain_grad()

        logits = model.output.logits.save()

        logits.sum().backward()

    assert_close(hidden_states.grad, case.plain_gradients("logits")[0])


def test_retain_grad_on_a_whole_output(case: Case):
    with case.model.trace(case.prompt):
        hidden_states = case.blocks[-1].output
        hidden_states.retain_grad()
        case.model.output.logits.sum().backward()
    assert_close(hidden_states.grad, case.plain_gradients("logits"))


@pytest.mark.parametrize("picked", ["output[0]", "output"])
def test_three_backward_passes_accumulate(case: Case, picked: str):
    model = case.model
    printed = []
    with model.trace(case.prompt):
        hidden_states = case.blocks[-1].output.save()
        if picked == "output[0]":
            hidden_states = hidden_states[0]
        hidden_states.retain_grad()

        logits = model.output.logits

        logits.sum().backward(retain_graph=True)

        printed.append(hidden_states.grad.clone())

        logits.sum().backward(retain_graph=True)

        printed.append(hidden_states.grad.clone())

        logits.sum().backward()

    printed.append(hidden_states.grad.clone())
    once = case.plain_gradients("logits")
    once = once[0] if picked == "output[0]" else once
    for times, seen in enumerate(printed, start=1):
        assert_close(seen, times * once, f"after {times} passes")


def test_a_bare_backward_frees_the_graph_as_torch_does(case: Case):
    with case.model.trace(case.prompt):
        total = case.model.output.logits.sum()
        total.backward()
        with pytest.raises(RuntimeError, match="retain_graph=True"):
            total.backward()


@with_trainable_parameters
def test_bare_backward_reaches_the_parameters(case: Case):
    expected = case.plain_parameter_gradients()
    with case.model.trace(case.prompt):
        case.model.output.logits.sum().backward()
    for name, gradient in parameter_gradients(case.model.module).items():
        assert_close(gradient, expected[name], name)


# ---- intervening ---------------------------------------------------------------------------------


@pytest.mark.parametrize("picked", ["output[0]", "output"])
@pytest.mark.parametrize("way", ["in place", "swapped"])
def test_zeroed_gradient_before_and_after(case: Case, picked: str, way: str):
    model = case.model
    with model.trace(case.prompt) as tracer:
        upstream = case.blocks[0].output
        hidden_states = case.blocks[-1].output.save()
        if picked == "output[0]":
            hidden_states = hidden_states[0].save()

        logits = model.output.logits

        with logits.sum().backward():
            logits_grad = logits.grad.save()  # <-reverse order

            hidden_states_grad_before = hidden_states.grad.clone().save()
            if way == "in place":
                hidden_states.grad[:] = 0
            else:
                hidden_states.grad = torch.zeros_like(hidden_states)
            hidden_states_grad_after = hidden_states.grad.save()
            upstream_grad = upstream.grad

    assert tracer is not None
    expected = case.plain_gradients("logits")
    expected = expected[0] if picked == "output[0]" else expected
    assert bool((logits_grad == 1).all())
    assert_close(hidden_states_grad_before, expected)
    assert torch.equal(hidden_states_grad_after, torch.zeros_like(expected))
    assert float(case.plain_gradients("logits", 0).abs().max()) > 0.01
    assert torch.equal(upstream_grad, torch.zeros_like(upstream_grad))


@with_trainable_parameters
@pytest.mark.parametrize("way", ["in place", "swapped"])
def test_zeroed_gradient_leaves_upstream_parameters_without_one(case: Case, way: str):
    plain = case.plain_parameter_gradients()
    with case.model.trace(case.prompt):
        hidden_states = case.blocks[-1].output[0]
        logits = case.model.output.logits
        with logits.sum().backward():
            if way == "in place":
                hidden_states.grad[:] = 0
            else:
                hidden_states.grad = torch.zeros_like(hidden_states)
    upstream, downstream = 0, 0
    unembedding = case.model.module.lm_head.weight
    for name, parameter in case.model.module.named_parameters():
        if case.layers in name:
            upstream += 1
            assert float(plain[name].abs().max()) > 0, name
            assert parameter.grad is None or not parameter.grad.any(), name
        elif "norm" in name or "ln_f" in name:
            downstream += 1
            assert_close(parameter.grad, plain[name], name)
    assert upstream
    assert downstream
    if case.model.module.get_input_embeddings().weight is not unembedding:
        assert_close(unembedding.grad, plain["lm_head.weight"], "lm_head")


def test_gradient_of_a_part_is_edited_alone(case: Case):
    with case.model.trace(case.prompt):
        whole = case.blocks[-1].output
        last = whole[:, -1]
        with case.model.output.logits.sum().backward():
            before = last.grad.clone()
            last.grad[:] = 0
            after = whole.grad
    expected = case.plain_gradients("logits")
    assert_close(before, expected[:, -1])
    assert not after[:, -1].any()
    assert_close(after[:, :-1], expected[:, :-1])


# ---- `.save()`, names, order, notes --------------------------------------------------------------


def test_save_returns_what_it_is_called_on(case: Case):
    with case.model.trace(case.prompt):
        hidden_states = case.blocks[0].output
        assert hidden_states.save() is hidden_states
        pair = part(case.model, case.layers.split(".")[0]).output
        assert pair.save() is pair
        output = case.model.output
        assert output.save() is output
        product = hidden_states * 2
        assert product.save() is product
        assert hw.save(product) is product
        assert hw.save(output) is output


def test_save_on_a_tuple(case: Case):
    name = "attn" if "transformer" in case.layers else "self_attn"
    with case.model.trace(case.prompt):
        attention = getattr(case.blocks[0], name).output
        assert isinstance(attention, tuple)
        assert hw.save(attention) is attention
        assert attention.save()[0] is attention[0]


def test_the_tracer_reads_what_the_model_reads(case: Case):
    with case.model.trace(case.prompt) as tracer:
        hidden_states = case.blocks[0].output
        logits = case.model.output.logits
        assert part(tracer, case.layers)[0].output is hidden_states
        assert tracer[f"{case.layers}.0"].output is hidden_states
        assert tracer.output.logits is logits
        with logits.sum().backward() as backward:
            grad = logits.grad
    assert backward is not None
    assert bool((grad == 1).all())


def test_gradients_are_read_in_any_order(case: Case):
    count = len(case.blocks)
    with case.model.trace(case.prompt):
        states = [block.output for block in case.blocks]
        with case.model.output.logits.sum().backward():
            read = [state.grad.clone() for state in states]  # the first block's arrives last
    assert len(read) == count
    for number, gradient in enumerate(read):
        assert_close(gradient, case.plain_gradients("logits", number), f"block {number}")


def test_strict_order_refuses_forward_reads_out_of_order(case: Case):
    def backwards() -> None:
        with case.model.trace(case.prompt, order="strict"):
            case.blocks[1].output.save()
            case.blocks[0].output.save()

    with pytest.raises(OutOfOrderError, match=rf"{re.escape(case.layers)}\[0\]"):
        backwards()


def test_remote_is_refused(case: Case):
    with (
        pytest.raises(UnknownOptionError, match="remote"),
        case.model.trace(case.prompt, remote=True),
    ):
        pass


def test_one_prompt_of_a_batch_has_its_own_gradient_and_a_notice():
    model = hw.wrap(tiny_models.build("GPT-2"))
    run = plain_run(model.module, IDS, ["transformer.h.1"])
    expected = torch.autograd.grad(run.logits.sum(), run.values["transformer.h.1"])[0]

    def read() -> Tensor:
        with model.trace(IDS):
            hidden_states = model.transformer.h[-1].output[0]
            logits = model.output.logits
            with logits.sum().backward():
                return hidden_states.grad.clone()

    with pytest.warns(UserWarning, match=r"transformer\.h\[1\]"):
        gradient = read()
    assert gradient.shape == expected[0].shape
    assert_close(gradient, expected[0])


@pytest.mark.parametrize(("requires_grad", "has_one"), [(None, True), (True, True), (False, False)])
@pytest.mark.parametrize("name", ["tiny", "tiny-gpt2"])
def test_requires_grad_on_a_frozen_model(name: str, requires_grad: bool | None, has_one: bool):
    model = loaded_model(name)
    with model.trace(PROMPT, requires_grad=requires_grad):
        logits = model.output.logits
    assert logits.requires_grad is has_one
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_no_gradients_are_made_under_no_grad():
    model = loaded_model("tiny")
    with torch.no_grad(), model.trace(PROMPT):
        logits = model.output.logits
    assert not logits.requires_grad


def test_requires_grad_reaches_float_inputs_of_any_module():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).requires_grad_(False)
    model, x = hw.wrap(module), torch.randn(5, 3)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(module(leaf).square().sum(), leaf)[0]
    with model.trace(x, requires_grad=True) as run:
        given = run.input
        with run.output.square().sum().backward():
            gradient = given.grad
    torch.testing.assert_close(gradient, expected)
    assert not x.requires_grad
    assert x.grad is None
