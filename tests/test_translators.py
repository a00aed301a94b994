"""Fitting translators, held against planted maps, dense autograd and plain loops."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import headwater as hw
import shape_checks
import tiny_models
import tiny_tasks
from headwater.errors import (
    HeadwaterNotice,
    NonFiniteError,
    PromptError,
    ResultError,
    RunFolderError,
    UnknownOptionError,
)
from headwater.lenses.readout import Readout
from headwater.lenses.residuals import prompts_of, read_rows, residuals
from headwater.lenses.rows import rows_of
from headwater.lenses.translators import Translator, as_translator, fit_lens
from headwater.lenses.translators.corpus import Corpus
from headwater.lenses.translators.divergence import divergence
from headwater.lenses.translators.moments import Moments
from headwater.models import Model

HIDDEN = "hidden_states"
HEADS = ("Llama", "GPT-2", "GPT-J", "Cohere", "Granite", "Gemma 2", "OPT", "BLOOM")
"""Plain, tied, with a bias, with a scale of either kind, softly capped."""


def prompts(count: int, length: int = 9, seed: int = 5) -> list[list[int]]:
    return tiny_models.tokens(count, length, seed=seed).tolist()


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed=3))[0]


def entering(args: Any, kwargs: Any) -> Tensor:
    return args[0] if args else kwargs[HIDDEN]


@contextmanager
def planted(model: Model) -> Iterator[tuple[Tensor, Tensor]]:
    """Make the last layer a rotation and a shift of what enters it."""
    width = model.anatomy().d_model
    turn, shift = rotation(width).to(model.dtype), normal(width, seed=4).to(model.dtype)

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        found = entering(args, kwargs) @ turn.mT + shift
        return (found, *output[1:]) if isinstance(output, tuple) else found

    handle = model.anatomy().layers[-1].register_forward_hook(hook, with_kwargs=True)
    try:
        yield turn, shift
    finally:
        handle.remove()


# least squares


def test_least_squares_recovers_a_planted_rotation_exactly() -> None:
    h, turn, shift = normal(300, 12), rotation(12), normal(12, seed=9)
    moments = Moments()
    moments.add(torch.stack([h, h @ turn.mT + shift]))
    found = moments.solve(0)
    assert torch.allclose(found.weight + torch.eye(12), turn, atol=1e-12)
    assert torch.allclose(found.bias, shift, atol=1e-12)
    assert found.rank == 12
    assert found.explained == pytest.approx(1, abs=1e-12)


def test_least_squares_equals_torchs_own_with_an_intercept() -> None:
    x, y = normal(200, 7) + 3, normal(200, 7, seed=1)
    moments = Moments()
    moments.add(torch.stack([x, y]))
    found = moments.solve(0)
    twin = torch.linalg.lstsq(torch.cat([x, torch.ones(200, 1)], dim=1).double(), y).solution
    assert torch.allclose(found.weight + torch.eye(7), twin[:7].mT, atol=1e-10)
    assert torch.allclose(found.bias, twin[7], atol=1e-10)
    left = (x @ twin[:7] + twin[7] - y).square().sum() / (y - y.mean(0)).square().sum()
    assert found.explained == pytest.approx(1 - float(left), abs=1e-10)


def test_sums_of_two_halves_are_those_of_the_whole() -> None:
    values = normal(3, 50, 6) + 10
    whole, halves = Moments(), Moments()
    whole.add(values)
    halves.add(values[:, :17])
    halves.add(values[:, 17:])
    for row in range(2):
        assert torch.allclose(halves.solve(row).weight, whole.solve(row).weight, atol=1e-11)
        assert torch.allclose(halves.solve(row).bias, whole.solve(row).bias, atol=1e-10)
        assert halves.solve(row).explained == pytest.approx(whole.solve(row).explained)


def test_sums_are_two_matrices_a_row_and_grow_in_place() -> None:
    rows, width = 6, 64
    values = normal(rows, 20, width).float()
    matrix = width**2 * torch.float64.itemsize
    moments = Moments()
    kept, most = allocated(lambda: moments.add(values))
    assert kept < (2 * rows) * matrix  # the final row has one
    assert most < (2 * rows + 3) * matrix
    kept, most = allocated(lambda: moments.add(values))
    assert kept == 0
    assert most < 3 * matrix


def allocated(work: Callable[[], None]) -> tuple[int, int]:
    """Bytes that tensors hold after some work, and at most while it ran, by the allocator."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as found:
        work()
    profiler: Any = found.profiler
    events = [one for one in profiler.kineto_results.events() if one.name() == "[memory]"]
    sizes = [one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())]
    assert sizes
    running = np.cumsum(sizes)
    return int(running[-1]), int(running.max())


