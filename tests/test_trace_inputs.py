"""What a trace is given, and what the module is called with."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
import transformers
from torch import nn

import tiny_models
from headwater.errors import PromptError, UnknownOptionError, UnknownWordError
from headwater.models import Model, load, wrap
from headwater.prompts import Pair, Task
from headwater.trace.inputs import prepared
from small_tokenizers import word_tokenizer

SHORT, LONG = "Mary and", "When Mary and John went"
SHORT_IDS = [2, 36, 8]
LONG_IDS = [2, 16, 36, 8, 37, 20]

TINY = [load("tiny", prove=False), load("tiny-gpt2", prove=False)]
each_tiny = pytest.mark.parametrize("model", TINY, ids=lambda model: model.name)

WORDS = "the cat sat on a mat dog"


def encoder_model(cls: str = "BertForMaskedLM", **fields: object) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, cls).config_class(
        vocab_size=61,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=32,
        **fields,
    )
    return getattr(transformers, cls)(config).eval()


@functools.cache
def bert(side: str = "right") -> Model:
    tokenizer = word_tokenizer(WORDS, "[BOS] $A [EOS]")
    tokenizer.padding_side = side
    return wrap(encoder_model(), tokenizer)


class Several(nn.Module):
    """Several inputs of any kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x, scale=1.0, *, shift=None):
        y = self.linear(x) * scale
        return y if shift is None else y + shift


