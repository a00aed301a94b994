"""Where a trace could be silently wrong: views of chunks, shared modules, writes in place."""

import asyncio
import warnings
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import T5Config, T5ForConditionalGeneration

import headwater as hw
from headwater.errors import (
    GradientError,
    HeadwaterNotice,
    LateWriteError,
    NeverRanError,
    OutOfOrderError,
    OutsideTraceError,
    PromptError,
    TraceError,
    UnknownModuleError,
)
from trace_models import assert_nothing_left


class Chunks(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.chunk(2, dim=-1)


class TwoHalves(nn.Module):
    """The first half counts 3 times, the second 5 times."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.chunks = Chunks()

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.chunks(self.linear(x))
        return (first * 3).sum() + (second * 5).sum()


@pytest.mark.parametrize("both", [True, False])
def test_a_view_of_a_chunk_has_the_gradient_of_that_chunk(both: bool):
    model = hw.wrap(TwoHalves())
    with model.trace(torch.randn(3, 4)):
        outputs = model.chunks.output
        first = outputs[0]
        second = outputs[1] if both else None
        total = model.output
        with total.backward():
            assert first[1].grad.tolist() == [3, 3]
            if second is not None:
                assert second[2].grad.tolist() == [5, 5]
        with total.backward():
            first[1].grad[:] = 0
            assert first.grad.tolist() == [[3, 3], [0, 0], [3, 3]]
    assert_nothing_left(model.module)


def test_every_part_of_a_strided_value_has_its_own_gradient():
    model = hw.wrap(TwoHalves())
    weights = torch.arange(12.0).view(3, 4)
    with model.trace(torch.randn(3, 4)):
        value = model.linear.output
        columns, rows, turned = value[:, 1::2], value[::2], value.T
        with (value * weights).sum().backward():
            assert torch.equal(columns.grad, weights[:, 1::2])
            assert torch.equal(rows.grad, weights[::2])
            assert torch.equal(turned.grad, weights.T)
    assert_nothing_left(model.module)


def test_generators_with_a_block_each_read_their_own_pass():
    model = hw.load("tiny")
    with model.trace("Mary and John went"):
        hidden = model.model.layers[0].output
        logits = model.output.logits[0, -1]
        expected = [torch.autograd.grad(logits[k], hidden, retain_graph=True)[0] for k in (3, 7)]

        def passes(token: int):
            with logits[token].backward():
                yield
                yield hidden.grad.clone()

        one, other = passes(3), passes(7)
        next(one), next(other)
        found = [next(one), next(other)]
        other.close()
        one.close()
    for gradient, right in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, right)
    assert_nothing_left(model.module)


def test_tasks_of_one_event_loop_read_their_own_pass():
    model = hw.load("tiny")
    prompts = ["Mary and John went", "Paul went to the"]

    async def traced(prompt: str) -> Tensor:
        with model.trace(prompt) as run:
            hidden = run.model.layers[0].output
            await asyncio.sleep(0)
            with run.output.logits.square().sum().backward():
                await asyncio.sleep(0)
                return hidden.grad.clone()

    async def together() -> list[Tensor]:
        return await asyncio.gather(*[traced(prompt) for prompt in prompts])

    together_found = asyncio.run(together())
    alone = [asyncio.run(traced(prompt)) for prompt in prompts]
    for found, right in zip(together_found, alone, strict=True):
        torch.testing.assert_close(found, right)
    assert not torch.equal(alone[0], alone[1])


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.linear(x)) * 2


@pytest.mark.filterwarnings("ignore::headwater.errors.HeadwaterNotice")
def test_a_tensor_that_became_another_value_has_the_gradient_of_that_value():
    model = hw.wrap(InPlace())
    with model.trace(torch.randn(5, 3)):
        model.linear.output.clone()
        after = model.relu.output
        with model.output.sum().backward():
            assert torch.equal(after.grad, torch.full((5, 3), 2.0))


def test_a_kept_value_that_the_model_writes_into_is_named():
    model = hw.wrap(InPlace())
    with (
        pytest.warns(HeadwaterNotice, match=r"model\.linear\.output"),
        model.trace(torch.randn(5, 3)) as run,
    ):
        run.keep(["linear"])


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, self.first(x), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_an_edit_inside_a_checkpoint_is_refused(reentrant: bool):
    model = hw.wrap(Checkpointed(reentrant=reentrant))

    def edited() -> None:
        with model.trace(torch.ones(1, 3)):
            model.inner[0].output = model.inner[0].output * 2
            model.output.sum()

    with pytest.raises(TraceError, match=r"checkpoint"):
        edited()
    assert_nothing_left(model.module)


def test_the_second_name_of_a_module_does_not_mean_its_first_call():
    shared = nn.Linear(2, 2)
    model = hw.wrap(nn.Sequential(shared, nn.Tanh(), shared))
    x = torch.ones(2)
    with model.trace(x) as run:
        assert torch.equal(model[0].output, shared(x))
        with pytest.raises(TraceError, match=r"model\[2\] and model\[0\] are one module"):
            _ = model[2].output
        assert torch.equal(run.calls(model[0])[1].output, shared(torch.tanh(shared(x))))
    assert_nothing_left(model.module)


def test_bodies_that_would_run_nothing_are_refused():
    model = hw.wrap(nn.Linear(2, 2))

    def generator(run):
        yield run.output

    async def coroutine(run):
        return run.output

    for body in (generator, coroutine):
        with pytest.raises(TraceError, match="plain functions"):
            model.run(torch.ones(2), body)


def test_a_list_of_modules_iterates_over_proxies():
    model = hw.wrap(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    assert len(model) == 2
    with model.trace(torch.ones(2)):
        outputs = [part.output for part in model]
    assert torch.equal(outputs[1], torch.tanh(outputs[0]))


def test_a_value_edited_in_place_may_be_replaced_afterwards():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model, given = hw.wrap(module), torch.randn(2, 3)
    with model.trace(given):
        hidden = model[0].output
        hidden[:, 0] = 0
        model[0].output = hidden * 2
        result = model.output
    expected = module[0](given)
    expected[:, 0] = 0
    assert torch.equal(result, module[1](expected * 2))


def test_an_edit_in_place_is_seen_by_a_pass_that_starts_at_once():
    module = nn.Linear(3, 3)
    with hw.wrap(module).trace(torch.randn(2, 3)) as run:
        result = run.output
        result[:, 0] = 0
        with (result * 5).sum().backward():
            assert (result.grad == 5).all()
    assert module.weight.grad is not None
    assert not module.weight.grad[0].any()
    assert module.weight.grad[1:].all()


def test_the_gradient_of_a_view_whose_whole_was_edited_since():
    with hw.wrap(nn.Linear(3, 3)).trace(torch.randn(2, 3)) as run:
        whole = run.output.clone()
        view = whole.view(6)
        whole[0].mul_(2)
        with (view * torch.arange(6)).sum().backward():
            assert view.grad.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("strict", [False, True])
def test_a_gradient_is_not_replaced_after_the_end_of_the_pass(strict: bool):
    order = "strict" if strict else "any"
    with hw.wrap(nn.Linear(3, 3)).trace(torch.randn(2, 3), order=order) as run:
        before, after = run.input.requires_grad_(), run.output
        unrelated = torch.ones(2, requires_grad=True)
        with after.sum().backward():
            after.grad.save()
            with pytest.raises(GradientError, match="no gradient flows into unrelated"):
                unrelated.grad.save()
            with pytest.raises(OutOfOrderError if strict else LateWriteError):
                before.grad = torch.zeros(2, 3)


class Named(nn.Module):
    """Modules in a dictionary, one that returns a tuple, and one that torch fuses."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"first": nn.Linear(3, 3), "second": nn.Linear(3, 3)})
        self.chunks = Chunks()
        self.fused = nn.TransformerEncoderLayer(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        self.fused(torch.zeros(1, 2, 4))
        first, second = self.chunks(self.parts["second"](self.parts["first"](x)))
        return first + second[..., :1]


def test_modules_in_a_dictionary():
    module = Named()
    with hw.wrap(module).trace(torch.ones(2, 3)) as run:
        assert "first" in run.parts
        assert "third" not in run.parts
        assert [(name, part.path) for name, part in run.parts.items()] == [
            ("first", "parts.first"),
            ("second", "parts.second"),
        ]
        first, second = (part.output for part in run.parts.values())
    assert torch.equal(first, module.parts["first"](torch.ones(2, 3)))
    assert torch.equal(second, module.parts["second"](first))


def test_an_item_of_a_tuple_is_not_assigned():
    with (
        hw.wrap(Named()).trace(torch.ones(2, 3)) as run,
        pytest.raises(TraceError, match=r"assign the whole: module.output = \(new, "),
    ):
        run.chunks.output[0] = torch.zeros(2, 2)


def test_a_module_taken_out_of_the_model_has_no_output():
    model = hw.wrap(Named())
    with (
        pytest.raises(UnknownModuleError, match=r"through the model: model.parts.first.output"),
        model.trace(torch.ones(2, 3)),
    ):
        next(model.parts.children()).output.save()


def test_a_fused_module_says_so():
    model = hw.wrap(Named().eval())
    with (
        torch.no_grad(),
        model.trace(torch.ones(2, 3)),
        pytest.raises(NeverRanError, match=r"set_fastpath_enabled\(False\)"),
    ):
        model.fused.linear1.output.save()


def test_a_backward_pass_in_an_exit_stack():
    model = hw.wrap(nn.Linear(3, 3))
    with (
        pytest.raises(GradientError, match=r"stack.enter_context\(hw.backward\(loss\)\)"),
        model.trace(torch.ones(2, 3)),
        ExitStack() as stack,
    ):
        stack.enter_context(model.output.sum().backward())
    with model.trace(torch.ones(2, 3)), ExitStack() as stack:
        result = model.output
        stack.enter_context(hw.backward(result.sum()))
        assert (result.grad == 1).all()


def test_a_block_that_is_never_entered_says_so():
    loss = nn.Linear(3, 3)(torch.ones(2, 3)).sum()
    with pytest.warns(HeadwaterNotice, match="never entered"):
        hw.backward(loss)


# ---- found by people who tried to break it -------------------------------------------------------


def test_the_gradient_of_a_part_includes_every_path():
    """Also when the loss uses the part itself."""
    with hw.wrap(nn.Linear(3, 3)).trace(torch.randn(2, 3)) as run:
        whole = run.output
        part = whole[:, -1]
        loss = (whole * 2).sum() + (part * 10).sum()
        with loss.backward():
            assert part.grad.tolist() == [12, 12]
            assert whole.grad.tolist() == [[2, 2, 12]] * 2
        with loss.backward():
            part.grad[:] = 0
            assert whole.grad.tolist() == [[2, 2, 0]] * 2


class Branches(nn.Module):
    """Calls one module once, and the other never."""

    def __init__(self) -> None:
        super().__init__()
        self.taken, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.taken(x) if x.ndim else self.other(x)


def test_a_module_that_never_runs_is_not_skipped_silently():
    model, given = hw.wrap(Branches()), torch.ones(2, 3)
    with (
        pytest.raises(NeverRanError, match=r"model.other.skip\(...\) changed nothing"),
        model.trace(given) as run,
    ):
        run.other.skip(given)
    with (
        pytest.raises(NeverRanError, match=r"call 4 of model.taken was asked for, but it ran once"),
        model.trace(given) as run,
    ):
        run.calls(run.taken)[3].skip(given)
    with pytest.raises(NeverRanError, match=r"model.other.skip\(...\) changed nothing"):
        model.run(given, lambda run: run.other.skip(given))
    assert_nothing_left(model.module)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.linear(x))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.inner(x)
        return x


def _pairs_of_calls(run) -> list[tuple[int, int, float]]:
    found = []
    for outer in run.calls("inner"):
        for inner in run.calls("inner.linear"):
            if outer.index == 1:
                inner.output[:] = 0
            found.append((outer.index, inner.index, inner.output.sum().item()))
        assert torch.equal(outer.output, inner.output)
    return found


@pytest.mark.parametrize("as_body", [False, True])
def test_calls_inside_a_call_are_those_of_that_call(as_body: bool):
    module, given = Outer(), torch.ones(1, 3)
    model = hw.wrap(module.requires_grad_(False))
    if as_body:
        found = model.run(given, _pairs_of_calls)
    else:
        with model.trace(given) as run:
            found = _pairs_of_calls(run)
    linear = module.inner.linear
    values = [linear(given), linear(linear(given)), torch.zeros(1), torch.zeros(1)]
    values += [linear(torch.zeros(3)), linear(linear(torch.zeros(3)))]
    assert [pair[:2] for pair in found] == [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)]
    for (_, _, value), expected in zip(found, values, strict=True):
        assert value == pytest.approx(expected.sum().item())


