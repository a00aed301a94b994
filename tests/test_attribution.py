"""`attribute()` and its result: what is refused, kept, shown and saved."""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

import headwater as hw
from headwater.attribution import Attribution, attribute
from headwater.errors import (
    ConstantMetricError,
    HeadwaterError,
    MetricError,
    ModelGoneError,
    ModelStateError,
    NonFiniteError,
    PromptError,
    ResultError,
    RunFolderError,
    StationaryMetricError,
    UnknownComponentError,
    UnknownOptionError,
)
from oracles import Part, Twin
from planted import counted
from shape_checks import unchecked
from tiny_models import build
from tiny_tasks import model, pair, task, tokenizer


def ids_of(prompt: str | None, *more: int) -> Tensor:
    ids = tokenizer()(prompt)["input_ids"]
    return torch.tensor([[*ids, *more]])


# --- metrics end to end ------------------------------------------------------------


def test_the_gradient_of_kl_at_the_clean_end_is_refused_by_name():
    with pytest.raises(StationaryMetricError) as refused:
        attribute(model("GPT-2"), task(5), hw.heads(), hw.Gradient(), metric="kl")
    assert str(refused.value) == (
        "the metric is the KL divergence to the clean run: at the clean end it is at its maximum, "
        "so every gradient there is exactly 0.\n"
        "Use hw.SecondOrder(), which takes the curvature there, hw.Exact(), "
        'hw.IntegratedGradients(), hw.Gradient(at="corrupted"), or another metric such as '
        "hw.logit_diff()."
    )


@pytest.mark.parametrize("end", ["clean", "corrupted"])
def test_exact_effects_on_kl_equal_those_of_plain_hooks(end):
    twin, mixed = Twin("Llama"), task(5, 4)
    scores = attribute(model("Llama"), mixed, hw.mlps(), hw.Exact(at=end), metric=hw.kl())

    def divergence(logits: Tensor, clean: Tensor) -> Tensor:
        p, q = clean[0, -1].softmax(-1), logits[0, -1].softmax(-1)
        return -(p * (p / q).log()).sum()

    for row, one in enumerate(mixed.pairs):
        clean, corrupted = ids_of(one.clean), ids_of(one.corrupted)
        run, other = (clean, corrupted) if end == "clean" else (corrupted, clean)
        for layer in (0, 1):
            part = Part("mlp", layer)
            off = twin.values(other, [part.place])[part.place]
            whole = divergence(twin.run(run, {}), twin.run(clean, {}))
            moved = divergence(twin.mixed(run, part, off, 0.0), twin.run(clean, {}))
            expected = whole - moved if end == "clean" else moved - whole
            assert_close(scores[f"m{layer}"][row], expected, rtol=1e-10, atol=1e-12)


def test_the_gradient_of_kl_at_the_corrupted_end_is_not_zero():
    chosen, two = model("Llama"), task(5, 5)
    scores = attribute(chosen, two, hw.heads(), hw.Gradient(at="corrupted"), metric="kl")
    assert bool((scores.scores.abs() > 1e-6).all())
    assert not bool(scores.parts.clean.abs().max() > 1e-12)
    assert bool((scores.parts.corrupted < 0).all())


def test_an_answer_of_several_tokens_is_followed_to_its_end():
    twin = Twin("Qwen2")
    pairs = []
    for seed, answer in ((1, " w7 w9 w11"), (2, " w8 w10"), (3, " w20")):
        one = pair(5, seed=seed)
        pairs.append(hw.Pair(one.clean, one.corrupted, answer=answer))
    scores = attribute(model("Qwen2"), hw.Task(pairs, "logprob"), hw.heads(), hw.Exact())

    for row, one in enumerate(pairs):
        target = tokenizer()(one.answer[0])["input_ids"]
        clean, corrupted = (ids_of(p, *target[:-1]) for p in (one.clean, one.corrupted))

        def logprob(logits: Tensor, target: list[int] = target) -> Tensor:
            steps = logits[0, -len(target) :].log_softmax(-1)
            return sum(step[token] for step, token in zip(steps, target, strict=True))

        assert_close(scores.parts.clean[row], logprob(twin.run(clean, {})), rtol=0, atol=1e-11)
        off = twin.values(corrupted, [("head", 1)])[("head", 1)]
        for head in range(4):
            closed = logprob(twin.mixed(clean, Part("head", 1, head), off, 0.0))
            expected = scores.parts.clean[row] - closed
            assert_close(scores[f"a1.h{head}"][row], expected, rtol=0, atol=1e-11)


