"""Judging translators, held against dense logits and loops over prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from torch import Tensor

import headwater as hw
import tiny_models
import tiny_tasks
from headwater.errors import PromptError, ResultError, RunFolderError, UnknownOptionError
from headwater.lenses.readout import Readout
from headwater.lenses.residuals import residuals
from headwater.lenses.translators import Evaluation, Translator, fit_lens
from headwater.lenses.translators.controls import Fitted, Marginal, untrained
from headwater.lenses.translators.corpus import Corpus
from headwater.lenses.translators.evaluation import CONTROLS
from headwater.models import Model


def prompts(count: int, length: int = 9, seed: int = 5) -> list[list[int]]:
    return tiny_models.tokens(count, length, seed=seed).tolist()


TRAIN, HELD, OTHER = prompts(30), prompts(12, seed=6), prompts(12, seed=7)


def lens_kl(model: Model, texts: Any, translator: Translator | None) -> Tensor:
    """[row, prompt, position]: KL(final || row), by the lens."""
    return hw.lens(model, texts, translator=translator, mixtures=False).kl()


def dense_final(model: Model, texts: list[list[int]]) -> Tensor:
    """[token, vocab]: log-probabilities of the model's own predictions, prompt after prompt."""
    with torch.no_grad():
        logits = [model.forward(torch.tensor([ids]))[0] for ids in texts]
    return torch.cat(logits).log_softmax(-1)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_tasks.model("Llama")


@pytest.fixture(scope="module")
def translator(model: Model) -> Translator:
    return fit_lens(model, TRAIN)


@pytest.fixture(scope="module")
def found(model: Model, translator: Translator) -> Evaluation:
    return translator.evaluate(model, HELD, controls_from=OTHER, steps=3)


def test_translator_and_logit_lens_are_judged_as_the_lens_reads_them(
    model: Model, translator: Translator, found: Evaluation
) -> None:
    for name, used in (("logit lens", None), ("translator", translator)):
        expected = lens_kl(model, HELD, used).mean((1, 2))
        for row, value in zip(found.rows, expected.tolist(), strict=True):
            assert found.kl(name, row).mean == pytest.approx(value, abs=1e-10)


def test_standard_errors_are_over_prompts(model: Model, found: Evaluation) -> None:
    means = lens_kl(model, HELD, None)[0].mean(-1)  # prompts of one length
    expected = float(means.std()) / len(means) ** 0.5
    assert found.kl("logit lens", "input").error == pytest.approx(expected, rel=1e-9)


def test_a_long_prompt_counts_by_its_tokens() -> None:
    tokens = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    sums = torch.tensor([[2.0, 3.0, 7.0]], dtype=torch.float64)
    found = Evaluation(("input",), {"translator": sums}, tokens, "lstsq")
    # residuals of the ratio 2: 0, -3, 3; their squares over 6 tokens, with n / (n - 1)
    assert found.kl().mean == 2
    assert found.kl().error == pytest.approx((18 * 3 / 2) ** 0.5 / 6)


def test_the_final_row_is_its_own_prediction(found: Evaluation) -> None:
    for name in ("logit lens", "translator", "bias only", "shuffled"):
        assert abs(found.kl(name, "r1").mean) < 1e-12


def test_the_marginal_is_the_mean_of_the_final_distributions(
    model: Model, found: Evaluation
) -> None:
    mean = dense_final(model, OTHER).exp().mean(0).log()
    final = dense_final(model, HELD)
    expected = float((final.exp() * (final - mean)).sum(-1).mean())
    assert found.kl("marginal", "input").mean == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("tile", [7 * 3, 7 * 40])