def test_directions_that_the_corpus_never_shows_are_left_as_they_are() -> None:
    x, y = normal(200, 6), normal(200, 6, seed=1)
    x[:, 4:] = 2.0  # no variance
    moments = Moments()
    moments.add(torch.stack([x, y]))
    found = moments.solve(0)
    assert found.rank == 4
    assert torch.allclose(found.weight[:, 4:], torch.zeros(6, 2, dtype=torch.float64), atol=1e-12)
    centered = x - x.mean(0)
    twin = torch.linalg.pinv(centered, rtol=1e-10) @ ((y - y.mean(0)) - centered)
    assert torch.allclose(found.weight, twin.mT, atol=1e-10)


def test_a_residual_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        Moments().add(torch.full((2, 3, 4), torch.nan))


def test_a_single_token_is_refused() -> None:
    moments = Moments()
    moments.add(normal(2, 1, 4))
    with pytest.raises(PromptError, match="at least two tokens"):
        moments.solve(0)


@pytest.mark.parametrize("family", [*HEADS, "GPT-NeoX", "Mamba"])
def test_a_model_whose_last_layer_is_a_rotation_is_read_exactly(family: str) -> None:
    model = tiny_tasks.model(family)
    with planted(model) as (turn, shift):
        found = fit_lens(model, prompts(20))
        plain = hw.lens(model, prompts(3, seed=8), mixtures=False)
        read = hw.lens(model, prompts(3, seed=8), translator=found, mixtures=False)
    assert torch.allclose(found.matrix("r0"), turn, atol=1e-7)
    bias = found.biases["r0"]
    assert bias is not None
    assert torch.allclose(bias, shift, atol=1e-7)
    assert plain.kl()[1].nanmean() > 0.01
    assert read.kl()[1].nan_to_num().abs().max() < 1e-10


def test_few_tokens_and_flat_directions_are_said() -> None:
    found = fit_lens(tiny_tasks.model("Llama"), prompts(2, 5))
    assert "does not vary in all 24 directions at input, r0" in repr(found)
    assert "10 tokens are few" in repr(found)
    assert "fitted to 10 tokens of 2 prompts\n" in repr(found)
    one = fit_lens(tiny_tasks.model("Llama"), prompts(1, 5))
    assert "fitted to 5 tokens of 1 prompt\n" in repr(one)
    assert found.details["r0"]["rank"] == 9


# the divergence


def dense(readout: Readout, final: Tensor, normed: Tensor) -> Tensor:
    """KL(final || row) with the logits of the model's own head, all at once."""
    many = torch.cat([final[:, None], normed], dim=1)
    logs = readout.replay(many.flatten(0, 1)).unflatten(0, many.shape[:2]).log_softmax(-1)
    terms = logs[:, :1].exp() * (logs[:, :1] - logs[:, 1:])
    return terms.nan_to_num(0).sum(-1)  # a masked token has no probability