def test_a_metric_that_sums_a_softmax_is_refused_before_anything_runs():
    def everything(logits: Tensor, batch: Any) -> Tensor:
        return logits.softmax(-1).sum(-1)

    with pytest.raises(ConstantMetricError) as refused:
        attribute(model("GPT-2"), task(5), hw.heads(), metric=everything)
    assert str(refused.value) == (
        "the metric everything is 1 for pair 0 whatever the logits are (4 different ones tried), "
        "so its gradient is 0. A softmax summed over the whole vocabulary is such a metric.\n"
        'Choose a token: metric=hw.prob(" Paris").'
    )


def test_a_metric_that_is_not_finite_is_refused_with_its_pairs():
    calls = []

    def undefined(logits: Tensor, batch: Any) -> Tensor:
        calls.append(1)
        value = logits[:, 5] - logits[:, 6]
        return value if len(calls) <= 4 else value.abs().neg().sqrt()  # 4: the constancy check

    with pytest.raises(NonFiniteError) as refused:
        attribute(model("GPT-2"), task(5, 5), hw.heads(), metric=undefined)
    assert str(refused.value) == (
        "the metric undefined is nan for pairs 0, 1. Run in a wider dtype (dtype=torch.float32), "
        "or look at these prompts' logits."
    )


def test_the_metric_given_replaces_the_tasks_own():
    chosen, two = model("GPT-2"), task(5, 5)
    by_name = attribute(chosen, two, hw.mlps(), metric="prob")
    assert by_name.task.metric == hw.prob()
    assert_close(by_name.scores, attribute(chosen, two.with_metric("prob"), hw.mlps()).scores)
    assert two.metric == hw.logit_diff()


# --- what attribute() refuses ------------------------------------------------------------


COMPONENTS_ADVICE = "Write for example hw.heads() + hw.mlps()."
REFERENCE_ADVICE = (
    "Write hw.Corrupted(), hw.Mean(), hw.PositionalMean(), hw.Resample() or hw.Zero()."
)
TASK_ADVICE = (
    'Write hw.task("ioi"), hw.Task.read("pairs.jsonl"), or hw.Task([{"clean": ...}, ...]).'
)
WRONG_KINDS = {
    "a selector not called": (
        {"components": hw.heads},
        f"components: expected a Selection, got {hw.heads!r:.60} (function).\n{COMPONENTS_ADVICE}",
    ),
    "components as text": (
        {"components": "heads"},
        f"components: expected a Selection, got 'heads' (str).\n{COMPONENTS_ADVICE}",
    ),
    "no components": (
        {"components": None},
        f"components: expected a Selection, got nothing.\n{COMPONENTS_ADVICE}",
    ),
    "a task's name": ({"task": "ioi"}, f"task: expected a Task, got 'ioi' (str).\n{TASK_ADVICE}"),
    "an estimator's name": (
        {"estimator": "exact"},
        "estimator: expected a Estimator, got 'exact' (str).\nWrite hw.Gradient() or hw.Exact().",
    ),
    "a reference not made": (
        {"reference": hw.Zero},
        f"reference: expected a Reference, got {hw.Zero!r:.60} (a class).\n{REFERENCE_ADVICE}",
    ),
    "a model's name": (
        {"model": "tiny"},
        "model: expected a Model, got 'tiny' (str).\n"
        "Write hw.wrap(module, tokenizer), or hw.load(name).",
    ),
}