def test_calls_inside_a_step_of_a_generation():
    model = hw.load("tiny")
    seen = []
    with model.generate("Mary and John went to the", max_new_tokens=3) as run:
        for step in run.steps():
            for call in run.calls(model.model.layers[1].mlp):
                seen.append((step.index, call.index, call.output.shape[1]))
    assert seen == [(0, 0, 7), (1, 1, 1), (2, 2, 1)]


class Holds(nn.Module):
    """Returns its value in a container, from which it is taken afterwards."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.inner = nn.Module()
        self.inner.forward = self._held

    def _held(self, x: Tensor) -> object:
        kinds = {"dict": {"value": x + 1}, "list": [x + 1], "object": Held(x + 1)}
        return kinds[self.kind]

    def forward(self, x: Tensor) -> Tensor:
        held = self.inner(x)
        values = {"dict": lambda: held["value"], "list": lambda: held[0]}
        return values.get(self.kind, lambda: held.value)() * 2


@dataclass
class Held:
    value: Tensor


def _give(container, value: Tensor) -> None:
    if isinstance(container, Held):
        container.value = value
    else:
        container["value" if isinstance(container, dict) else 0] = value


@pytest.mark.parametrize("kind", ["dict", "list", "object"])
def test_containers_are_changed_in_time_or_not_at_all(kind: str):
    model, given = hw.wrap(Holds(kind)), torch.ones(2)
    with model.trace(given) as run:
        _give(run.inner.output, torch.full((2,), 5.0))
        result = run.output
    assert result.tolist() == [10, 10]
    with (
        pytest.raises(LateWriteError, match=r"model.inner.output was given another tensor too"),
        model.trace(given) as run,
    ):
        _give((run.inner.output, run.output)[0], torch.zeros(2))


def test_an_output_of_another_kind_is_refused():
    model, given = hw.wrap(Named()), torch.ones(2, 3)
    with (
        pytest.raises(TraceError, match=r"is a tuple of 2, and a tensor was assigned"),
        model.trace(given) as run,
    ):
        run.chunks.output = run.chunks.output[0]
    with (
        pytest.raises(TraceError, match=r"is a tensor, and a tuple was assigned"),
        model.trace(given) as run,
    ):
        run.parts.first.output = (run.parts.first.output,)


def test_an_output_that_is_broadcast_is_noticed_once():
    model, given = hw.wrap(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))), torch.ones(2, 3)
    with (
        pytest.warns(HeadwaterNotice, match=r"shape \(2, 3\), the tensor assigned \(3,\), which"),
        model.trace(given),
    ):
        model[0].output = model[0].output[1]
    with model.trace(given):
        model[0].output = model[0].output[1]


def test_padded_ids_without_a_mask_are_refused():
    model = hw.load("tiny-gpt2")
    ids = model.generate(["Mary and John went to the", "Paul went to the"], max_new_tokens=2)
    with pytest.raises(PromptError, match="row 1 of the ids begins with padding"):
        model.trace(ids).__enter__()
    mask = (ids != model.tokenizer.pad_token_id).long()
    positions = (mask.cumsum(-1) - 1).clamp(0)
    with model.trace(ids, attention_mask=mask, position_ids=positions):
        padded = model.output.logits[1, -1]
    with model.trace(ids[1:, mask[1].bool()]):
        alone = model.output.logits[0, -1]
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-4)


def test_a_frozen_encoder_decoder_has_gradients():
    config = T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50,
        decoder_start_token_id=0,
    )  # fmt: skip
    module = T5ForConditionalGeneration(config).eval().requires_grad_(False)
    model, ids = hw.wrap(module), torch.tensor([[5, 9, 3, 1]])
    with model.trace(input_ids=ids, decoder_input_ids=ids) as run:
        hidden = run.encoder.block[0].output[0]
        with run.output.logits.square().sum().backward():
            gradient = hidden.grad
    caught = []

    def keep(_module, _args, output):
        output[0].requires_grad_()
        output[0].retain_grad()
        caught.append(output[0])

    handle = module.encoder.block[0].register_forward_hook(keep)
    module(input_ids=ids, decoder_input_ids=ids).logits.square().sum().backward()
    handle.remove()
    torch.testing.assert_close(gradient, caught[0].grad, rtol=1e-5, atol=1e-6)


def test_queries_of_a_joint_projection_are_edited_in_place():
    model = hw.load("tiny-gpt2")
    prompt = "Mary and John went to the"
    with model.trace(prompt) as run:
        run["layers.1.attn.q"][:] = 0
        edited = model.output.logits
    with model.trace(prompt) as run:
        run["layers.1.attn.q"] = torch.zeros_like(run["layers.1.attn.q"])
        assigned = model.output.logits
    assert torch.equal(edited, assigned)


def test_reasons_for_gradients_that_are_not_to_be_had():
    model = hw.wrap(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    with model.trace(torch.ones(2, 3)):
        first, second = model[0].output, model[1].output
        weight = model.module[1].weight
        with second.sum().backward():
            first.grad.save()
            with pytest.raises(GradientError, match="read it after the block"):
                weight.grad.save()
        with (
            second.sum().backward(inputs=[second]),
            pytest.raises(GradientError, match=r"backward\(inputs=...\) follows only"),
        ):
            first.grad.save()
    assert weight.grad is not None


def test_a_run_that_was_stopped_has_no_result():
    model = hw.load("tiny")
    with model.generate("Mary and John", max_new_tokens=3) as run:
        for _ in run.steps():
            run.stop()
            break
        with pytest.raises(OutOfOrderError, match=r"run.stop\(\) ended the model"):
            run.result.save()
    with pytest.raises(OutsideTraceError, match=r"run.stop\(\) ended the model"):
        run.result.save()


def test_after_the_end_of_a_run_nothing_is_said_never_to_have_run():
    model = hw.load("tiny")
    with model.trace("Mary and John") as run:
        result = run.result
        assert model.output is result  # at hand, though nobody had asked for it by that name
        late = (
            lambda: model.input,
            lambda: model.model.layers[0].output,
            lambda: model.model.layers[1].mlp.input,
            lambda: model.model.embed_tokens.output,
        )
        for read in late:
            with pytest.raises(OutOfOrderError, match="asked for too late"):
                read()
    with model.generate("Mary and John", max_new_tokens=3) as run:
        ids = run.result
        with pytest.raises(OutOfOrderError, match=r"too late(.|\n)*run\.keep\(\[model\]\)"):
            model.output.save()
    assert torch.equal(ids, model.generate("Mary and John", max_new_tokens=3))


@pytest.mark.parametrize("outer", ["greenlet", "thread"])
@pytest.mark.parametrize("inner", ["greenlet", "thread"])
def test_a_hook_of_the_model_may_trace_the_same_model(outer: str, inner: str):
    model = hw.load("tiny")
    sites = ["layers.0.resid_post", "layers.2.resid_post"]
    if inner == outer == "greenlet":  # runs that ask for patterns in several threads wait
        sites.insert(0, "layers.0.attn.pattern")

    def read(prompt: str, worker: str) -> list[Tensor]:
        with model.trace(prompt, worker=worker) as run:
            return [*(run[site] for site in sites), run.output.logits]

    expected, other = read("Mary and John went", outer), read("John and", inner)
    found: list[Tensor] = []

    def hook(*_: object) -> None:
        handle.remove()
        found.extend(read("John and", inner))

    handle = model.module.model.layers[1].register_forward_hook(hook)
    assert all(map(torch.equal, read("Mary and John went", outer), expected))
    assert all(map(torch.equal, found, other))
    assert len(found) == len(other)
    assert_nothing_left(model.module)


def test_a_scripted_module():
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with warnings.catch_warnings(action="ignore"):  # torch deprecates it
        scripted = torch.jit.trace(module, torch.ones(2, 3))
    with hw.wrap(scripted).trace(torch.ones(2, 3)) as run:
        result = run.output
    assert torch.equal(result, module(torch.ones(2, 3)))


class FillsIn(nn.Module):
    """Writes into the dictionary that a part of it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.last = Holds("dict"), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        held = self.part.inner(x)
        held["value"] = held["value"] * 3
        held["more"] = x
        return self.last(held["value"])


