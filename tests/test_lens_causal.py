"""A lens put to the test: residuals are changed, and the model runs on from there."""

from __future__ import annotations

import functools
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import headwater as hw
import tiny_tasks
from headwater.errors import ModelStateError, PromptError, UnknownOptionError
from headwater.lenses.asked import Prompt, batches
from headwater.lenses.causal import LensCheck, Reader, check
from headwater.lenses.causal.claims import Claim
from headwater.lenses.causal.exchanges import Exchange
from headwater.lenses.causal.figures import ClaimRow
from headwater.lenses.causal.kept import KeptRow
from headwater.lenses.causal.moves import steps_for
from headwater.lenses.causal.places import Place, every_token, of_token
from headwater.lenses.causal.resampling import correlation, mean, ranked, ratio, slope
from headwater.lenses.causal.words import sentence
from headwater.lenses.intervals import Figure
from headwater.lenses.recurrence import alike, kept, uses, with_control
from headwater.lenses.translators import fit_lens
from headwater.models import Model
from headwater.precision import context_for
from headwater.zoo.truths.induction import induction_model
from shape_checks import unchecked
from tiny_models import BUILDERS, VOCAB, build

TWINS = ("GPT-2", "Llama", "Gemma 2", "GPT-NeoX", "Mamba")
"""Families of which every number is computed a second time, by plain hooks on the whole model."""
EXACT = {"rtol": 0.0, "atol": 1e-10}
PROMPTS = [
    [5, 9, 11, 5, 30, 9, 40, 11, 12],
    [7, 8, 20, 21, 8, 22, 20, 23],
    [3, 33, 34, 35, 33, 36, 50, 34, 51, 52],
]
"""Ids in which tokens recur; of different lengths."""


# the slow twin: hooks on the stock module, the whole prompt, one run a patch