@pytest.mark.parametrize("mistake", WRONG_KINDS)
def test_an_argument_of_another_kind_is_refused_with_what_to_write(mistake):
    wrong, message = WRONG_KINDS[mistake]
    given = {"model": model("GPT-2"), "task": task(5), "components": hw.heads()} | wrong
    with unchecked(), pytest.raises(HeadwaterError) as refused:
        attribute(**given)
    assert str(refused.value) == message.replace("a Estimator", "an Estimator")


def test_inference_mode_is_refused_by_name():
    with torch.inference_mode(), pytest.raises(ModelStateError, match="inference_mode"):
        attribute(model("GPT-2"), task(5), hw.heads())


def test_autocast_is_refused_because_an_audit_would_run_outside_it():
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ModelStateError, match=r"autocast is active on cpu.*bfloat16"),
    ):
        attribute(model("GPT-2"), task(5), hw.heads())


def test_a_run_that_its_folder_cannot_take_is_refused_before_any_forward(result, tmp_path):
    there = tmp_path / "file"
    there.write_text("x")
    ran = []
    subject = model("GPT-2")
    handle = subject.module.register_forward_hook(lambda *_: ran.append(1))
    try:
        with pytest.raises(RunFolderError, match="cannot be written"):
            attribute(subject, task(5), hw.heads(), out=there)
        result.save(tmp_path / "run")
        with pytest.raises(RunFolderError, match="already holds another run"):
            attribute(subject, task(5), hw.heads(), hw.Exact(), out=tmp_path / "run")
    finally:
        handle.remove()
    assert ran == []


def test_out_saves_what_load_reads(tmp_path):
    scores = attribute(model("GPT-2"), task(5), hw.heads(), out=tmp_path / "run")
    assert torch.equal(Attribution.load(tmp_path / "run").scores, scores.scores)


def test_saving_the_same_numbers_again_keeps_their_audit(tmp_path):
    scores = attribute(model("GPT-2"), task(5), hw.heads(), out=tmp_path)
    with scores.kept_in(tmp_path):
        scores.audit(4)
    attribute(model("GPT-2"), task(5), hw.heads(), out=tmp_path)
    assert Attribution.load(tmp_path).checked is not None


def test_scores_of_another_run_under_a_manifest_are_refused(result, tmp_path):
    folder = result.save(tmp_path / "run")
    other = attribute(model("GPT-2"), task(5), hw.mlps(), out=tmp_path / "other")
    assert other.names != result.names
    foreign = (tmp_path / "other" / "scores.safetensors").read_bytes()
    (folder / "scores.safetensors").write_bytes(foreign)
    with pytest.raises(RunFolderError, match="does not belong to"):
        Attribution.load(folder)


def test_a_model_that_gives_other_numbers_than_the_scored_one_is_not_audited():
    subject = model("GPT-2")
    scores = attribute(subject, task(5), hw.heads())
    steering = subject.module.transformer.h[0].register_forward_hook(lambda m, a, out: out * 1.5)
    try:
        with pytest.raises(ResultError, match="this is not the model that was scored"):
            scores.audit(4)
    finally:
        steering.remove()
    assert scores.audit(4).rows


def test_swapped_answers_are_said_in_words():
    swapped = hw.Task(
        [hw.Pair(p.clean, p.corrupted, answer=p.wrong, wrong=p.answer) for p in hw.task("ioi")[:4]]
    )
    scores = attribute(hw.load("tiny"), swapped, hw.mlps())
    assert any("answer and wrong are swapped" in warning for warning in scores.warnings())
    assert "swapped" in repr(scores)


def test_a_metric_blind_to_the_corruption_is_said_in_words():
    blind = hw.Task([hw.Pair("Mary and John", "Mary and Anna")], metric=hw.cross_entropy())
    scores = attribute(hw.load("tiny"), blind, hw.heads())
    assert any("does not see what the corruption changes" in w for w in scores.warnings())