@pytest.fixture
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.lenses.readout.WIDTH", 7)
    monkeypatch.setattr("headwater.lenses.readout.TILE", 7 * 4 * 2)


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("family", HEADS)
def test_the_streamed_gradient_equals_dense_autograd(family: str, replayed: bool) -> None:
    model = tiny_tasks.model(family)
    readout = Readout(model)
    assert readout.head is not None
    if replayed:
        readout.head = None
    width = model.anatomy().d_model
    final, row = normal(5, width), normal(5, 3, width, seed=1).requires_grad_()
    weight = normal(5, 3, seed=2)
    with model.frozen():
        found = divergence(readout, final, row)
        twin = dense(readout, final, row)
        (gradient,) = torch.autograd.grad((found * weight).sum(), row)
        (expected,) = torch.autograd.grad((twin * weight).sum(), row)
    assert torch.allclose(found, twin, atol=1e-12)
    assert torch.allclose(gradient, expected, atol=1e-12)
    assert expected.abs().max() > 1e-3


@pytest.mark.usefixtures("_small_tiles")
def test_tokens_masked_by_the_head_count_nothing() -> None:
    module: Any = tiny_models.build("GPT-J", dtype=torch.float64)
    module.lm_head.bias.data[[3, 40]] = -torch.inf
    module.requires_grad_(False)
    model = hw.wrap(module)
    readout = Readout(model)
    width = model.anatomy().d_model
    final, row = normal(4, width), normal(4, 2, width, seed=1).requires_grad_()
    found = divergence(readout, final, row)
    (gradient,) = torch.autograd.grad(found.sum(), row)
    keep = [token for token in range(tiny_models.VOCAB) if token not in (3, 40)]
    head, bias = module.lm_head.weight[keep], module.lm_head.bias[keep]
    p, q = (final @ head.mT + bias).log_softmax(-1)[:, None], (row @ head.mT + bias).log_softmax(-1)
    twin = (p.exp() * (p - q)).sum(-1)
    assert torch.allclose(found, twin, atol=1e-12)
    assert torch.allclose(gradient, torch.autograd.grad(twin.sum(), row)[0], atol=1e-12)


# training


def test_before_any_step_the_lens_is_the_logit_lens_bit_for_bit() -> None:
    model = tiny_tasks.model("Llama", torch.float32)
    start = fit_lens(model, prompts(4), "kl", steps=0)
    plain, read = (hw.lens(model, prompts(3), translator=one) for one in (None, start))
    for key, value in plain.arrays.values.items():
        assert torch.equal(value.nan_to_num(7), read.arrays.values[key].nan_to_num(7)), key
    assert torch.equal(plain.arrays.kl.nan_to_num(7), read.arrays.kl.nan_to_num(7))


def test_the_first_step_is_taken_at_the_logit_lens() -> None:
    model = tiny_tasks.model("Llama")
    found = fit_lens(model, prompts(8), "kl", steps=1)
    plain = hw.lens(model, prompts(8), mixtures=False)
    expected = plain.kl().nanmean((1, 2))
    assert found.details["input"]["KL at first"] == pytest.approx(float(expected[0]), rel=1e-9)
    assert found.details["r0"]["KL at first"] == pytest.approx(float(expected[1]), rel=1e-9)


def test_training_finds_a_planted_rotation_as_far_as_the_divergence_sees_it() -> None:
    model = tiny_tasks.model("Llama", torch.float32)
    with planted(model):
        found = fit_lens(model, prompts(64), "kl", steps=120, lr=0.1)
        plain, read = (
            hw.lens(model, prompts(8, seed=8), translator=one, mixtures=False).kl()[1].nanmean()
            for one in (None, found)
        )
    assert plain > 1
    assert read < 0.1 * plain


def test_training_can_begin_at_least_squares() -> None:
    model = tiny_tasks.model("Llama")
    with planted(model):
        solved = fit_lens(model, prompts(20))
        start = fit_lens(model, prompts(20), "kl", start="lstsq", steps=0)
        found = fit_lens(model, prompts(20), "kl", start="lstsq", steps=1)
    assert torch.equal(start.matrix("r0"), solved.matrix("r0"))
    assert found.details["r0"]["KL at first"] < 1e-10