class Twin:
    """A model looked at and changed by plain hooks alone."""

    def __init__(self, model: Model) -> None:
        self.model, self.adapter = model, model.anatomy()

    def run(self, ids: Sequence[int], patch: tuple[str, int, Tensor] | None = None) -> Tensor:
        """Log-probabilities at every position, with one value of the stream put in."""
        with ExitStack() as stack, torch.no_grad():
            if patch is not None:
                stack.callback(self._putting(*patch).remove)
            return self._logits(ids).log_softmax(-1)

    def stream(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """The residual stream at every row."""
        seen: dict[str, Tensor] = {}

        def entering(_: nn.Module, args: Any, kwargs: Any) -> None:
            seen["input"] = _hidden(args, kwargs)[0].clone()

        def leaving(layer: int) -> Callable[..., None]:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                seen[f"r{layer}"] = _first(output)[0].clone()

            return hook

        layers = self.adapter.layers
        with ExitStack() as stack, torch.no_grad():
            handle = layers[0].register_forward_pre_hook(entering, with_kwargs=True)
            stack.callback(handle.remove)
            for number, layer in enumerate(layers):
                stack.callback(layer.register_forward_hook(leaving(number)).remove)
            self._logits(ids)
        return seen

    def read(self, value: Tensor) -> Tensor:
        """The lens: the model's own norm and head, as its config describes them."""
        module: Any = self.model.module
        assert self.adapter.final_norm is not None
        with context_for(module):
            logits = module.get_output_embeddings()(self.adapter.final_norm(value))
        cap = getattr(module.config, "final_logit_softcapping", None)
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        return logits.log_softmax(-1)

    def _logits(self, ids: Sequence[int]) -> Tensor:
        with context_for(self.model.module):
            return self.model.module(torch.tensor([list(ids)]), use_cache=False).logits[0]

    def _putting(self, row: str, position: int, value: Tensor) -> Any:
        if row == "input":

            def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
                hidden = _hidden(args, kwargs).clone()
                hidden[:, position] = value
                if args:
                    return (hidden, *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": hidden}

            return self.adapter.layers[0].register_forward_pre_hook(before, with_kwargs=True)

        def after(_: nn.Module, __: Any, output: Any) -> Any:
            hidden = _first(output).clone()
            hidden[:, position] = value
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return self.adapter.layers[int(row[1:])].register_forward_hook(after)


def _hidden(args: Any, kwargs: Any) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@functools.cache
def claims(family: str) -> LensCheck:
    return check(Reader.of_prompts(tiny_tasks.model(family), PROMPTS), sample=4, progress=False)


@functools.cache
def exchanges(family: str) -> LensCheck:
    reader = Reader.of_prompts(tiny_tasks.model(family), PROMPTS)
    return check(reader, sample=4, how="resample", progress=False)


# claims


@pytest.mark.parametrize("family", TWINS)
def test_what_a_move_does_is_what_hooks_on_the_whole_model_show(family: str) -> None:
    twin = Twin(tiny_tasks.model(family))
    for one in claims(family).findings:
        assert isinstance(one, Claim)
        row = ("input", "r0", "r1")[one.cell.row]
        ids, last = PROMPTS[one.cell.prompt], one.cell.position
        value = twin.stream(ids)[row][last]
        point = value.clone().requires_grad_()
        before = twin.read(point)
        token = int(before.argmax())
        assert one.token == token
        (gradient,) = torch.autograd.grad(before[token], point)
        gradient = gradient / gradient.norm()
        clean = twin.run(ids)[last, token]
        assert one.output == pytest.approx(float(clean), abs=1e-10)
        for predicted, actual, size in zip(one.predicted, one.actual, one.size, strict=True):
            if math.isnan(predicted):
                continue
            step = math.copysign(size * float(value.norm()), predicted)
            moved = value + step * gradient
            said = twin.read(moved)[token] - before[token]
            did = twin.run(ids, (row, last, moved))[last, token] - clean
            assert predicted == pytest.approx(float(said.detach()), abs=1e-10)
            assert actual == pytest.approx(float(did), abs=1e-10)


@pytest.mark.parametrize("family", TWINS)
def test_a_move_makes_the_lens_fall_by_what_was_asked_for(family: str) -> None:
    for one in claims(family).findings:
        assert isinstance(one, Claim)
        assert one.asked[:4] == (-1.0, -0.25, -0.5, -2.0)
        for asked, predicted in zip(one.asked, one.predicted, strict=True):
            assert math.isnan(predicted) or predicted == pytest.approx(asked, rel=2e-4)


@pytest.mark.parametrize("family", TWINS)
def test_no_log_probability_is_asked_to_rise_above_zero(family: str) -> None:
    for one in claims(family).findings:
        assert isinstance(one, Claim)
        for asked, predicted in zip(one.asked, one.predicted, strict=True):
            assert math.isnan(predicted) or one.logprob + asked < 1e-9


@pytest.mark.parametrize("family", TWINS)
def test_the_move_behind_all_layers_is_read_by_none(family: str) -> None:
    twin = Twin(tiny_tasks.model(family))
    for one in claims(family).findings:
        assert isinstance(one, Claim)
        row = ("input", "r0", "r1")[one.cell.row]
        stream = twin.stream(PROMPTS[one.cell.prompt])
        point = stream[row][one.cell.position].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(twin.read(point)[one.token], point)
        length = one.size[0] * float(point.detach().norm())
        final = stream["r1"][one.cell.position]
        moved = final - length * gradient / gradient.norm()
        with torch.no_grad():
            expected = (twin.read(moved) - twin.read(final))[one.token]
        assert one.direct == pytest.approx(float(expected), abs=1e-10)


@pytest.mark.parametrize("family", TWINS)
def test_at_the_last_row_predicted_and_actual_are_one(family: str) -> None:
    for one in (claims(family), exchanges(family)):
        assert one.identity is not None
        assert one.identity < 1e-10
        assert one["r1"].slope.value == pytest.approx(1, abs=1e-10)
        assert one["r1"].correlation == pytest.approx(1, abs=1e-10)
        assert one["r1"].right_sign == 1


@pytest.mark.parametrize("family", BUILDERS)
def test_the_own_value_changes_nothing_at_any_row_of_any_family(family: str) -> None:
    model = tiny_tasks.model(family)
    rows = Reader.of_prompts(model, PROMPTS).rows
    with model.frozen():
        place = Place(model, rows, PROMPTS[0])
        for row in range(len(rows)):
            patches = [(position, place.values(row)[position]) for position in (0, 4, 8)]
            found = place.after(row, patches, every_token)
            torch.testing.assert_close(found, place.logprobs.expand(3, -1), **EXACT)


@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Gemma 2"])
def test_the_stream_between_attention_and_mlp_is_changed_there(family: str) -> None:
    model = tiny_tasks.model(family)
    reader = Reader.of_prompts(model, PROMPTS, sublayers=True)
    row = reader.row("r0.mid")
    generator = torch.Generator().manual_seed(0)
    with model.frozen():
        place = Place(model, reader.rows, PROMPTS[0])
        value = torch.randn(place.values(row)[0].shape, generator=generator, dtype=torch.float64)
        found = place.after(row, [(3, value)], every_token)[0]
        # what follows the sum is the rest of the block, which sees only this position
        whole = torch.cat([place.values(row)[:3], value[None], place.values(row)[4:]])
        onward = model.forward(
            torch.tensor([PROMPTS[0]]),
            taps={reader.rows[row].site: lambda _: whole[None]},
        )[0, -1].log_softmax(-1)
    torch.testing.assert_close(found, onward, **EXACT)


def _unwritten(family: str) -> Model:
    """A model whose last layer writes next to nothing that depends on the stream."""
    module: Any = build(family, dtype=torch.float64)
    block = module.transformer.h[1]
    with torch.no_grad():
        for part in (block.attn.c_proj, block.mlp.c_proj):
            part.weight.zero_()
            part.bias.zero_()
    return hw.wrap(module, tiny_tasks.tokenizer())


def test_where_later_layers_write_nothing_the_output_does_what_the_lens_says() -> None:
    found = check(Reader.of_prompts(_unwritten("GPT-2"), PROMPTS), sample=3, progress=False)
    row = found["r0"]
    assert isinstance(row, ClaimRow)
    assert row.slope.value == pytest.approx(1, abs=1e-9)
    assert row.direct == pytest.approx(1, abs=1e-9)
    assert row.linear == 2
    assert row.is_followed


def test_where_a_later_layer_drowns_the_stream_the_output_does_not_follow() -> None:
    module: Any = build("GPT-2", dtype=torch.float64)
    with torch.no_grad():
        bias = module.transformer.h[1].mlp.c_proj.bias
        bias.copy_(1e5 * torch.randn(bias.shape, generator=torch.Generator().manual_seed(0)))
    model = hw.wrap(module, tiny_tasks.tokenizer())
    row = check(Reader.of_prompts(model, PROMPTS), sample=3, progress=False)["r0"]
    assert isinstance(row, ClaimRow)
    assert abs(row.slope.value) < 0.01


def test_random_moves_are_as_long_and_at_a_right_angle() -> None:
    from headwater.lenses.causal.claims import RANDOM, _around

    value, move = torch.randn(2, 12, dtype=torch.float64, generator=torch.Generator())
    points = _around(value, move, move.norm(), torch.Generator().manual_seed(1))
    away = points - value
    assert len(away) == RANDOM
    torch.testing.assert_close(away.norm(dim=-1), move.norm().expand(RANDOM))
    torch.testing.assert_close(away @ move, torch.zeros(RANDOM, dtype=torch.float64))
    torch.testing.assert_close(away.sum(0), torch.zeros(12, dtype=torch.float64))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Llama", {}),
        ("Gemma 2", {}),
        ("Granite", {}),
        ("GPT-2", {"readout": "none"}),
        ("GPT-2", {"readout": "next-norm"}),
        ("Llama", {"decode_with": "embedding"}),
    ],
)
def test_the_gradient_is_that_of_the_lens(family: str, options: dict[str, Any]) -> None:
    model = tiny_tasks.model(family)
    reader = Reader.of_prompts(model, PROMPTS, **options)
    _compare_with_differences(model, reader)