# --- sizes and flags ------------------------------------------------------------


@pytest.mark.parametrize("estimator", [hw.Gradient(), hw.Exact()], ids=["gradient", "exact"])
@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Falcon"])
def test_sizes_are_the_change_beside_the_residual_entering_the_layer(family, estimator):
    twin, mixed = Twin(family), task(6, 4)
    components = (
        hw.heads() + hw.mlps() + hw.neurons(layers=1) + hw.residual(positions=[1, -1])
    ) + hw.tokens(positions="all")
    scores = attribute(model(family), mixed, components, estimator)
    parts = [Part("token"), Part("head", 1, 2), Part("head", 0, 3), Part("mlp", 1)]
    parts += [Part("neuron", 1, 17), Part("residual", 0, position=1), Part("residual", 1, 0, -1)]
    sizes = {row.name: row.size for row in scores.rows()}
    for part in parts:
        ratios = []
        for one in mixed.pairs:
            entering = ("token", 0) if part.layer == 0 else ("residual", part.layer - 1)
            clean = twin.values(ids_of(one.clean), list({part.place, entering}))
            off = twin.values(ids_of(one.corrupted), [part.place])[part.place]
            at = slice(None) if part.position is None else part.position
            change = (clean[part.place] - off)[0, at, part.unit].norm()
            ratios.append(float(change / clean[entering][0, at].norm()))
        # sizes are gathered in float32
        assert sizes[part.name(twin)] == pytest.approx(sum(ratios) / 2, rel=1e-5)


def lopsided() -> nn.Module:
    """A model in which only coordinate 0 is read out, and only the last MLP writes there, a bit."""
    module = build("Llama", dtype=torch.float64)
    with torch.no_grad():
        module.model.embed_tokens.weight[:, 0] = 0
        for layer in module.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        last = module.model.layers[-1].mlp.down_proj.weight
        last[1:] = 0
        last[0] = 1e-3
        module.lm_head.weight[:] = 0
        module.lm_head.weight[7, 0] = 1000
    return module


def test_a_small_cause_with_a_large_effect_is_flagged():
    prompts = [pair(5, seed=seed) for seed in range(3)]
    task = hw.Task([hw.Pair(one.clean, one.corrupted, answer=7, wrong=9) for one in prompts])
    scores = attribute(hw.wrap(lopsided(), tokenizer()), task, hw.mlps(), hw.Exact())
    first, last = scores.rows()
    assert last.flags == ("small cause, large effect",)
    assert last.size < 0.02
    assert first.flags == ()
    assert "small cause, large effect" in repr(scores)


# --- the result ------------------------------------------------------------


@pytest.fixture(scope="module")
def result() -> Attribution:
    components = hw.heads() + hw.mlps() + hw.residual(layers=0, positions=[-1])
    return attribute(model("Llama"), task(6, 4, 5), components, hw.Gradient())


def test_rows_hold_the_mean_and_the_spread_over_pairs(result):
    for row in result.rows():
        over_pairs = result[row.name].tolist()
        mean = sum(over_pairs) / 3
        assert row.score == pytest.approx(mean)
        deviations = [(value - mean) ** 2 for value in over_pairs]
        assert row.spread == pytest.approx(math.sqrt(sum(deviations) / 3))
    assert [row.name for row in result.rows()] == list(result.names)


def test_the_top_is_by_the_absolute_mean_strongest_first(result):
    strength = {row.name: abs(row.score) for row in result.rows()}
    expected = sorted(strength, key=strength.__getitem__, reverse=True)
    assert [row.name for row in result.top(5)] == expected[:5]
    assert len(result.top(1000)) == len(result.names)
    assert result.top(0) == []
    with pytest.raises(ResultError, match=r"top\(-1\): there is no such number"):
        result.top(-1)