def test_a_trained_shift_has_no_matrix_and_lowers_the_divergence() -> None:
    model = tiny_tasks.model("GPT-2")
    found = fit_lens(model, prompts(16), "bias", steps=30)
    assert found.weights == {"input": None, "r0": None}
    plain, read = (
        hw.lens(model, prompts(16), translator=one, mixtures=False).kl().nanmean((1, 2))
        for one in (None, found)
    )
    assert (read[:2] < plain[:2]).all()


def test_a_shift_begins_at_the_mean_difference_of_the_first_batch() -> None:
    model = tiny_tasks.model("GPT-2")
    given = prompts(8)
    found = fit_lens(model, given, "bias", steps=1)
    identity = fit_lens(model, given, "bias", steps=0)
    with model.trace(torch.tensor(given), requires_grad=False) as run:
        kept = [run[name].clone() for name in ("layers.0.resid_pre", "layers.0.resid_post")]
        final = run["layers.1.resid_post"].clone().mean((0, 1))
    biases = [final - one.mean((0, 1)) for one in kept]
    start = dataclasses.replace(identity, biases=dict(zip(found.rows, biases, strict=True)))
    expected = hw.lens(model, given, translator=start, mixtures=False).kl().mean((1, 2))
    for row, value in zip(found.rows, expected.tolist(), strict=False):
        assert found.details[row]["KL at first"] == pytest.approx(value, rel=1e-9)


def test_a_shift_costs_one_forward_a_step_and_takes_an_iterator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_tasks.model("Llama")
    runs: list[tuple[int, ...]] = []
    forward = Model.forward

    def counted(self: Model, ids: Tensor, **options: Any) -> Tensor:
        runs.append(tuple(ids.shape))
        return forward(self, ids, **options)

    monkeypatch.setattr(Model, "forward", counted)
    found = fit_lens(model, (one for one in prompts(12)), "bias", steps=3, batch_size=4)
    assert runs.count((4, 9)) == 3  # the others are of the head alone
    assert found.corpus["prompts"] == 12
    listed = fit_lens(model, prompts(12), "bias", steps=3, batch_size=4)
    assert torch.equal(shift_of(found, "r0"), shift_of(listed, "r0"))


def test_without_a_step_nothing_is_changed() -> None:
    for method in ("kl", "bias"):
        found = fit_lens(tiny_tasks.model("Llama"), prompts(4), method, steps=0)
        assert torch.equal(found.matrix("r0"), torch.eye(24, dtype=torch.float64))
        assert not shift_of(found, "r0").any()


def shift_of(found: Translator, row: str) -> Tensor:
    bias = found.biases[row]
    assert bias is not None
    return bias


def test_a_rate_that_leads_out_of_all_numbers_is_refused_with_a_smaller_one() -> None:
    model = tiny_tasks.model("Llama", torch.float32)
    with pytest.raises(
        NonFiniteError, match=r"a logit is NaN or infinite at step 1, .*\nWrite lr=1e\+36"
    ):
        fit_lens(model, prompts(8), "kl", steps=9, lr=1e37)


def test_a_model_without_a_prediction_is_not_blamed_on_the_rate() -> None:
    module: Any = tiny_models.build("GPT-J", dtype=torch.float64)
    module.lm_head.bias.data[3] = torch.inf
    with pytest.raises(NonFiniteError, match="a logit is plus infinity at the final row"):
        fit_lens(hw.wrap(module), prompts(4), "kl", steps=2)


