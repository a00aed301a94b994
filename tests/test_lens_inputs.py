"""What may be given to a lens, and what its last row is."""

import warnings

import pytest
import torch
from transformers import BatchEncoding

import headwater as hw
from headwater.errors import HeadwaterNotice, UnknownModelError, UnknownOptionError
from shape_checks import unchecked
from tiny_models import build, tokens
from tiny_tasks import model as tiny
from tiny_tasks import tokenizer


@pytest.mark.parametrize("reading", ["final-norm", "next-norm", "none"])
def test_the_last_row_is_the_models_own_prediction_however_rows_are_read(reading):
    model, ids = tiny("Llama"), tokens(2, 6)
    lens = hw.lens(model, ids, readout=reading)
    own = model.forward(ids).log_softmax(-1)
    torch.testing.assert_close(lens.topk(3).logprobs[-1], own.topk(3).values, rtol=1e-9, atol=1e-9)
    if reading == "none":
        first = lens.check(sample=2, progress=False)
        assert first.identity < 1e-9


def test_what_a_tokenizer_returns_is_read_without_its_padding():
    model = tiny("GPT-2")
    ids = [[5, 9, 21], [7, 8]]
    padded = BatchEncoding(
        {
            "input_ids": torch.tensor([[5, 9, 21], [0, 7, 8]]),
            "attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]]),
        }
    )
    expected, found = hw.lens(model, ids), hw.lens(model, padded)
    torch.testing.assert_close(found.arrays.ids, expected.arrays.ids)
    torch.testing.assert_close(found.kl(), expected.kl(), equal_nan=True)


def test_arrays_of_numpy_are_token_ids():
    model, ids = tiny("GPT-2"), tokens(2, 4)
    found = hw.lens(model, ids.numpy())
    torch.testing.assert_close(found.kl(), hw.lens(model, ids).kl())


def test_one_layer_may_be_a_number():
    assert hw.lens(tiny("GPT-2"), tokens(1, 3), layers=0).names == ("input", "r0", "r1")


def test_a_word_given_by_its_id_is_found_by_its_id():
    lens = hw.lens(tiny("GPT-2"), tokens(1, 3), tokens=[36])
    torch.testing.assert_close(lens.rank(36), lens.rank("w36"))
    torch.testing.assert_close(lens["rank(w36)"], lens.rank("w36"))
    torch.testing.assert_close(lens["logprob(w36)"], lens.logprob(36))


def test_divergences_from_any_row_have_a_key():
    lens = hw.lens(tiny("GPT-2"), tokens(1, 3))
    torch.testing.assert_close(lens["kl(r0||layer)"], lens.kl("r0"))
    torch.testing.assert_close(lens["kl(layer||r0)"], lens.kl("r0", "layer||ref"))
    with pytest.raises(UnknownOptionError, match="no row 'r7'"):
        lens["kl(r7||layer)"]


@pytest.mark.parametrize("model", ["tiny", build("GPT-2")], ids=["name", "module"])
def test_what_is_no_model_is_refused_with_how_to_make_one(model):
    said = r"hw\.load\('tiny'\)" if model == "tiny" else r"hw\.wrap\(module, tokenizer\)"
    with unchecked(), pytest.raises(UnknownModelError, match=said):
        hw.lens(model, "w5")


def test_a_prompt_longer_than_a_rotary_model_was_made_for_is_noticed_once():
    model = hw.wrap(build("Llama"), tokenizer())
    with pytest.warns(HeadwaterNotice, match="70 tokens, .* was made for 64"):
        hw.lens(model, tokens(1, 70))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hw.lens(model, tokens(1, 70))


def test_a_corpus_is_cut_to_what_a_rotary_model_was_made_for():
    model = hw.wrap(build("Llama"), tokenizer())
    found = hw.lens_dataset(model, [tokens(1, 100)[0].tolist()], progress=False)
    assert (found.corpus["pieces"], found.corpus["length"]) == (2, 64)


def test_positions_that_are_not_there_are_not_drawn():
    pytest.importorskip("matplotlib")
    with pytest.raises(UnknownOptionError, match="none of them is there"):
        hw.lens(tiny("GPT-2"), tokens(1, 3)).plot(positions=slice(5, 9))