def test_averages_are_the_users_choice(result):
    assert torch.equal(result.mean(), result.scores.mean(0))
    assert torch.equal(result.abs_mean(), result.scores.abs().mean(0))


def test_an_unknown_component_is_answered_with_the_closest(result):
    with pytest.raises(UnknownComponentError) as refused:
        result["a1.h4"]
    assert str(refused.value) == (
        "no component 'a1.h4' among the 11 scored here. Closest: 'a1.h3', 'a1.h2', 'a1.h1'.\n"
        "All names: `scores.names`."
    )


def test_rows_know_where_their_component_is(result):
    row = result.rows()[-1]
    assert (row.name, row.kind, row.layer, row.index, row.position) == (
        "r0@-1",
        "residual",
        0,
        None,
        -1,
    )


def test_the_clean_and_corrupted_metric_are_those_of_bare_runs(result):
    for row, one in enumerate(result.task.pairs):
        for prompt, values in (
            (one.clean, result.parts.clean),
            (one.corrupted, result.parts.corrupted),
        ):
            last = Twin("Llama").run(ids_of(prompt), {})[0, -1]
            expected = last[one.answer[0]] - last[one.wrong[0]]
            assert_close(values[row], expected, rtol=0, atol=1e-11)


def test_both_ends_report_the_same_clean_and_corrupted_metric(result):
    other = attribute(model("Llama"), result.task, hw.heads(), hw.Gradient(at="corrupted"))
    assert_close(other.parts.clean, result.parts.clean, rtol=0, atol=1e-11)
    assert_close(other.parts.corrupted, result.parts.corrupted, rtol=0, atol=1e-11)


def test_the_printed_result_fits_one_screen(result):
    lines = repr(result).splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 100
    assert result.top(1)[0].name in repr(result)


def test_the_table_has_one_row_a_component(result):
    frame = result.to_frame()
    assert list(frame["name"]) == list(result.names)
    assert frame["score"].tolist() == result.mean().tolist()


def test_everything_is_plain_data(result):
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert [row["name"] for row in data["components"]] == list(result.names)
    assert data["provenance"]["estimator"] == {"name": "gradient", "at": "clean"}


# --- another dtype ------------------------------------------------------------


def test_float64_is_computed_on_a_copy_that_lives_with_the_result():
    user, twin = hw.wrap(build("Gemma 2"), tokenizer()), model("Gemma 2")
    given = task(5, 4)
    scores = attribute(user, given, hw.heads() + hw.queries(), hw.Exact(), dtype="float64")
    assert user.dtype == torch.float32
    assert scores.scores.dtype == torch.float64
    assert scores.provenance.model["dtype"] == "float64"
    expected = attribute(twin, given, hw.heads() + hw.queries(), hw.Exact())
    # the same float32 weights, so only rounding of float64 lies between
    assert_close(scores.scores, expected.scores, rtol=0, atol=1e-6)
    del user
    gc.collect()
    assert scores.model.dtype == torch.float64


def test_a_result_that_outlived_its_model_says_how_to_go_on():
    user = hw.wrap(build("GPT-2"), tokenizer())
    scores = attribute(user, task(5), hw.heads())
    assert scores.model is user
    del user
    gc.collect()
    with pytest.raises(ModelGoneError) as refused:
        _ = scores.model
    assert str(refused.value) == (
        "these scores came from 'GPT2LMHeadModel', which this result does not hold (it was read "
        "from a folder, or the model is gone: results keep it by weak reference).\n"
        "Pass it as model=, for example scores.audit(model=model) or hw.verify(scores, theta=..., "
        "model=model); give hw.interaction the model and task themselves."
    )


# --- saved and read back ------------------------------------------------------------