def test_the_seed_decides_what_is_trained() -> None:
    model = tiny_tasks.model("Llama")
    one, same, other = (
        fit_lens(model, prompts(12), "kl", steps=5, batch_size=2, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(one.matrix("r0"), same.matrix("r0"))
    assert not torch.equal(one.matrix("r0"), other.matrix("r0"))


def test_positions_taken_a_few_at_a_time_give_the_same_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_tasks.model("Gemma 2")
    whole = fit_lens(model, prompts(4), "kl", steps=2)
    monkeypatch.setattr("headwater.lenses.translators.training.together", lambda *_: 5)
    parts = fit_lens(model, prompts(4), "kl", steps=2)
    assert torch.allclose(whole.matrix("input"), parts.matrix("input"), atol=1e-9)


def test_fitting_does_not_mind_where_gradients_are_off() -> None:
    model = tiny_tasks.model("Llama")
    for method in ("kl", "jacobian"):
        options = {"steps": 2} if method == "kl" else {}
        plain = fit_lens(model, prompts(3), method, **options)
        with torch.no_grad():
            inside = fit_lens(model, prompts(3), method, **options)
        assert torch.equal(plain.matrix("r0"), inside.matrix("r0"))


def test_a_model_in_bfloat16_is_fitted_in_float32() -> None:
    model = tiny_tasks.model("Llama", torch.float32).to(torch.bfloat16)
    found = fit_lens(model, prompts(16), "kl", steps=20)
    assert found.matrix("r0").dtype == torch.float32
    assert found.details["input"]["KL at last"] < found.details["input"]["KL at first"]


def test_fitting_leaves_the_model_as_it_was() -> None:
    module = tiny_models.build("GPT-2", dtype=torch.float64)
    model = hw.wrap(module, tiny_tasks.tokenizer())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()]
    for method, options in {"lstsq": {}, "kl": {"steps": 2}, "jacobian": {}}.items():
        fit_lens(model, prompts(3), method, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(PromptError):
        fit_lens(model, [[5]], "jacobian")
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()]


# one run of a batch


def test_rows_and_last_logits_come_from_one_run() -> None:
    model = tiny_tasks.model("Llama")
    short, long = prompts(1, 4)[0], prompts(1, 6, seed=7)[0]
    rows = rows_of(model.anatomy())
    (batch,) = Corpus(model, [short, long]).batches()
    with model.frozen():
        values, logits = read_rows(model, batch, rows)
        assert torch.equal(residuals(model, batch, rows), values)
    assert values.shape[1] == 10
    for ids, pair in ((short, 0), (long, 1)):
        place = batch.pairs.index(pair)
        with torch.no_grad():
            expected = model.forward(torch.tensor([ids]))[0]
        own = values[-1:, prompts_of(batch) == pair]
        readout = Readout(model)
        again = readout.replay(readout.normed(own, rows[-1:])[:, 0])
        assert torch.allclose(again, expected, atol=1e-10)
        assert torch.allclose(logits[place], expected[-1], atol=1e-10)


# use in a lens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_final_row_is_left_as_it_is(dtype: torch.dtype) -> None:
    model = tiny_tasks.model("Llama", torch.float32)
    found = fit_lens(model, prompts(20))
    model = model if dtype == model.dtype else model.to(dtype)
    plain, read = (hw.lens(model, prompts(3), translator=one) for one in (None, found))
    assert torch.equal(plain.arrays.top_logprob[-1], read.arrays.top_logprob[-1])
    assert not torch.equal(plain.arrays.top_logprob[0], read.arrays.top_logprob[0])
    assert torch.equal(plain.rms(), read.rms())


def test_a_translated_row_is_read_from_what_the_map_makes_of_it() -> None:
    model = tiny_tasks.model("Gemma 2")
    found = fit_lens(model, prompts(20), sublayers=True)
    with model.trace(torch.tensor(prompts(1)), requires_grad=False) as run:
        kept = run["layers.0.resid_mid"].clone()
    bias = found.biases["r0.mid"]
    assert bias is not None
    readout = Readout(model)
    mapped = kept[0] @ found.matrix("r0.mid").mT + bias
    with torch.no_grad():
        normed = readout.normed(mapped[None], [rows_of(model.anatomy())[-1]])
        expected = readout.replay(normed[:, 0]).log_softmax(-1).max(-1).values
    lens = hw.lens(model, prompts(1), sublayers=True, translator=found)
    top = lens.arrays.top_logprob[lens.row("r0.mid"), 0, :, 0]
    assert torch.allclose(top, expected, atol=1e-9)


def test_only_the_layers_asked_for_get_a_map() -> None:
    model = hw.load("tiny")
    found = fit_lens(model, ["Mary and John went to the store", "Mary met John"], layers=[1])
    assert found.rows == ("input", "r1")
    hw.lens(model, "Mary and John", layers=[1], translator=found)
    with pytest.raises(ResultError, match=r"no row r0 .*\nWrite layers=\[1\], or fit"):
        hw.lens(model, "Mary and John", translator=found)


def test_rows_that_have_no_map_are_refused_by_name() -> None:
    model = tiny_tasks.model("Llama")
    found = fit_lens(model, prompts(4))
    with pytest.raises(ResultError, match=r"no row r0\.mid .*\nLeave sublayers=False"):
        hw.lens(model, prompts(1), sublayers=True, translator=found)
    with pytest.raises(ResultError, match=r"no row a0 .*\n.*leave writes=False"):
        hw.lens(model, prompts(1), writes=True, translator=found)
    with pytest.raises(ResultError, match=r"no row 'r7'"):
        found.matrix("r7")


def test_another_model_is_refused_with_the_name_of_its_own() -> None:
    found = fit_lens(tiny_tasks.model("Llama"), prompts(4))
    with pytest.raises(ResultError, match=r"fitted to LlamaForCausalLM, .* is Qwen3ForCausalLM"):
        hw.lens(tiny_tasks.model("Qwen3"), prompts(1), translator=found)
    with pytest.raises(
        ResultError, match="4 layers, d_model 96, and LlamaForCausalLM has 2 layers"
    ):
        as_translator(found, hw.load("tiny"), ())


def test_other_weights_with_the_same_unembedding_are_said() -> None:
    module = tiny_models.build("Llama", dtype=torch.float64)
    found = fit_lens(hw.wrap(module), prompts(4))
    with torch.no_grad():
        module.get_submodule("model.layers.0.mlp.up_proj").weight.mul_(1.1)
    with pytest.warns(HeadwaterNotice, match="fitted to other weights"):
        hw.lens(hw.wrap(module), prompts(1), translator=found)


def test_the_same_checkpoint_in_another_format_is_the_same_model() -> None:
    model = tiny_tasks.model("Llama", torch.float32)
    found = fit_lens(model, prompts(4))
    for dtype in (torch.float64, torch.bfloat16):
        hw.lens(model.to(dtype), prompts(1), translator=found)


# folders


def test_a_saved_translator_is_read_back(tmp_path: Path) -> None:
    model = tiny_tasks.model("Llama")
    for method, options in {"lstsq": {}, "bias": {"steps": 2}, "jacobian": {}}.items():
        found: Any = fit_lens(model, prompts(4), method, **options)  # pyright: ignore[reportArgumentType]
        found.save(tmp_path / method)
        back = Translator.load(tmp_path / method)
        assert back.described == found.described
        assert (back.notes, back.details) == (found.notes, found.details)
        assert torch.equal(back.seen, found.seen)
        one, other = (
            hw.lens(model, prompts(2), translator=t) for t in (found, str(tmp_path / method))
        )
        assert torch.equal(one.arrays.top_logprob, other.arrays.top_logprob)
        assert other.provenance["options"]["translator"]["method"] == method


def test_folders_with_something_else_are_refused(tmp_path: Path) -> None:
    model = tiny_tasks.model("Llama")
    one, other = (fit_lens(model, prompts(4, seed=seed)) for seed in (1, 2))
    one.save(tmp_path / "lens")
    one.save(tmp_path / "lens")  # the same again
    with pytest.raises(RunFolderError, match="already holds another translator"):
        other.save(tmp_path / "lens")
    other.save(tmp_path / "lens", overwrite=True)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match=r"holds other files than a translator \(thesis\.tex"):
        one.save(tmp_path / "work")
    with pytest.raises(RunFolderError, match="holds no translator"):
        hw.lens(model, prompts(1), translator=str(tmp_path / "nowhere"))
    none = r"translator=3 \(int\) is none"
    with pytest.raises(UnknownOptionError, match=none), shape_checks.unchecked():
        as_translator(3, model, ())  # pyright: ignore[reportArgumentType]