def test_the_gradient_goes_through_a_translator() -> None:
    model = tiny_tasks.model("Llama")
    plain = Reader.of_prompts(model, PROMPTS)
    turn = torch.randn(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reader = Reader(model, plain.prompts, plain.rows, plain.readout, lambda read, _: read @ turn)
    _compare_with_differences(model, reader)


def _compare_with_differences(model: Model, reader: Reader) -> None:
    with model.frozen():
        value = Place(model, reader.rows, PROMPTS[0]).values(1)[-1]
        gradient = reader.gradient(value, 1, 17)
        step = 1e-5 * torch.eye(len(value), dtype=torch.float64)
        ends = [reader.logprobs(value + sign * step, 1)[:, 17] for sign in (1, -1)]
    # a central difference errs by h^2 and by rounding / h, both about 1e-10 here
    torch.testing.assert_close(gradient, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-8)


def test_a_model_read_by_its_own_forward_is_tested_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_tasks.model("Llama")
    reader = Reader.of_prompts(model, PROMPTS)
    elementwise = check(reader, sample=2, progress=False)
    monkeypatch.setattr(reader.readout, "head", None)
    replayed = check(reader, sample=2, progress=False)
    for one, other in zip(elementwise.figures, replayed.figures, strict=True):
        assert one.slope.value == pytest.approx(other.slope.value, abs=1e-9)


def test_a_lens_is_tested_as_it_was_read() -> None:
    model = tiny_tasks.model("Llama")
    lens = hw.lens(model, PROMPTS, sublayers=True, writes=True, readout="next-norm")
    reader = Reader.of_lens(model, lens)
    assert [row.name for row in reader.rows] == ["input", "r0.mid", "r0", "r1.mid", "r1"]
    assert [list(one.ids) for one in reader.prompts] == PROMPTS
    assert reader.readout.reading == "next-norm"
    prompt, position = 1, 4
    with model.frozen():
        place = Place(model, reader.rows, PROMPTS[prompt][: position + 1])
        for row, name in enumerate(row.name for row in reader.rows):
            read = reader.logprobs(place.values(row)[-1:], row)[0]
            shown = lens.topk(1)
            number = lens.row(name)
            assert int(read.argmax()) == int(shown.ids[number, prompt, position, 0])
            assert float(read.max()) == pytest.approx(
                float(shown.logprobs[number, prompt, position, 0]), abs=1e-10
            )


def test_a_translated_lens_wants_its_translator() -> None:
    model = tiny_tasks.model("Llama")
    corpora = (PROMPTS, [ids[::-1] for ids in PROMPTS])
    one, other = (fit_lens(model, corpus, "bias", steps=2) for corpus in corpora)
    lens = hw.lens(model, PROMPTS, translator=one)
    with pytest.raises(UnknownOptionError, match="read through a translator"):
        Reader.of_lens(model, lens)
    with pytest.raises(UnknownOptionError, match="through another translator"):
        Reader.of_lens(model, lens, other)
    with pytest.raises(UnknownOptionError, match="read without one"):
        Reader.of_lens(model, hw.lens(model, PROMPTS), one)
    found = check(Reader.of_lens(model, lens, one), sample=2, progress=False)
    assert found.identity is not None
    assert found.identity < 1e-10
    plain = check(Reader.of_prompts(model, PROMPTS), sample=2, progress=False)
    assert plain["r0"].slope.value != pytest.approx(found["r0"].slope.value, abs=1e-6)


# exchanges


@pytest.mark.parametrize("family", TWINS)
def test_what_another_residual_does_is_what_hooks_on_the_whole_model_show(family: str) -> None:
    twin = Twin(tiny_tasks.model(family))
    for one in exchanges(family).findings:
        assert isinstance(one, Exchange)
        row = ("input", "r0", "r1")[one.cell.row]
        ids, last = PROMPTS[one.cell.prompt], one.cell.position
        own = twin.stream(ids)[row][last]
        prompt, position = one.donor
        value = twin.stream(PROMPTS[prompt])[row][position]
        before, after = twin.run(ids)[last], twin.run(ids, (row, last, value))[last]
        with torch.no_grad():
            said = twin.read(value) - twin.read(own)
        expected = {
            int(token)
            for read in (twin.read(own), twin.read(value), before)
            for token in read.argsort(descending=True)[:20]
        }
        assert set(one.tokens) == expected
        tokens = list(one.tokens)
        for found, change in ((one.predicted, said), (one.actual, after - before)):
            wanted = change[tokens] - change[tokens].mean()
            torch.testing.assert_close(found, wanted, **EXACT)
        assert one.kl_output == pytest.approx(float((before.exp() * (before - after)).sum()))
        assert one.donor != (one.cell.prompt, one.cell.position)


# steps


def test_a_step_is_found_where_the_function_has_changed_by_so_much() -> None:
    wanted = torch.tensor([-2.0, -0.5, 0.5, 3.0], dtype=torch.float64)
    found = steps_for(lambda step: step + step**3, 1.0, wanted, most=10.0)
    torch.testing.assert_close(found + found**3, wanted, rtol=1e-4, atol=0.0)


def test_a_change_out_of_reach_has_no_step() -> None:
    wanted = torch.tensor([-1.0, 0.5, 1.5], dtype=torch.float64)
    found = steps_for(lambda step: 1 - torch.exp(-step), 1.0, wanted, most=100.0)
    assert found.isnan().tolist() == [False, False, True]
    torch.testing.assert_close(found[:2], -(1 - wanted[:2]).log(), rtol=1e-3, atol=0.0)


def test_no_step_is_longer_than_the_longest() -> None:
    wanted = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    assert bool(steps_for(lambda step: step, 1.0, wanted, most=2.0).isnan().all())


# intervals


def test_a_mean_of_independent_cases_has_nearly_students_interval() -> None:
    values = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = mean(values, range(40), seed=0)
    half = 2.0227 * float(values.std()) / math.sqrt(40)  # t(0.975, 39)
    assert found.value == pytest.approx(float(values.mean()))
    # a thousand resamples place the ends within a few per cent
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_intervals_over_few_groups_hold_the_truth_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    held = 0
    for trial in range(200):
        # cases of a group share most of what is random: single cases would give false certainty
        of_group = torch.randn(6, dtype=torch.float64, generator=generator)
        noise = 0.1 * torch.randn(6, 5, dtype=torch.float64, generator=generator)
        values = (of_group[:, None] + noise).flatten()
        found = mean(values, [place // 5 for place in range(30)], seed=trial)
        held += found.low <= 0 <= found.high
    assert held >= 180  # 190 expected, standard deviation 3


def test_a_mean_is_of_the_cases_that_have_a_number() -> None:
    values = torch.tensor([1.0, math.nan, 2.0, 6.0, math.nan], dtype=torch.float64)
    known = mean(values[[0, 2, 3]], ["a", "b", "b"], seed=0)
    assert mean(values, ["a", "c", "b", "b", "c"], seed=0) == known
    assert known.value == 3


def test_one_group_gives_a_figure_and_no_interval() -> None:
    found = ratio(torch.tensor([1.0, 2.0]).double(), torch.tensor([2.0, 2.0]).double(), [0, 0], 0)
    assert found.value == 0.75
    assert math.isnan(found.low)
    assert found.side() == 0


def test_a_slope_is_that_of_the_line_through_zero() -> None:
    given = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    noise = torch.tensor([3.0, 0.0, -1.0], dtype=torch.float64)  # at a right angle to `given`
    assert slope(given, 0.4 * given + noise, range(3), 0).value == pytest.approx(0.4)


def test_a_correlation_is_pearsons_and_none_where_nothing_varies() -> None:
    one, other = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator())
    expected = torch.corrcoef(torch.stack([one, other]))[0, 1]
    assert correlation(one, other, range(9), 0).value == pytest.approx(float(expected))
    assert math.isnan(correlation(one, torch.ones(9).double(), range(9), 0).value)


def test_a_correlation_of_few_groups_has_no_interval_and_none_leaves_its_range() -> None:
    one = torch.arange(9, dtype=torch.float64)
    other = one + torch.tensor([0.0, 1, 0, -1, 0, 1, 0, -1, 0], dtype=torch.float64)
    few = correlation(one[:7], other[:7], range(7), 0)
    assert math.isnan(few.low)
    assert math.isnan(few.high)
    many = correlation(one, other, range(9), 0)
    assert 0 < many.low < many.value < many.high <= 1


def test_equal_values_share_their_ranks() -> None:
    assert ranked(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]


# what is said


def _row(**figures: Any) -> ClaimRow:
    given = {
        "row": "r1",
        "title": "residual stream after layer 1",
        "cells": 8,
        "slope": Figure(0.31, 0.2, 0.4),
        "correlation": 0.9,
        "right_sign": 1.0,
        "size": 0.1,
        "noise": 0.0,
        "random": 0.02,
    }
    return ClaimRow(**{**given, **figures})


def test_a_claim_is_put_in_words() -> None:
    found = claims("GPT-2")
    assert sentence(found, _row()) == (
        "Moving the residual stream after layer 1 so that the lens gives up its token by 1 nat "
        "lowers the output's by 0.31 nats [0.20, 0.40]; a random move of the same length changes "
        "it by 0.02."
    )
    assert "by 2 nats raises the output's by 0.62 nats [0.40, 0.80]" in sentence(
        found, _row(slope=Figure(-0.31, -0.4, -0.2), nats=2.0)
    )
    assert sentence(found, _row(cells=0)) == (
        "No move of the residual stream after layer 1 makes the lens give up its token by 1 nat."
    )


def test_a_row_follows_only_where_a_random_move_does_less() -> None:
    assert _row().is_followed
    assert not _row(random=0.4).is_followed
    assert not _row(slope=Figure(0.31, -0.1, 0.7)).is_followed


@pytest.mark.parametrize("found", [claims, exchanges], ids=["claim", "resample"])
def test_a_check_prints_and_exports(found: Callable[[str], LensCheck]) -> None:
    one = found("Llama")
    printed = repr(one)
    assert "Lens of" in printed
    assert "95 % over prompts" in printed
    assert "r1 is the model's own prediction" in printed
    assert all(len(line) <= 100 for line in printed.splitlines()[:8])
    table = one.table()
    assert [row[0] for row in table["rows"]] == ["r1", "r0", "input"]
    assert {len(row) for row in table["rows"]} == {len(table["headings"])}
    rows = list(one.rows())
    assert [row["row"] for row in rows] == ["input", "r0", "r1"]
    assert rows[2]["slope"] == pytest.approx(1)
    assert len(json.loads(json.dumps(one.to_dict()))["rows"]) == 3
    assert len(one.sentences) == 3
    assert list(one.to_frame()["row"]) == ["input", "r0", "r1"]
    assert one._repr_html_().startswith("<pre>")


def test_the_same_seed_gives_the_same_check() -> None:
    reader = Reader.of_prompts(tiny_tasks.model("Llama"), PROMPTS)
    again = check(reader, sample=4, progress=False)
    assert repr(again) == repr(claims("Llama"))
    other = check(reader, sample=2, seed=1, how="resample", progress=False)
    assert {one.cell for one in other.findings} - {one.cell for one in again.findings}


def test_cells_are_tested_as_asked() -> None:
    reader = Reader.of_prompts(tiny_tasks.model("Llama"), PROMPTS)
    found = check(reader, cells=[("r0", 1, 3), (0, 1, 3), ("input", 0, 0)], progress=False)
    assert [tuple(one.cell) for one in found.findings] == [(1, 1, 3), (0, 0, 0)]
    assert found.places == 2
    assert found.identity is None
    assert found.over == "prompts"
    with pytest.raises(UnknownOptionError, match="row 'r1' was not tested"):
        found["r1"]


def test_one_prompt_has_intervals_over_its_positions() -> None:
    reader = Reader.of_prompts(tiny_tasks.model("Llama"), PROMPTS[0])
    found = check(reader, sample=5, progress=False)
    assert found.over == "positions"
    assert found["r0"].slope.low < found["r0"].slope.value < found["r0"].slope.high


def test_a_model_in_bfloat16_is_tested_in_its_own_numbers() -> None:
    model = hw.load("tiny", dtype="bfloat16")
    reader = Reader.of_prompts(model, "Mary and John went to the store")
    found = check(reader, sample=4, progress=False)
    row = found["r3"]
    assert row.slope.value == pytest.approx(1, abs=0.05)  # logits of 20 have steps of 0.125
    assert "Noise (the own value put in)" in repr(found)


# refusals


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"how": "claims"}, UnknownOptionError, "how='claims' is unknown"),
        ({"sample": 0}, UnknownOptionError, "sample=0: at least one place"),
        ({"nats": -1.0}, UnknownOptionError, "nats=-1.0: a change is above 0"),
        ({"cells": []}, PromptError, "cells is empty"),
        ({"cells": [("r9", 0, 0)]}, UnknownOptionError, "no row 'r9'"),
        ({"cells": [("m0", 0, 0)]}, UnknownOptionError, "no row 'm0'"),
        ({"cells": [("r0", 0, 9)]}, PromptError, "no position 9 in prompt 0: there are 3 prompts"),
        ({"cells": [("r0", 3, 0)]}, PromptError, "no position 0 in prompt 3"),
        ({"cells": [("r0", 0, -1)]}, PromptError, "no position -1 in prompt 0"),
    ],
)
def test_what_cannot_be_tested_is_refused(
    options: dict[str, Any], error: type[Exception], said: str
) -> None:
    reader = Reader.of_prompts(tiny_tasks.model("Llama"), PROMPTS)
    with unchecked(), pytest.raises(error, match=said):
        check(reader, **options)