def test_a_saved_result_comes_back_bit_by_bit_without_its_model(result, tmp_path):
    back = Attribution.load(result.save(tmp_path / "runs" / "one"))
    assert torch.equal(back.scores, result.scores)
    for field in ("clean", "corrupted", "sizes"):
        assert torch.equal(getattr(back.parts, field), getattr(result.parts, field))
    assert back.names == result.names
    assert back.rows() == result.rows()
    assert list(back.parts.components) == list(result.parts.components)
    assert back.provenance == result.provenance
    assert back.task.pairs == result.task.pairs
    assert back.task.metric == result.task.metric
    assert back.cost.pairs == 3
    assert str(back.cost) == str(result.cost)
    assert repr(back) == repr(result)
    with pytest.raises(ModelGoneError):
        _ = back.model


def test_a_run_folder_holds_plain_files_only(result, tmp_path):
    folder = result.save(tmp_path / "run")
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "scores.safetensors"]
    assert set(load_file(folder / "scores.safetensors")) == {
        "scores",
        "clean",
        "corrupted",
        "sizes",
    }
    assert json.loads((folder / "run.json").read_text())["names"] == list(result.names)


def test_saving_again_and_saving_what_was_read_back_are_welcome(result, tmp_path):
    folder = result.save(tmp_path)
    before = (folder / "run.json").read_text()
    Attribution.load(folder).save(folder)
    result.save(folder)
    assert (folder / "run.json").read_text() == before


def test_a_folder_with_a_run_of_another_specification_is_refused(result, tmp_path):
    folder = result.save(tmp_path / "run")
    other = attribute(
        model("Llama"), result.task, hw.mlps(), hw.Exact(), reference=hw.Mean(), seed=3
    )
    with pytest.raises(RunFolderError) as refused:
        other.save(folder)
    assert str(refused.value) == (
        f"{folder} already holds another run. They differ in\n"
        '  estimator: {"name": "gradient", "at": "clean"} there, {"name": "exact", "at": "clean"} '
        "now\n"
        '  reference: {"name": "corrupted"} there, {"name": "mean", "over": "corrupted"} now\n'
        '  components: [{"kind": "head", "layers": null, "positions": "all"}, {"... there, '
        '[{"kind": "mlp", "layers": null, "positions": "all"}] now\n'
        "  seed: 0 there, 3 now\n"
        "Choose another --out, or delete the folder."
    )
    assert torch.equal(Attribution.load(folder).scores, result.scores)
    other.save(folder, overwrite=True)
    assert torch.equal(Attribution.load(folder).scores, other.scores)


def test_other_weights_are_another_specification(result, tmp_path):
    folder = result.save(tmp_path / "run")
    module = build("Llama", seed=1, dtype=torch.float64)
    components = hw.heads() + hw.mlps() + hw.residual(layers=0, positions=[-1])
    other = attribute(hw.wrap(module, tokenizer()), result.task, components, hw.Gradient())
    with pytest.raises(RunFolderError, match="weights_hash: "):
        other.save(folder)


def test_another_batch_size_is_the_same_specification(result, tmp_path):
    folder = result.save(tmp_path / "run")
    components = hw.heads() + hw.mlps() + hw.residual(layers=0, positions=[-1])
    attribute(model("Llama"), result.task, components, hw.Gradient(), batch_size=1).save(folder)


def test_a_folder_with_other_files_is_refused(result, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunFolderError) as refused:
        result.save(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path} holds no run but other files (thesis.tex).\nChoose another folder."
    )


def test_reading_a_folder_without_a_run_says_how_to_make_one(tmp_path):
    with pytest.raises(RunFolderError) as refused:
        Attribution.load(tmp_path)
    assert str(refused.value) == (
        f"no run in {tmp_path}: it has no run.json.\n"
        f"Make one: scores.save({str(tmp_path)!r}), or on the command line headwater attribute "
        f"--model tiny --task ioi --out {tmp_path}"
    )


@pytest.mark.parametrize("name", ["run.json", "scores.safetensors"])
def test_a_broken_file_is_refused_by_name(result, tmp_path, name):
    folder = result.save(tmp_path / "run")
    path = folder / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunFolderError, match="into an empty folder"):
        Attribution.load(folder)