def test_files_of_two_translators_are_refused(tmp_path: Path) -> None:
    model = tiny_tasks.model("Llama")
    fit_lens(model, prompts(4)).save(tmp_path / "one")
    fit_lens(model, prompts(4, seed=2)).save(tmp_path / "other")
    data = (tmp_path / "other" / "translator.safetensors").read_bytes()
    (tmp_path / "one" / "translator.safetensors").write_bytes(data)
    with pytest.raises(RunFolderError, match="are of two translators"):
        Translator.load(tmp_path / "one")


def write_tuned_lens(folder: Path, model: Model, **changes: Any) -> dict[str, Tensor]:
    """A checkpoint as tuned-lens 0.2.0 writes it: a state dict of numbered linear layers."""
    folder.mkdir()
    layers, width = model.anatomy().n_layers, model.anatomy().d_model
    weight: Any = model.anatomy().unembed.weight
    printed = np.array_str(weight.detach().float().numpy(), precision=1)
    config = {
        "base_model_name_or_path": "some/model",
        "d_model": width,
        "num_hidden_layers": layers,
        "bias": True,
        "base_model_revision": None,
        "unembed_hash": hashlib.sha256(printed.encode()).hexdigest(),
        "lens_type": "linear_tuned_lens",
        **changes,
    }
    state = {}
    for layer in range(layers):
        state[f"{layer}.weight"] = 0.1 * normal(width, width, seed=layer).float()
        if config["bias"]:
            state[f"{layer}.bias"] = normal(width, seed=layer + 50).float()
    torch.save(state, folder / "params.pt")
    (folder / "config.json").write_text(json.dumps(config))
    return state