class Reader(nn.Module):
    """A language model of one's own: ids first, under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 3)

    def forward(self, tokens, attention_mask=None):
        return self.table(tokens)


class Named(Reader):
    def forward(self, input_ids, mask=None):
        return self.table(input_ids)


class Nothing(nn.Module):
    def forward(self, size=2):
        return torch.zeros(size)


def plain(inputs):
    """Tensors as lists, to compare."""
    args, kwargs = inputs
    listed = [one.tolist() if isinstance(one, torch.Tensor) else one for one in args]
    return listed, {
        name: one.tolist() if isinstance(one, torch.Tensor) else one for name, one in kwargs.items()
    }


def call(model, inputs):
    args, kwargs = inputs
    with torch.no_grad():
        output = model.module(*args, **kwargs)
    return output.logits


# Expected by hand, from the ids of the embedded tokenizer -----------------------------------------

PADDED = {
    "input_ids": [[0, 0, 0, *SHORT_IDS], LONG_IDS],
    "attention_mask": [[0, 0, 0, 1, 1, 1], [1] * 6],
    "position_ids": [[0, 0, 0, 0, 1, 2], [0, 1, 2, 3, 4, 5]],
}
ONE_TEXT = {"input_ids": [SHORT_IDS], "attention_mask": [[1, 1, 1]]}

CASES = {
    "a text": ((SHORT,), {}, ONE_TEXT),
    "texts": (([SHORT, LONG],), {}, PADDED),
    "a tuple of texts": (((SHORT, LONG),), {}, PADDED),
    "texts of one length": (
        (["Mary and", "and Mary"],),
        {},
        {"input_ids": [SHORT_IDS, [2, 8, 36]], "attention_mask": [[1] * 3] * 2},
    ),
    "ids": (([5, 9, 3],), {}, {"input_ids": [[5, 9, 3]]}),
    "rows of ids": (([[5, 9], [3, 4]],), {}, {"input_ids": [[5, 9], [3, 4]]}),
    "rows of several lengths": (
        ([[5], [3, 4]],),
        {},
        {
            "input_ids": [[0, 5], [3, 4]],
            "attention_mask": [[0, 1], [1, 1]],
            "position_ids": [[0, 0], [0, 1]],
        },
    ),
    "a vector": ((torch.tensor([5, 9, 3]),), {}, {"input_ids": [[5, 9, 3]]}),
    "a matrix": ((torch.tensor([[5, 9, 3]]),), {}, {"input_ids": [[5, 9, 3]]}),
    "a dict of lists": (
        ({"input_ids": [5, 9], "attention_mask": [1, 1]},),
        {},
        {"input_ids": [[5, 9]], "attention_mask": [[1, 1]]},
    ),
    "a dict of tensors and a keyword": (
        ({"input_ids": torch.tensor([[5, 9]])},),
        {"use_cache": False},
        {"input_ids": [[5, 9]], "use_cache": False},
    ),
    "keywords": (
        (),
        {"input_ids": [[5, 9]], "position_ids": [3, 4]},
        {"input_ids": [[5, 9]], "position_ids": [[3, 4]]},
    ),
    "a text and keywords": (
        (SHORT,),
        {"logits_to_keep": 1, "output_hidden_states": True},
        {**ONE_TEXT, "logits_to_keep": 1, "output_hidden_states": True},
    ),
    "a text and a mask of one's own": (
        (SHORT,),
        {"attention_mask": [0, 1, 1]},
        {"input_ids": [SHORT_IDS], "attention_mask": [[0, 1, 1]]},
    ),
}


@each_tiny
@pytest.mark.parametrize("name", CASES)
def test_every_form_of_a_prompt_becomes_keywords_of_the_model(model, name):
    args, kwargs, expected = CASES[name]
    assert plain(prepared(model, args, kwargs)) == ([], expected)


@each_tiny
def test_the_ids_of_the_table_are_the_tokenizers_own(model):
    assert model.tokenizer(SHORT)["input_ids"] == SHORT_IDS
    assert model.tokenizer(LONG)["input_ids"] == LONG_IDS
    assert model.module.config.pad_token_id == 0


@each_tiny
def test_a_batch_encoding_is_taken_as_it_is(model):
    given = model.tokenizer([SHORT, LONG], return_tensors="pt", padding=True)
    args, kwargs = prepared(model, (given,), {})
    assert args == ()
    assert kwargs.keys() == given.keys()
    assert all(kwargs[name] is given[name] for name in given)


@each_tiny
def test_a_tensor_of_ids_is_handed_on_itself(model):
    ids = torch.tensor([[5, 9, 3]])
    assert prepared(model, (ids,), {})[1]["input_ids"] is ids
    assert prepared(model, (), {"input_ids": ids})[1]["input_ids"] is ids


@each_tiny
@pytest.mark.parametrize("prompts", [[SHORT, LONG], [SHORT_IDS, LONG_IDS]])
def test_padding_changes_no_number(model, prompts):
    together = call(model, prepared(model, (prompts,), {}))
    alone = call(model, prepared(model, (prompts[0],), {}))[0]
    torch.testing.assert_close(together[0, -3:], alone, rtol=1e-4, atol=1e-5)
    # the test can see a difference: without the mask the numbers change
    ids = prepared(model, (prompts,), {})[1]["input_ids"]
    assert (call(model, ((ids,), {}))[0, -3:] - alone).abs().max() > 1e-2


@each_tiny
def test_padding_changes_no_number_in_float64(model):
    model = model.to(dtype=torch.float64)
    together = call(model, prepared(model, ([SHORT, LONG],), {}))
    alone = call(model, prepared(model, (SHORT,), {}))[0]
    torch.testing.assert_close(together[0, -3:], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("template", ["[BOS] $A", "[BOS] $A [EOS]"])
def test_a_trace_and_a_task_see_the_same_ids(template):
    model = wrap(tiny_models.shared("Llama"), word_tokenizer(WORDS, template))
    (batch,) = Task([Pair("the cat sat", answer="on")]).batches(model.tokenizer)
    kwargs = prepared(model, ("the cat sat",), {})[1]
    assert kwargs["input_ids"].tolist() == batch.clean.tolist() == [[1, 3, 4, 5]]


def test_a_model_that_takes_no_positions_gets_none():
    model = wrap(tiny_models.shared("BLOOM"))
    assert "position_ids" not in model._takes
    assert prepared(model, ([[5], [3, 4]],), {})[1].keys() == {"input_ids", "attention_mask"}


def test_generate_counts_positions_itself_and_takes_its_own_keywords():
    kwargs = prepared(TINY[0], ([SHORT, LONG],), {"max_new_tokens": 3}, for_generate=True)[1]
    expected = {name: PADDED[name] for name in ("input_ids", "attention_mask")}
    assert plain(((), kwargs))[1] == {**expected, "max_new_tokens": 3}
    ids = TINY[0].module.generate(**kwargs, do_sample=False)
    alone = prepared(TINY[0], (SHORT,), {"max_new_tokens": 3}, for_generate=True)[1]
    assert ids[0, 3:].tolist() == TINY[0].module.generate(**alone, do_sample=False)[0].tolist()


def test_inputs_embeds_need_no_ids():
    embeds = torch.zeros(1, 3, TINY[0].anatomy().d_model)
    args, kwargs = prepared(TINY[0], (), {"inputs_embeds": embeds})
    assert args == ()
    assert list(kwargs) == ["inputs_embeds"]
    assert kwargs["inputs_embeds"] is embeds


def test_fractions_are_no_ids():
    given = torch.zeros(1, 3)
    args, kwargs = prepared(TINY[0], (given,), {})
    assert args[0] is given
    assert kwargs == {}


def test_ids_are_let_through_where_no_table_can_be_found(monkeypatch):
    def unknown(_):
        raise NotImplementedError

    monkeypatch.setattr(type(bert().module), "get_input_embeddings", unknown)
    assert plain(prepared(bert(), ([999],), {}))[1] == {"input_ids": [[999]]}


def test_several_positional_inputs_of_a_language_model_stay_where_they_are():
    ids, mask = torch.tensor([[5, 9]]), torch.tensor([[1, 1]])
    args, kwargs = prepared(TINY[0], (ids, mask), {})
    assert args[0] is ids
    assert args[1] is mask
    assert kwargs == {}


def test_everything_goes_where_the_model_is():
    model = wrap(transformers.BertModel(bert().module.config).to("meta"), bert().tokenizer)
    given = {"input_ids": torch.tensor([[5]]), "attention_mask": [1]}
    ids = torch.tensor([5])
    for one in ["the cat", ["the", "the cat"], [5], ids, ids[None], ids[None].float(), given]:
        args, kwargs = prepared(model, (one,), {})
        assert {tensor.device.type for tensor in (*args, *kwargs.values())} == {"meta"}, one


# Models that read in both directions --------------------------------------------------------------


def test_bert_is_padded_where_its_tokenizer_pads_and_keeps_the_ending():
    assert plain(prepared(bert(), (["the cat", "a"],), {}))[1] == {
        "input_ids": [[1, 3, 4, 2], [1, 7, 2, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],
    }
    assert plain(prepared(bert("left"), (["the cat", "a"],), {}))[1] == {
        "input_ids": [[1, 3, 4, 2], [0, 1, 7, 2]],
        "attention_mask": [[1, 1, 1, 1], [0, 1, 1, 1]],
        "position_ids": [[0, 1, 2, 3], [0, 0, 1, 2]],
    }


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_number_of_bert(side):
    model = bert(side)
    together = call(model, prepared(model, (["the cat sat on a mat", "a dog"],), {}))[1]
    alone = call(model, prepared(model, ("a dog",), {}))[0]
    real = together[:4] if side == "right" else together[-4:]
    torch.testing.assert_close(real, alone, rtol=1e-4, atol=1e-5)


def test_a_causal_model_headwater_does_not_know_is_padded_on_the_left():
    # RoBERTa's positions start behind its padding id, so it must count them itself
    module = encoder_model("RobertaForCausalLM", is_decoder=True, pad_token_id=1)
    tokenizer = word_tokenizer(WORDS, "$A")
    tokenizer.padding_side = "right"
    model = wrap(module, tokenizer)
    assert model.adapter is None
    given = ["the cat sat on", "a dog"]
    inputs = prepared(model, (given,), {})
    assert plain(inputs)[1] == {
        "input_ids": [[3, 4, 5, 6], [1, 1, 7, 9]],
        "attention_mask": [[1, 1, 1, 1], [0, 0, 1, 1]],
    }
    alone = call(model, prepared(model, (given[1],), {}))[0]
    torch.testing.assert_close(call(model, inputs)[1, 2:], alone, rtol=1e-4, atol=1e-5)


def test_an_encoder_decoder_gets_what_it_is_given():
    config = transformers.T5Config(
        vocab_size=61, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4, pad_token_id=0
    )
    config.decoder_start_token_id = 0
    model = wrap(
        transformers.T5ForConditionalGeneration(config).eval(), word_tokenizer(WORDS, "$A [EOS]")
    )
    inputs = prepared(model, ("the cat",), {"decoder_input_ids": [5]})
    assert plain(inputs)[1] == {
        "input_ids": [[3, 4, 2]],
        "attention_mask": [[1, 1, 1]],
        "decoder_input_ids": [[5]],
    }
    assert call(model, inputs).shape == (1, 1, 61)


# Modules of one's own -----------------------------------------------------------------------------


def test_inputs_of_any_module_pass_untouched():
    model = wrap(Several())
    x, shift = torch.ones(2, 3), torch.ones(2)
    for given, keywords in [((x,), {}), ((x, 2.0), {"shift": shift}), ((), {"x": x, "scale": 3})]:
        args, kwargs = prepared(model, given, keywords)
        assert args is given
        assert kwargs is keywords


@pytest.mark.parametrize("given", [None, [], [1, 2], [[1], [2, 3]], 5, {"other": 1}, {}])
def test_inputs_of_any_module_are_not_converted(given):
    args, kwargs = prepared(wrap(Several()), (given,), {})
    assert args[0] is given
    assert kwargs == {}


def test_integers_of_any_module_get_no_batch():
    ids = torch.tensor([1, 2])
    args, _ = prepared(wrap(Reader()), (ids,), {})
    assert args[0] is ids


def test_a_mapping_of_parameters_becomes_keywords_of_any_module():
    x = torch.ones(2, 3)
    args, kwargs = prepared(wrap(Several()), ({"x": x, "scale": 2.0},), {"shift": 1})
    assert args == ()
    assert kwargs == {"x": x, "scale": 2.0, "shift": 1}


def test_a_module_that_needs_no_input_runs_without():
    assert prepared(wrap(Nothing()), (), {}) == ((), {})


def test_text_becomes_ids_for_a_module_of_ones_own():
    tokenizer = word_tokenizer(WORDS)
    reads = prepared(wrap(Reader(), tokenizer), ("the cat",), {})
    assert plain(reads) == ([[[1, 3, 4]]], {"attention_mask": [[1, 1, 1]]})
    names = prepared(wrap(Named(), tokenizer), ("the cat",), {})
    assert plain(names) == ([], {"input_ids": [[1, 3, 4]]})
    further = prepared(wrap(Named(), tokenizer), ("the cat", 7), {})
    assert plain(further) == ([[[1, 3, 4]], 7], {})
    tokenizer.padding_side = "right"
    padded = prepared(wrap(Reader(), tokenizer), (["the cat", "a"],), {})
    assert plain(padded) == (
        [[[1, 3, 4], [1, 7, 2]]],
        {"attention_mask": [[1, 1, 1], [1, 1, 0]]},
    )


# Refusals -----------------------------------------------------------------------------------------

TEXT_AND_IDS = ({"input_ids": [[5]]}, {"inputs_embeds": torch.zeros(1, 1, 8)})

REFUSED = {
    "no input": ((), {}, r'nothing to run.*\n.*model\.trace\("The cat"\)'),
    "an empty mapping": (({},), {}, "nothing to run"),
    "an empty text": (("",), {}, "prompt 0 is ''"),
    "a blank text": (("Mary", "  ")[1:], {}, "prompt 0 is '  '"),
    "an empty text among texts": (([SHORT, ""],), {}, "prompt 1 is ''"),
    "an empty list": (([],), {}, "empty list"),
    "an empty row": (([[5], []],), {}, "row 1 of the prompt has no token ids"),
    "None": ((None,), {}, "NoneType"),
    "a number": ((5,), {}, "of type int"),
    "text and ids": (([SHORT, 5],), {}, "but also 5"),
    "ids and text": (([[5], SHORT],), {}, r"but also \[5\]"),
    "a fraction": (([5, 1.5],), {}, "holds 1.5"),
    "ids three deep": (([[[5]]],), {}, r"holds \[5\]"),
    "an empty tensor": ((torch.empty(1, 0, dtype=torch.long),), {}, r"shape \[1, 0\]"),
    "two texts": ((SHORT, LONG), {}, "2 positional inputs, and text among them"),
    "text as a keyword": ((), {"input_ids": SHORT}, "input_ids is text"),
    "ragged keywords": ((), {"input_ids": [[5], [3, 4]]}, "lengths 1, 2"),
    "the same twice": (({"input_ids": [5]},), {"input_ids": [5]}, "input_ids was given twice"),
    "text and ids of it": ((SHORT,), TEXT_AND_IDS[0], "a prompt and input_ids"),
    "text and embeddings": ((SHORT,), TEXT_AND_IDS[1], "a prompt and inputs_embeds"),
    "ids twice": ((torch.tensor([[5]]),), TEXT_AND_IDS[0], "a prompt and input_ids"),
    "an unknown id in a list": (([5, 400],), {}, "token id 400 in prompt 0 at position 1"),
    "an unknown id in a dict": (({"input_ids": [[-1]]},), {}, "token id -1"),
}


@each_tiny
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_prompt_is_refused_by_name(model, name):
    args, kwargs, message = REFUSED[name]
    with pytest.raises(PromptError, match=message):
        prepared(model, args, kwargs)


@each_tiny
def test_unknown_words_are_refused_with_the_closest(model):
    with pytest.raises(UnknownWordError, match=r"'Marry'.*'Mary'"):
        prepared(model, ([SHORT, "Marry and"],), {})


@each_tiny
@pytest.mark.parametrize("as_mapping", [False, True])
def test_a_misspelled_keyword_is_refused_with_the_closest(model, as_mapping):
    keywords = {"attention_msk": torch.tensor([[1]])}
    given = ({"input_ids": [[5]], **keywords},) if as_mapping else ([5],)
    with pytest.raises(UnknownOptionError, match=r"'attention_msk'.*'attention_mask'"):
        prepared(model, given, {} if as_mapping else keywords)
    with pytest.raises(UnknownOptionError, match=r"'requires_grads'.*'requires_grad'"):
        prepared(model, ([5],), {"requires_grads": True}, options=("requires_grad",))


def test_a_forward_that_lists_what_it_takes_refuses_the_rest():
    with pytest.raises(UnknownOptionError, match="takes no 'mask'"):
        prepared(TINY[0], ([5],), {"mask": None})


def test_token_types_are_let_through_where_nobody_uses_them():
    given = {"input_ids": [5], "token_type_ids": [0]}
    assert plain(prepared(TINY[0], (given,), {}))[1] == {
        "input_ids": [[5]],
        "token_type_ids": [[0]],
    }


def test_too_long_prompts_are_refused_unless_the_rest_is_padding():
    gpt2 = TINY[1]
    assert gpt2._longest == 64
    for given in ([5] * 65, torch.full((1, 65), 5)):
        with pytest.raises(PromptError, match="65 tokens"):
            prepared(gpt2, (given,), {})
    mask = torch.tensor([[0] + [1] * 64])
    kwargs = prepared(gpt2, (torch.full((1, 65), 5),), {"attention_mask": mask})[1]
    assert kwargs["input_ids"].shape == (1, 65)


def test_padding_is_refused_where_it_would_count():
    model = wrap(tiny_models.shared("Llama"))
    model.adapter = dataclasses.replace(model.anatomy(), pads=False)
    with pytest.raises(PromptError, match="1, 2 tokens cannot share a batch"):
        prepared(model, ([[5], [3, 4]],), {})
    assert prepared(model, ([[5, 3], [3, 4]],), {})[1]["input_ids"].shape == (2, 2)
    with pytest.raises(PromptError, match="no attention_mask"):
        prepared(wrap(Named(), word_tokenizer(WORDS)), (["the cat", "a"],), {})


def test_text_without_a_tokenizer_is_refused():
    for module in (tiny_models.shared("GPT-2"), Several()):
        for given in ("the cat", ["the cat"]):
            with pytest.raises(PromptError, match=r"no tokenizer[\s\S]*hw\.wrap\(module, tok"):
                prepared(wrap(module), (given,), {})


def test_text_and_ids_are_refused_together_by_any_module():
    model = wrap(Named(), word_tokenizer(WORDS))
    with pytest.raises(PromptError, match="a prompt and input_ids were both given"):
        prepared(model, ("the cat",), {"input_ids": torch.tensor([[3]])})


def test_text_for_a_model_that_takes_no_ids_is_refused():
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=40,
        image_size=8,
        patch_size=4,
    )
    model = wrap(transformers.ViTModel(config))
    with pytest.raises(PromptError, match="no input_ids"):
        prepared(model, ("a cat",), {})
    pixels = torch.zeros(1, 3, 8, 8)
    assert prepared(model, (pixels,), {})[0][0] is pixels
    assert prepared(model, ({"pixel_values": pixels},), {})[1]["pixel_values"] is pixels


def test_a_module_that_needs_inputs_is_not_run_without():
    with pytest.raises(PromptError, match=r"needs x, .*\n.*model\.trace\(x\)"):
        prepared(wrap(Several()), (), {})