def test_a_save_that_fails_leaves_the_old_run_whole(result, tmp_path, monkeypatch):
    folder = result.save(tmp_path / "run")

    def full(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("headwater.attribution.folders.save_file", full)
    with pytest.raises(OSError, match="no space"):
        result.save(folder)
    assert torch.equal(Attribution.load(folder).scores, result.scores)
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "scores.safetensors"]


def difference(logits: Tensor, batch: Any) -> Tensor:
    return logits[:, 5] - logits[:, 6]


def test_scores_of_a_function_metric_come_back_but_cannot_be_computed_again(tmp_path):
    scores = attribute(model("GPT-2"), task(5), hw.heads(), metric=difference)
    back = Attribution.load(scores.save(tmp_path / "run"))
    assert torch.equal(back.scores, scores.scores)
    assert "difference" in back.task.metric.name
    assert Path(back.page(tmp_path / "page.html")).is_file()
    back.save(tmp_path / "run")
    with pytest.raises(MetricError) as refused:
        attribute(model("GPT-2"), back.task, hw.heads())
    assert str(refused.value) == (
        f"the metric difference was the Python function {__name__}.difference, of which only the "
        "name is saved.\nGive it again: hw.Attribution.load(folder, metric=...)."
    )
    given = Attribution.load(tmp_path / "run", metric=difference)
    again = attribute(model("GPT-2"), given.task, hw.heads())
    assert torch.equal(again.scores, scores.scores)


# --- a gated function end to end ------------------------------------------------------------


def test_a_gated_function_is_scored_saved_read_and_shown(tmp_path):
    weights = torch.tensor([[3.0, -1.0], [1.0, 0.0]])
    function = hw.GatedFunction(lambda m: (m * weights).sum(-1), ["left", "right"], batch=2)
    scores = attribute(function, estimator=hw.Exact())
    assert scores.mean().tolist() == [2.0, -0.5]
    assert scores.parts.clean.tolist() == [2.0, 1.0]
    assert scores.title() == "a gated function: exact, reference the gated function's own"
    assert "left" in repr(scores)
    assert "left" in scores._repr_html_()
    json.dumps(scores.to_dict(), allow_nan=False)
    back = Attribution.load(scores.save(tmp_path / "run"))
    assert torch.equal(back.scores, scores.scores)
    assert back.names == ("left", "right")
    assert back.rows() == scores.rows()
    assert scores.model is function


def test_the_cost_of_a_model_is_counted_in_prompts_run():
    chosen, three = model("GPT-2"), task(5, 5, 5)
    gradient = attribute(chosen, three, hw.heads(), hw.Gradient()).cost
    # the corrupted run and the differentiated one
    assert (gradient.forwards, gradient.backwards, gradient.pairs) == (6, 3, 3)
    exact = attribute(chosen, three, hw.mlps(), hw.Exact()).cost
    # the corrupted run, the run at rest, then two and one of the two layers
    assert (exact.forwards, exact.backwards) == (3 * (1 + 1 + 1 + 0.5), 0)


def test_an_audit_of_exact_effects_says_that_it_ran_them_again():
    scores = attribute(model("GPT-2"), task(5), hw.heads() + hw.mlps(), hw.Exact())
    audit = scores.audit(4)
    assert audit.sentence.startswith("4 of 10 exact effects run again: the largest difference is ")
    assert "there is no estimate to doubt" in audit.verdict
    assert all(row["low"] is None for row in audit.statistics)


# --- gated functions, and what belongs to them ------------------------------------------------


def product() -> hw.GatedFunction:
    return hw.GatedFunction(lambda m: 3 * m.prod(-1), ["a", "b"], dtype=torch.float64)


def test_a_function_is_saved_too(tmp_path):
    scores = attribute(product(), estimator=hw.Exact(), out=tmp_path / "run")
    assert torch.equal(Attribution.load(tmp_path / "run").scores, scores.scores)