def test_a_container_that_the_model_fills_is_not_taken_for_an_edit():
    model = hw.wrap(FillsIn())
    with model.trace(torch.ones(2)) as run:
        held = run.part.inner.output
        assert list(held) == ["value"]
        given = run.last.input
        result = run.output
    assert given.tolist() == [6, 6]
    assert sorted(held) == ["more", "value"]
    assert torch.equal(result, model.module.last(given))


def _second(calls, do) -> None:
    for call in calls:
        if call.index == 1:
            do()


class HandsOn(nn.Module):
    """Takes and returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, held: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"value": self.linear(held["value"])}


def test_a_container_that_is_handed_on_is_changed_where_the_model_is():
    module, given = nn.Sequential(HandsOn(), HandsOn()), {"value": torch.ones(3, 4)}
    with hw.wrap(module).trace(given) as run:
        run["0"].output["value"].save()
        run["1"].input["value"] = torch.zeros(3, 4)
        result = run.output["value"]
    assert torch.equal(result, module[1]({"value": torch.zeros(3, 4)})["value"])


def test_what_was_detached_is_no_part():
    with hw.wrap(nn.Linear(3, 3)).trace(torch.ones(2, 3)) as run:
        whole = run.output
        probe = whole.detach()[0].requires_grad_()
        row = probe[1:]
        loss = (whole * 2).sum() + (probe * 3).sum() + (row * 10).sum()
        with loss.backward():
            assert row.grad.tolist() == [10, 10]
            assert probe.grad.tolist() == [3, 13, 13]
            assert (whole.grad == 2).all()
            with pytest.raises(GradientError, match="it was detached on the way"):
                whole.detach()[0].grad.save()


def test_a_view_as_complex_numbers_has_a_gradient_of_its_own():
    with hw.wrap(nn.Linear(3, 4)).trace(torch.ones(2, 3)) as run:
        turned = torch.view_as_complex(run.output.reshape(2, 2, 2))
        loss = (turned * torch.tensor([1 + 2j, 3 - 1j])).real.sum()
        (expected,) = torch.autograd.grad(loss, turned, retain_graph=True)
        with loss.backward():
            assert torch.equal(turned.grad, expected)


def test_numbers_of_calls_count_from_where_the_calls_were_named():
    module = Outer()
    model = hw.wrap(module.requires_grad_(False))
    with model.trace(torch.ones(1, 3)) as run:
        calls = run.calls("inner.linear")
        for outer in run.calls("inner"):
            if outer.index == 1:
                calls[5].skip(torch.full((1, 3), 7.0))
                break
        assert run.output.tolist() == [[7, 7, 7]]
    with (
        pytest.raises(OutOfOrderError, match=r"Write calls = run.calls\(model.inner.linear\) bef"),
        model.trace(torch.ones(1, 3)) as run,
    ):
        _second(run.calls("inner"), lambda: run.calls("inner.linear")[5].skip(torch.zeros(1, 3)))