def test_one_token_has_no_other_residual_to_put_in() -> None:
    reader = Reader.of_prompts(tiny_tasks.model("Llama"), [5])
    with pytest.raises(PromptError, match="one token was read"):
        check(reader, how="resample")
    assert check(reader, progress=False).places == 1


def test_dropout_is_refused() -> None:
    module = build("GPT-2")
    model = hw.wrap(module, tiny_tasks.tokenizer())
    reader = Reader.of_prompts(model, PROMPTS)
    module.train()
    with pytest.raises(ModelStateError):
        check(reader)


def _hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


@contextmanager
def _counted(model: Model) -> Iterator[None]:
    before = _hooks(model.module), [one.requires_grad for one in model.module.parameters()]
    yield
    after = _hooks(model.module), [one.requires_grad for one in model.module.parameters()]
    assert before == after


def test_nothing_stays_on_the_model_after_an_exception() -> None:
    model = tiny_tasks.model("GPT-2")
    rows = Reader.of_prompts(model, PROMPTS).rows

    def broken(logits: Tensor, batch: Any) -> Tensor:
        raise RuntimeError("broken objective")

    with _counted(model), model.frozen():
        place = Place(model, rows, PROMPTS[0])
        with pytest.raises(RuntimeError, match="broken objective"):
            place.after(1, [(0, place.values(1)[0])], broken)
    with _counted(model):
        check(Reader.of_prompts(model, PROMPTS), sample=1, progress=False)
        kept(model, PROMPTS, sample=1, progress=False)