@pytest.mark.parametrize(
    "given", [{"reference": hw.Zero()}, {"metric": "prob"}, {"dtype": "float64"}]
)
def test_what_a_function_has_of_its_own_is_refused(given):
    with pytest.raises(PromptError, match=rf"{next(iter(given))} was given, but a gated function"):
        attribute(product(), **given)


def test_what_is_asked_later_leaves_the_cost_of_the_scores(tmp_path):
    function = product()
    scores = attribute(function, estimator=hw.Gradient())
    before = (scores.cost.forwards, scores.cost.backwards)
    scores.audit(2)
    scores.curve("a")
    hw.interaction(scores, a="a", b="b")
    assert (scores.cost.forwards, scores.cost.backwards) == before
    assert function.cost.forwards == 0


def test_a_budget_without_a_tolerance_is_refused():
    with pytest.raises(UnknownOptionError, match=r"Add for example tolerance=0\.1"):
        attribute(product(), budget=10)


def test_error_bars_of_exact_effects_are_refused_before_anything_runs():
    function = product()
    settings = counted(function)
    with pytest.raises(ResultError, match="exact effects have no error bars"):
        attribute(function, estimator=hw.Exact(), tolerance=0.1)
    assert settings == []


def test_scores_are_saved_before_runs_are_spent_on_error_bars(tmp_path, monkeypatch):
    from headwater.audits import adaptive

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(adaptive, "audit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attribute(product(), tolerance=0.1, out=tmp_path)
    assert Attribution.load(tmp_path).checked is None


def test_the_folder_of_another_function_is_refused(tmp_path):
    attribute(product(), out=tmp_path)
    other = hw.GatedFunction(lambda m: -m.sum(-1), ["a", "b"], dtype=torch.float64)
    scores = attribute(other)
    with pytest.raises(RunFolderError, match="holds other scores of the same run"):
        hw.verify(scores, theta=0.1, out=tmp_path)


def test_what_a_killed_process_left_does_not_make_a_folder_foreign(tmp_path):
    (tmp_path / ".scores.safetensors.abc123").write_bytes(b"half")
    attribute(product(), out=tmp_path)
    assert Attribution.load(tmp_path).names == ("a", "b")


def test_a_curve_that_is_not_finite_is_refused_by_name():
    function = hw.GatedFunction(lambda m: (1 - m[..., 0]).sqrt() + m[..., 1], ["a", "b"])
    scores = attribute(function, estimator=hw.Exact())
    with pytest.raises(NonFiniteError, match="on the way of a from open to closed"):
        scores.curve("a", points=3, steps=1)


def test_an_interaction_of_a_result_refuses_a_model_that_has_changed():
    chosen = hw.load("tiny")
    scores = attribute(chosen, hw.task("ioi")[:2], hw.heads(layers=0))
    block = chosen.module.model.layers[1]
    handle = block.register_forward_hook(lambda module, args, output: 0.5 * output)
    try:
        with pytest.raises(ResultError, match="this is not the model that was scored"):
            hw.interaction(scores, a="a0.h0", b="a0.h1")
    finally:
        handle.remove()


def test_gaps_of_opposite_sign_do_not_cancel_in_what_is_shown():
    """exp(3) - 1 over one midpoint slope: 3 exp(1.5), with either sign on one of two pairs."""
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)
    function = hw.GatedFunction(
        lambda m: sign * (3 * m[..., 0]).exp(), ["a"], batch=2, dtype=torch.float64
    )
    scores = attribute(function, estimator=hw.IntegratedGradients(path="joint", steps=1))
    gap = math.exp(3) - 1 - 3 * math.exp(1.5)
    assert scores.gaps() == pytest.approx({"all components": 0.0}, abs=1e-12)
    assert scores.gap_sizes() == pytest.approx({"all components": gap})
    assert f"all components misses its exact change by {gap:.2f}, on one pair by" in repr(scores)
    assert scores.audit(1).statistic("completeness gap").value == pytest.approx(gap)