def test_the_marginal_is_the_same_by_tiles(
    tile: int, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.lenses.readout.WIDTH", 7)
    monkeypatch.setattr("headwater.lenses.readout.TILE", tile)
    readout = Readout(model)
    width = model.anatomy().d_model
    final = torch.randn(20, 1, width, dtype=torch.float64, generator=torch.Generator())
    marginal = Marginal(readout.vocab)
    marginal.add(readout, final[:8])
    marginal.add(readout, final[8:])
    logs = readout.replay(final[:, 0]).log_softmax(-1)
    mean = logs.exp().mean(0)
    assert torch.allclose(marginal.total / marginal.count, mean, atol=1e-14)
    expected = (logs.exp() * (logs - mean.log())).sum(-1)
    assert torch.allclose(marginal.divergence(readout, final), expected, atol=1e-12)


def test_shuffled_residuals_know_nothing_of_their_position(model: Model) -> None:
    corpus = Corpus(model, prompts(300, seed=9))
    rows = hw.lens(model, HELD).layers
    with model.frozen():
        fitted = Fitted(model, Readout(model), corpus, rows)
        values = torch.cat([residuals(model, batch, rows) for batch in corpus.batches()], dim=1)

    def missed(found: Tensor) -> float:
        """Share of the final residual's variance."""
        scatter = values[-1] - values[-1].mean(0)
        return float((found - values[-1]).square().sum() / scatter.square().sum())

    # 24 directions explain 24 of 2700 tokens' worth by chance
    assert missed(fitted.shuffled(values[:-1])[1]) > 0.97
    assert missed(fitted.least_squares(values[:-1])[1]) < 0.8


def test_prompts_that_were_fitted_are_left_out_and_counted(
    model: Model, translator: Translator
) -> None:
    mixed = TRAIN[:5] + HELD
    found = translator.evaluate(model, mixed, controls_from=OTHER, steps=0, untrained_model=False)
    clean = translator.evaluate(model, HELD, controls_from=OTHER, steps=0, untrained_model=False)
    assert found.kl("translator", "r0") == clean.kl("translator", "r0")
    assert "5 prompts were left out: the translator was fitted to them." in found.notes
    assert not any("left out" in note for note in clean.notes)
    with pytest.raises(PromptError, match="of the 30 prompts in the list none is left"):
        translator.evaluate(model, TRAIN, controls_from=OTHER, steps=0)


def test_prompts_that_controls_were_fitted_to_are_left_out(
    model: Model, translator: Translator
) -> None:
    found = translator.evaluate(
        model, OTHER[:4] + HELD, controls_from=OTHER, steps=0, untrained_model=False
    )
    assert found.provenance["options"]["judged_on"]["prompts"] == len(HELD)


def test_one_half_of_the_prompts_is_for_the_controls(model: Model, translator: Translator) -> None:
    twice = [*prompts(40, seed=8), *prompts(40, seed=8)]
    found = translator.evaluate(model, twice, steps=0, untrained_model=False)
    options = found.provenance["options"]
    judged, controls = (options[name]["prompts"] for name in ("judged_on", "controls_fitted_to"))
    assert judged + controls == 80
    assert judged % 2 == 0  # a prompt and its double are on one side
    assert 20 <= judged <= 60


def test_controls_of_the_translators_own_corpus_are_said(
    model: Model, translator: Translator
) -> None:
    found = translator.evaluate(model, HELD, controls_from=TRAIN, steps=0, untrained_model=False)
    assert "The controls were fitted to what the translator was fitted to." in found.notes


def test_an_untrained_copy_has_other_weights_and_changes_nothing(model: Model) -> None:
    state = torch.random.get_rng_state()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    twin, same = untrained(model, 3), untrained(model, 3)
    assert twin is not None
    assert same is not None
    assert torch.equal(torch.random.get_rng_state(), state)
    names = ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"]
    for name in names:
        own = twin.module.state_dict()[name]
        assert not torch.equal(own, before[name])
        assert torch.equal(own, same.module.state_dict()[name])
    assert all(torch.equal(before[n], v) for n, v in model.module.state_dict().items())
    assert (twin.dtype, twin.module.training) == (model.dtype, False)


def test_the_untrained_copy_is_judged_by_its_own_predictions(
    model: Model, found: Evaluation
) -> None:
    twin = untrained(model)
    assert twin is not None
    expected = lens_kl(twin, HELD, None).mean((1, 2))
    for row, value in zip(found.rows, expected.tolist(), strict=True):
        assert found.kl("untrained: logit lens", row).mean == pytest.approx(value, abs=1e-10)
    fitted = fit_lens(twin, OTHER)
    expected = lens_kl(twin, HELD, fitted).mean((1, 2))
    assert found.kl("untrained: least squares", "r0").mean == pytest.approx(
        float(expected[1]), abs=1e-9
    )
    assert "A small KL alone is no success: an untrained copy of the model is" in repr(found)


def test_sublayers_and_chosen_layers_are_judged_at_their_rows(model: Model) -> None:
    some = fit_lens(model, TRAIN, sublayers=True)
    found = some.evaluate(model, HELD, controls_from=OTHER, steps=1)
    assert found.rows == ("input", "r0.mid", "r0", "r1.mid", "r1")
    tiny = hw.load("tiny")
    texts = ["Mary and John went to the store", "Mary met John at the store"]
    one = fit_lens(tiny, texts, layers=[1])
    held = ["John and Mary went to the store", "John met Mary at the store"]
    judged = one.evaluate(tiny, held, controls_from=texts, steps=0, untrained_model=False)
    assert judged.rows == ("input", "r1", "r3")


@pytest.mark.parametrize("control", list(CONTROLS))
def test_a_translator_that_does_not_beat_a_control_is_said_so(control: str) -> None:
    tokens = torch.full((4,), 10.0, dtype=torch.float64)
    good = torch.tensor([[1.0, 2.0, 1.5, 1.2], [0, 0, 0, 0]], dtype=torch.float64)
    noise = torch.tensor([[0.5, -0.5, 0.4, -0.3], [0, 0, 0, 0]], dtype=torch.float64)
    sums = {"translator": good} | dict.fromkeys(CONTROLS, good + 5)
    fine = Evaluation(("r0", "r1"), sums, tokens, "lstsq")
    assert fine.verdicts() == [
        "Better than every control at every row, by more than 2 standard errors of the difference."
    ]
    bad = Evaluation(("r0", "r1"), sums | {control: good + noise}, tokens, "lstsq")
    assert bad.verdicts() == [f"At r0: {CONTROLS[control]}."]
    equal = Evaluation(("r0", "r1"), sums | {control: good}, tokens, "lstsq")
    assert equal.verdicts() == [f"At r0: {CONTROLS[control]}."]


def test_differences_are_of_pairs_of_prompts(found: Evaluation) -> None:
    pairs = (found.sums["logit lens"][0] - found.sums["translator"][0]) / found.tokens
    less = found.less("logit lens", "input")
    assert less.mean == pytest.approx(float(pairs.mean()))
    assert less.error == pytest.approx(float(pairs.std()) / len(pairs) ** 0.5)


def test_a_saved_evaluation_is_read_back_from_the_translators_folder(
    translator: Translator, found: Evaluation, tmp_path: Path
) -> None:
    translator.save(tmp_path)
    found.save(tmp_path)
    found.save(tmp_path)
    back = Evaluation.load(tmp_path)
    assert repr(back) == repr(found)
    assert back.to_dict() == found.to_dict()
    assert Translator.load(tmp_path).described == translator.described
    translator.save(tmp_path)  # the same again: what was judged is still this one
    assert Evaluation.load(tmp_path).rows == found.rows
    (tmp_path / "evaluation.safetensors").unlink()
    with pytest.raises(RunFolderError, match="holds no evaluation that this release can read"):
        Evaluation.load(tmp_path)


def test_another_translator_takes_an_old_evaluation_away(
    model: Model, translator: Translator, found: Evaluation, tmp_path: Path
) -> None:
    translator.save(tmp_path)
    found.save(tmp_path)
    fit_lens(model, OTHER).save(tmp_path, overwrite=True)
    with pytest.raises(RunFolderError, match="holds no evaluation"):
        Evaluation.load(tmp_path)


def test_the_table_is_one_row_a_row_and_lens(found: Evaluation) -> None:
    table = found.to_frame()
    assert isinstance(table, pandas.DataFrame)
    assert len(table) == len(found.rows) * len(found.lenses)
    cell = table[(table["row"] == "r0") & (table["lens"] == "shuffled")].iloc[0]
    assert cell["kl"] == found.kl("shuffled", "r0").mean


def test_what_was_not_judged_is_refused(found: Evaluation) -> None:
    with pytest.raises(UnknownOptionError, match=r"'bias' was not judged\. Closest: 'bias only'"):
        found.kl("bias", "input")
    with pytest.raises(UnknownOptionError, match="'r9' was not judged"):
        found.less("shuffled", "r9")


def test_evaluating_on_another_model_is_refused(translator: Translator) -> None:
    with pytest.raises(ResultError, match="fitted to LlamaForCausalLM"):
        translator.evaluate(tiny_tasks.model("Qwen3"), HELD)