@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_of_tuned_lens_maps_what_enters_each_block(bias: bool, tmp_path: Path) -> None:
    model = tiny_tasks.model("GPT-NeoX", torch.float32)
    state = write_tuned_lens(tmp_path / "lens", model, bias=bias)
    found = as_translator(tmp_path / "lens", model, rows_of(model.anatomy()))
    assert found is not None
    assert found.rows == ("input", "r0")
    h = normal(3, 5, model.anatomy().d_model).float()
    got = found.applied(h, rows_of(model.anatomy()))
    for layer in range(2):
        expected = h[layer] + h[layer] @ state[f"{layer}.weight"].mT
        if bias:
            expected = expected + state[f"{layer}.bias"]
        assert torch.allclose(got[layer], expected, atol=1e-5)
    assert torch.equal(got[2], h[2])


def test_a_checkpoint_of_tuned_lens_for_another_model_is_refused(tmp_path: Path) -> None:
    model = tiny_tasks.model("Llama", torch.float32)
    write_tuned_lens(tmp_path / "lens", model)
    with pytest.raises(ResultError, match=r"fitted to some/model.*different unembeddings"):
        as_translator(str(tmp_path / "lens"), tiny_tasks.model("Qwen3", torch.float32), ())
    write_tuned_lens(tmp_path / "silent", model, unembed_hash=None)
    silent = as_translator(tmp_path / "silent", tiny_tasks.model("Qwen3", torch.float32), ())
    assert "does not say which unembedding" in repr(silent)
    write_tuned_lens(tmp_path / "other", model, lens_type="other_lens")
    with pytest.raises(RunFolderError, match="lens_type is 'other_lens'"):
        Translator.load(tmp_path / "other")
    write_tuned_lens(tmp_path / "wide", model, d_model=9)
    with pytest.raises(RunFolderError, match=r"0\.weight has shape \[24, 24\], not \[9, 9\]"):
        Translator.load(tmp_path / "wide")