# tokens that recur


@pytest.mark.parametrize("family", TWINS)
def test_what_a_recurrence_loses_is_what_hooks_on_the_whole_model_show(family: str) -> None:
    model = tiny_tasks.model(family)
    twin = Twin(model)
    streams = [twin.stream(ids) for ids in PROMPTS]
    found = kept(model, PROMPTS, sample=4, progress=False)
    recurring, once = uses([Prompt(tuple(ids), None) for ids in PROMPTS])
    draw = random.Random(0)
    prompts = [Prompt(tuple(ids), None) for ids in PROMPTS]
    picked = [recurring[one] for one in sorted(draw.sample(range(len(recurring)), 4))]
    picked = [with_control(one, prompts, draw) for one in picked]
    others = [alike(one, once, prompts, draw) for one in picked]
    rows = ("input", "r0", "r1")
    for number, one in enumerate(found.findings):
        use, other, row = picked[number // 3], others[number // 3], rows[one.row]
        assert (one.prompt, one.source, one.target) == (use.prompt, use.source, use.target)
        off = torch.cat([stream[row][1:] for stream in streams]).mean(0)

        def loss(prompt: int, source: int, target: int, row: str = row, off: Tensor = off) -> float:
            ids = PROMPTS[prompt]
            clean, patched = twin.run(ids), twin.run(ids, (row, source, off))
            return float((clean - patched)[target - 1, ids[target]])

        assert one.effect == pytest.approx(loss(use.prompt, use.source, use.target), abs=1e-10)
        assert use.control is not None
        assert one.control == pytest.approx(loss(use.prompt, use.control, use.target), abs=1e-10)
        assert other is not None
        expected = loss(other.prompt, other.source, other.target)
        assert one.alike == pytest.approx(expected, abs=1e-10)
        with torch.no_grad():
            read = twin.read(streams[use.prompt][row][use.source])
        assert one.rank == 1 + int((read > read[one.token]).sum())


@pytest.mark.parametrize("family", TWINS)
def test_the_last_row_reaches_no_later_position(family: str) -> None:
    found = kept(tiny_tasks.model(family), PROMPTS, sample=4, progress=False)
    assert found["r1"].effect == Figure(0, 0, 0)
    assert found["r1"].control == Figure(0, 0, 0)
    assert math.isnan(found["r1"].visible.value)
    assert not found["r1"].is_used


def test_uses_are_all_pairs_of_a_token_and_its_next_occurrence() -> None:
    draw = random.Random(0)
    prompts = [Prompt(tuple(draw.choices(range(8), k=20)), None) for _ in range(5)]
    recurring, once = uses(prompts)
    expected, alone = [], []
    for number, prompt in enumerate(prompts):
        for source in range(1, 20):
            later = [at for at in range(source + 1, 20) if prompt.ids[at] == prompt.ids[source]]
            if not later:
                alone.append((number, source))
            elif later[0] > source + 1:
                expected.append((number, source, later[0]))
    assert [(one.prompt, one.source, one.target) for one in recurring] == expected
    assert [(one.prompt, one.source) for one in once] == alone


def test_controls_are_near_hold_another_token_and_are_no_neighbors() -> None:
    draw = random.Random(0)
    prompts = [Prompt(tuple(draw.choices(range(12), k=30)), None) for _ in range(5)]
    recurring, once = uses(prompts)
    controlled = 0
    for use in recurring:
        ids = prompts[use.prompt].ids
        control = with_control(use, prompts, draw).control
        if control is not None:
            controlled += 1
            assert 1 <= control < use.target - 1
            assert 2 <= abs(control - use.source) <= 5
            assert ids[control] != ids[use.target]
        other = alike(use, once, prompts, draw)
        assert other is not None
        assert other.target - other.source == use.target - use.source
        assert other.target < len(prompts[other.prompt].ids)
        later = prompts[other.prompt].ids[other.source + 1 :]
        assert prompts[other.prompt].ids[other.source] not in later
    assert controlled > len(recurring) / 2


LETTERS = "ABCDEFG"
INDUCED = ["C A B D E F A B", "D B E G C A B E", "G F A C B D F A", "E C G B D A C G"]
"""The third token stands after one that is said again just before it recurs."""


def test_a_token_that_induction_copies_is_found_to_be_kept() -> None:
    found = kept(induction_model(8.0), INDUCED, sample=50, progress=False)
    copied = [one for one in found.findings if one.target == 7]
    others = [one for one in found.findings if one.target == 6]
    assert {one.source for one in copied} == {2}
    for one in copied:
        if one.row == 2:
            continue
        # p = e^5 / (e^5 + 7) falls to about one in eight: by 2 nats
        assert one.effect > 1.5
        assert abs(one.control) < 0.1
    # nothing announces the token before it: each of six tokens gets a logit of 5 / 6
    assert all(abs(one.effect) < 0.9 for one in others if one.row == 1)


def test_kept_says_where_a_token_is_kept() -> None:
    found = kept(induction_model(8.0), [one[2:] for one in INDUCED], progress=False)
    assert [one.is_used for one in found.figures] == [True, True, False]
    assert found.sentences[0].startswith("Kept for later use at input, r0: most at")


def test_a_model_without_a_mechanism_keeps_nothing() -> None:
    draw = random.Random(0)
    prompts = []
    for _ in range(10):
        ids = draw.sample(range(3, VOCAB), 12)
        ids[9] = ids[4]
        prompts.append(ids)
    found = kept(tiny_tasks.model("GPT-2"), prompts, progress=False)
    for one in found.figures:
        assert one.difference.low <= 0 <= one.difference.high
    assert "At no row is the residual at a token shown to support" in repr(found)


def test_a_residual_drawn_from_elsewhere_can_be_put_in() -> None:
    model = tiny_tasks.model("Llama")
    twin = Twin(model)
    found = kept(model, PROMPTS, sample=2, off="resample", progress=False)
    donors = [
        (prompt, position) for prompt, ids in enumerate(PROMPTS) for position in range(1, len(ids))
    ]
    for one in found.findings:
        row = ("input", "r0", "r1")[one.row]
        ids = PROMPTS[one.prompt]
        clean = twin.run(ids)
        effects = [
            float(
                (clean - twin.run(ids, (row, one.source, twin.stream(PROMPTS[prompt])[row][at])))[
                    one.target - 1, one.token
                ]
            )
            for prompt, at in donors
            if (prompt, at) != (one.prompt, one.source)
        ]
        assert min(abs(effect - one.effect) for effect in effects) < 1e-10


def test_kept_prints_and_exports() -> None:
    found = kept(tiny_tasks.model("Llama"), PROMPTS, sample=4, progress=False)
    printed = repr(found)
    assert printed.startswith("Tokens of")
    assert ": 4 of 6 looked at" in printed
    table = found.table()
    assert [row[0] for row in table["rows"]] == ["r1", "r0", "input"]
    assert {len(row) for row in table["rows"]} == {len(table["headings"])}
    plain = json.loads(json.dumps(found.to_dict()))
    assert [row["row"] for row in plain["rows"]] == ["input", "r0", "r1"]
    assert {one["text"] for one in plain["findings"]} <= {f"w{one}" for one in range(VOCAB)}
    assert list(found.to_frame()["row"]) == ["input", "r0", "r1"]
    with pytest.raises(UnknownOptionError, match="no row 'r7'"):
        found["r7"]


def _kept_row(row: str, difference: Figure, visible: Figure) -> KeptRow:
    nothing = Figure(0.0, 0.0, 0.0)
    effect, more = Figure(0.4, 0.3, 0.5), Figure(0.3, -0.1, 0.7)
    return KeptRow(row, row, 9, effect, nothing, difference, nothing, more, visible, 0.0)


def test_what_is_kept_is_put_in_words() -> None:
    above, across = Figure(0.4, 0.2, 0.6), Figure(0.1, -0.2, 0.4)
    below = Figure(-0.4, -0.6, -0.2)
    rows = (
        _kept_row("input", across, above),  # visible, and not used
        _kept_row("r0", above, above),
        _kept_row("r1", above, below),
        _kept_row("r2", above, across),
    )
    found = kept(tiny_tasks.model("Llama"), PROMPTS, sample=1, progress=False)
    assert replace(found, figures=rows).sentences == [
        "Kept for later use at r0, r1, r2: most at r0, where replacing the residual takes 0.40 "
        "nats from the recurrence, a position nearby 0.00 (difference 0.40 [0.20, 0.60]).",
        "A token that does not recur supports what follows at the same distance by 0.00 nats at "
        "r0: recurring ones are not shown to be more (0.30 [-0.10, 0.70]).",
        "Kept visible means used: tokens that the lens shows better lose more at r0.",
        "Tokens that the lens shows better lose less at r1.",
    ]
    assert replace(found, figures=rows[-1:]).sentences[-1] == (
        "Kept visible is not shown to mean used: how well the lens shows a token does not go with "
        "what is lost, at r2."
    )
    assert replace(found, figures=rows[:1]).sentences == [
        "At no row is the residual at a token shown to support its recurrence by more than a "
        "position nearby does."
    ]


def test_one_prompt_has_intervals_over_its_tokens() -> None:
    found = kept(tiny_tasks.model("Llama"), PROMPTS[0], progress=False)
    assert found.over == "tokens"
    assert found["r0"].effect.low < found["r0"].effect.value < found["r0"].effect.high


@pytest.mark.parametrize(
    ("prompts", "options", "error", "said"),
    [
        ([[5]], {}, PromptError, "every prompt is one token, so no token can recur"),
        ([[5, 6, 7]], {}, PromptError, "no token recurs later in the prompt"),
        ([[5, 6, 7, 5], [8, 9, 9]], {}, PromptError, "no token recurs later in any of the 2"),
        (PROMPTS, {"off": "zero"}, UnknownOptionError, "off='zero' is unknown"),
        (PROMPTS, {"sample": 0}, UnknownOptionError, "sample=0"),
        (PROMPTS, {"layers": [7]}, UnknownOptionError, "no layer 7"),
    ],
)
def test_where_nothing_can_be_kept_it_is_said(
    prompts: Any, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with unchecked(), pytest.raises(error, match=said):
        kept(tiny_tasks.model("Llama"), prompts, **options)


def test_objectives_read_the_last_position() -> None:
    logits = torch.randn(2, 3, 7, dtype=torch.float64, generator=torch.Generator())
    expected = logits[:, -1] - logits[:, -1].exp().sum(-1, keepdim=True).log()
    (batch,) = batches(tiny_tasks.model("Llama"), [Prompt((5,), None)], 1)
    torch.testing.assert_close(every_token(logits, batch), expected)
    torch.testing.assert_close(of_token(4)(logits, batch), expected[:, 4])
    assert every_token(logits.to(torch.bfloat16), batch).dtype == torch.float32