# what is fitted to


def test_texts_ids_files_and_functions_give_the_same_translator(tmp_path: Path) -> None:
    model = tiny_tasks.model("Llama")
    ids = prompts(5)
    texts = [tiny_tasks.text(one) for one in ids]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n\n")
    lines = [json.dumps({"text": one, "source": "here"}) for one in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    sources = [
        ids,
        torch.tensor(ids),
        texts,
        str(tmp_path / "a.txt"),
        tmp_path / "a.jsonl",
        lambda: iter(texts),
        (one for one in texts),
        [{"text": one} for one in texts],
    ]
    found = [fit_lens(model, one) for one in sources]
    assert {one.corpus["sha256"] for one in found} == {found[0].corpus["sha256"]}
    assert all(torch.equal(one.matrix("r0"), found[0].matrix("r0")) for one in found)
    assert (found[0].corpus["prompts"], found[0].corpus["tokens"]) == (5, 45)


def test_limit_and_length_cut_what_is_read() -> None:
    model = tiny_tasks.model("Llama")
    found = fit_lens(model, prompts(40), limit=18, length=4, batch_size=1)
    cut = fit_lens(model, [one[:4] for one in prompts(40)[:18]], batch_size=1)
    assert (found.corpus["prompts"], found.corpus["tokens"]) == (18, 72)
    assert torch.equal(found.matrix("r0"), cut.matrix("r0"))


def test_an_iterator_that_ends_too_early_is_refused_with_what_to_pass() -> None:
    model = tiny_tasks.model("Llama")
    with pytest.raises(PromptError, match=r"after 2 of 9 steps: the generator test_.* can be"):
        fit_lens(model, (one for one in prompts(4)), "kl", steps=9, batch_size=2)
    fit_lens(model, (one for one in prompts(4)), "kl", steps=2, batch_size=2)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("nowhere.txt", "no file 'nowhere.txt'"),
        ([], "the list in dataset= gave no prompt"),
        ([5, 6, 7], "prompt 0 of the list is the number 5: dataset= is one prompt's token ids"),
        ([{"a": "w5", "b": "w6"}], "fields 'a', 'b', of which none could be the prompt"),
        ({"text": "w5"}, "is a mapping with 'text', not prompts"),
        (lambda: 3, "returned 3, not texts one after another"),
    ],
)
def test_datasets_that_cannot_be_read_are_refused(dataset: Any, message: str) -> None:
    with pytest.raises(hw.HeadwaterError, match=message):
        fit_lens(tiny_tasks.model("Llama"), dataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lsts"}, "method='lsts' is unknown. Closest: 'lstsq'"),
        (
            {"method": "lstsq", "steps": 3},
            "'lstsq' has no steps.\nLeave it out, or write method='kl' ",
        ),
        ({"method": "kl", "skip": 3}, "'kl' has no skip.*\n.*method='jacobian'"),
        ({"method": "kl", "start": "zero"}, "start='zero' is unknown"),
        ({"method": "kl", "steps": -1}, "steps=-1, lr=None: steps are not negative"),
        ({"method": "bias", "lr": -1.0}, "lr=-1.0"),
        ({"layers": [7]}, "no layer 7"),
        ({"length": 0}, "length=0 leaves nothing to read"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownOptionError, match=message), shape_checks.unchecked():
        fit_lens(tiny_tasks.model("Llama"), prompts(2), **options)
