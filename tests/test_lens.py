"""The lens against a dense twin: plain hooks, one log-softmax a row, every statistic by hand."""

import math

import pytest
import torch
from torch import nn

import headwater as hw
from headwater.errors import (
    AnswerError,
    FailedProofError,
    ModelStateError,
    NonFiniteError,
    PromptError,
    ResultError,
    UnavailableSiteError,
    UnknownOptionError,
    UnsupportedModelError,
)
from headwater.lenses import measure as measuring
from headwater.lenses import readout as reading
from headwater.lenses import words
from shape_checks import unchecked
from tiny_models import BUILDERS, VOCAB, build, tokens
from tiny_tasks import model as tiny
from tiny_tasks import text, tokenizer

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
"""Float64: sums over 61 tokens in another order."""


def own_head(module, normed):
    """The logits of what the head reads, by the formulas of the families' papers."""
    config = module.config
    logits = module.get_output_embeddings()(normed)
    if getattr(config, "final_logit_softcapping", None):
        return config.final_logit_softcapping * torch.tanh(logits / config.final_logit_softcapping)
    if config.model_type == "cohere":
        return logits * config.logit_scale
    if config.model_type == "granite":
        return logits / config.logits_scaling
    return logits


def residuals(model, ids):
    """The residual entering layer 0 and after each layer, by plain hooks on the layers."""
    adapter, seen, handles = model.anatomy(), [], []
    for number, layer in enumerate(adapter.layers):

        def before(_, args, kwargs, number=number):
            if number == 0:
                seen.append((args[0] if args else kwargs["hidden_states"]).clone())

        def after(_, args, output):
            seen.append((output[0] if isinstance(output, tuple) else output).clone())

        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(after))
    with torch.no_grad():
        logits = model.forward(ids)
    for handle in handles:
        handle.remove()
    return seen, logits


def dense(model, ids):
    """Log-probabilities [row, batch, pos, vocab] and logits, all at once."""
    from headwater.precision import context_for

    seen, logits = residuals(model, ids)
    norm = model.anatomy().final_norm
    with torch.no_grad(), context_for(model.module):
        z = torch.stack([own_head(model.module, h if norm is None else norm(h)) for h in seen])
    return z, z.log_softmax(-1), logits


@pytest.mark.parametrize("family", BUILDERS)
def test_every_statistic_of_every_family_is_the_dense_twins(family):
    model, ids = tiny(family), tokens(2, 7)
    z, lp, logits = dense(model, ids)
    torch.testing.assert_close(z[-1], logits, rtol=1e-9, atol=1e-9)
    lens = hw.lens(model, ids, best=5, controls=2)
    p, final, first = lp.exp(), lp[-1], lp[0]
    expected = {
        "kl(final||layer)": (final.exp() * (final - lp)).sum(-1),
        "kl(layer||final)": (p * (lp - final)).sum(-1),
        "kl(first||layer)": (first.exp() * (first - lp)).sum(-1),
        "kl(layer||first)": (p * (lp - first)).sum(-1),
        "entropy": -(p * lp).sum(-1),
        "tv(final)": 0.5 * (p - final.exp()).abs().sum(-1),
        "tv(first)": 0.5 * (p - first.exp()).abs().sum(-1),
        "max-prob": p.amax(-1),
        "margin": z.topk(2).values.diff(dim=-1).neg()[..., 0],
        "logprob(input)": lp.gather(-1, ids.expand(len(z), -1, -1)[..., None])[..., 0],
        "agrees": (z.argmax(-1) == z[-1].argmax(-1)).double(),
        "rms": torch.stack(residuals(model, ids)[0]).square().mean(-1).sqrt(),
    }
    for reference, name in ((final, "final"), (first, "first")):
        m = torch.logaddexp(lp, reference) - math.log(2)
        expected[f"js({name})"] = 0.5 * (
            (p * (lp - m)).sum(-1) + (reference.exp() * (reference - m)).sum(-1)
        )
    for key, value in expected.items():
        torch.testing.assert_close(
            lens[key], value, msg=lambda said, key=key: f"{key}: {said}", **CLOSE
        )
    torch.testing.assert_close(lens.topk(5).ids, z.topk(5).indices)
    torch.testing.assert_close(lens.topk(5).logprobs, lp.topk(5).values, **CLOSE)
    own = z.gather(-1, ids.expand(len(z), -1, -1)[..., None])
    torch.testing.assert_close(lens.rank("input"), 1 + (z > own).sum(-1).double())
    torch.testing.assert_close(lens["centered(input)"], own[..., 0] - z.mean(-1), **CLOSE)


@pytest.mark.parametrize("direction", ["ref||layer", "layer||ref"])
def test_kl_against_any_row_is_the_dense_twins(direction):
    model, ids = tiny("Llama"), tokens(2, 7)
    _, lp, _ = dense(model, ids)
    reference = lp[1]
    forward = (reference.exp() * (reference - lp)).sum(-1)
    backward = (lp.exp() * (lp - reference)).sum(-1)
    found = hw.lens(model, ids).kl(against="r0", direction=direction)
    torch.testing.assert_close(found, forward if direction == "ref||layer" else backward, **CLOSE)
    torch.testing.assert_close(hw.lens(model, ids).kl(0, direction), found)


@pytest.mark.parametrize("tile", [1, 100, 2**19])
@pytest.mark.parametrize("width", [7, 61, 2048])
def test_no_number_depends_on_how_the_logits_are_cut_into_tiles(tile, width, monkeypatch):
    model, ids = tiny("GPT-2"), tokens(2, 7)
    whole = hw.lens(model, ids)
    monkeypatch.setattr(reading, "TILE", tile)
    monkeypatch.setattr(reading, "WIDTH", width)
    cut = hw.lens(model, ids)
    for key in whole.arrays.values:
        torch.testing.assert_close(cut[key], whole[key], equal_nan=True, **CLOSE)
    torch.testing.assert_close(cut.topk().ids, whole.topk().ids)


def test_positions_measured_in_parts_are_those_measured_at_once(monkeypatch):
    model, ids = tiny("GPT-2"), tokens(3, 30)
    whole = hw.lens(model, ids)
    monkeypatch.setattr(measuring, "_PAIRS", 1)
    parts = hw.lens(model, ids)
    for key in whole.arrays.values:
        torch.testing.assert_close(parts[key], whole[key], equal_nan=True, **CLOSE)


@pytest.mark.parametrize("family", ["GPT-2", "Gemma 2", "Cohere", "Granite", "OPT"])
def test_a_head_that_cannot_be_cut_into_blocks_is_replayed_with_the_same_numbers(
    family, monkeypatch
):
    model, ids = tiny(family), tokens(2, 7)
    blocks = hw.lens(model, ids)
    monkeypatch.setattr(reading, "_tried", lambda _: None)
    replayed = hw.lens(model, ids)
    for key in blocks.arrays.values:
        torch.testing.assert_close(replayed[key], blocks[key], equal_nan=True, **CLOSE)


@pytest.mark.parametrize("family", BUILDERS)
def test_every_familys_head_is_cut_into_blocks(family):
    assert reading.Readout(tiny(family)).head is not None


def test_prompts_of_several_lengths_are_read_as_each_alone():
    model = tiny("GPT-2")
    prompts = [text(tokens(1, length, seed=length)[0].tolist()) for length in (3, 6, 1)]
    together = hw.lens(model, prompts, controls=0)
    for number, prompt in enumerate(prompts):
        alone = hw.lens(model, prompt, controls=0)
        width = alone.mask.shape[1]
        for key, value in alone.arrays.values.items():
            torch.testing.assert_close(
                together[key][:, number, :width], value[:, 0], equal_nan=True, **CLOSE
            )
            assert together[key][:, number, width:].isnan().all()
        assert (together.topk().ids[:, number, width:] == -1).all()
    assert together.mask.sum(-1).tolist() == [alone_length(model, one) for one in prompts]


def alone_length(model, prompt):
    return len(model.tokenizer(prompt)["input_ids"])


def test_next_is_the_token_that_follows_and_the_last_position_has_none():
    model, ids = tiny("Llama"), tokens(1, 5)
    _, lp, _ = dense(model, ids)
    lens = hw.lens(model, ids)
    expected = lp[:, 0, :-1].gather(-1, ids[0, 1:, None].expand(len(lp), -1, -1))[..., 0]
    torch.testing.assert_close(lens.cross_entropy()[:, 0, :-1], -expected, **CLOSE)
    assert lens.cross_entropy()[:, 0, -1].isnan().all()
    assert lens.rank("next")[:, 0, -1].isnan().all()


def test_rows_between_attention_and_mlp_are_the_residual_there():
    model, ids = tiny("Llama"), tokens(1, 5)
    seen = {}
    handles = [
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda _, args, number=number: seen.__setitem__(f"r{number}.mid", args[0].clone())
        )
        for number, layer in enumerate(model.module.model.layers)
    ]
    with torch.no_grad():
        model.forward(ids)
    for handle in handles:
        handle.remove()
    lens = hw.lens(model, ids, sublayers=True)
    assert lens.names == ("input", "r0.mid", "r0", "r1.mid", "r1")
    for name, value in seen.items():
        with torch.no_grad():
            z = model.module.lm_head(model.module.model.norm(value))
        torch.testing.assert_close(lens.topk(3).ids[lens.row(name)], z.topk(3).indices)
        entropy = -(z.softmax(-1) * z.log_softmax(-1)).sum(-1)
        # this norm was called outside true float64: it computes in float32
        torch.testing.assert_close(lens.entropy()[lens.row(name)], entropy, rtol=1e-5, atol=1e-5)


def test_writes_are_read_through_a_norm_of_their_own():
    model, ids = tiny("GPT-2"), tokens(1, 5)
    seen = {}
    mlp = model.module.transformer.h[1].mlp
    handle = mlp.register_forward_hook(lambda _, args, output: seen.update(out=output.clone()))
    with torch.no_grad():
        model.forward(ids)
    handle.remove()
    lens = hw.lens(model, ids, writes=True, sublayers=True)
    assert lens.names == ("input", "a0", "r0.mid", "m0", "r0", "a1", "r1.mid", "m1", "r1")
    with torch.no_grad():
        z = model.module.lm_head(model.module.transformer.ln_f(seen["out"]))
    entropy = -(z.softmax(-1) * z.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(lens.entropy()[lens.row("m1")], entropy, **CLOSE)


def test_chosen_layers_keep_the_input_and_the_last_one():
    lens = hw.lens(hw.load("tiny"), "Mary and John", layers=[1, -2])
    assert lens.names == ("input", "r1", "r2", "r3")
    whole = hw.lens(hw.load("tiny"), "Mary and John")
    torch.testing.assert_close(lens.kl()[1], whole.kl()[whole.row("r1")])


def test_next_norm_reads_through_the_norm_of_the_layer_that_reads_the_row():
    model, ids = tiny("GPT-2"), tokens(1, 5)
    seen, _ = residuals(model, ids)
    body = model.module.transformer
    lens = hw.lens(model, ids, readout="next-norm")
    norms = [body.h[0].ln_1, body.h[1].ln_1, body.ln_f]
    for row, (value, norm) in enumerate(zip(seen, norms, strict=True)):
        with torch.no_grad():
            z = model.module.lm_head(norm(value))
        torch.testing.assert_close(
            lens.topk(3).logprobs[row], z.log_softmax(-1).topk(3)[0], **CLOSE
        )


def test_next_norm_reads_between_attention_and_mlp_through_the_mlps_norm():
    model, ids = tiny("GPT-2"), tokens(1, 5)
    block, seen = model.module.transformer.h[0], {}
    handle = block.ln_2.register_forward_hook(lambda _, args, out: seen.update(normed=out.clone()))
    with torch.no_grad():
        model.forward(ids)
    handle.remove()
    lens = hw.lens(model, ids, readout="next-norm", sublayers=True)
    with torch.no_grad():
        z = model.module.lm_head(seen["normed"])
    found = lens.topk(3).logprobs[lens.row("r0.mid")]
    torch.testing.assert_close(found, z.log_softmax(-1).topk(3)[0], **CLOSE)


def test_no_norm_reads_the_residual_as_it_is():
    model, ids = tiny("Llama"), tokens(1, 5)
    seen, _ = residuals(model, ids)
    lens = hw.lens(model, ids, readout="none")
    with torch.no_grad():
        z = model.module.lm_head(seen[1])
    torch.testing.assert_close(lens.topk(3).logprobs[1], z.log_softmax(-1).topk(3)[0], **CLOSE)


def test_a_model_that_reads_without_a_norm_has_no_next_norm():
    with pytest.raises(
        UnsupportedModelError, match=r"layer 0 .*\(OLMo 2\) reads .* without a norm"
    ):
        hw.lens(tiny("OLMo 2"), tokens(1, 5), readout="next-norm")


def test_decoding_with_the_embedding_ranks_the_input_by_its_own_vector():
    model, ids = tiny("Llama"), tokens(1, 5)
    seen, _ = residuals(model, ids)
    from headwater.precision import context_for

    with torch.no_grad(), context_for(model.module):
        normed = model.module.model.norm(seen[0])
    z = normed @ model.module.get_input_embeddings().weight.T
    lens = hw.lens(model, ids, decode_with="embedding")
    own = z.gather(-1, ids[..., None])
    torch.testing.assert_close(lens.rank("input")[0], 1 + (z > own).sum(-1).double())


def test_ties_count_half_and_tokens_with_the_same_vector_tie_exactly():
    module = build("GPT-2")
    with torch.no_grad():
        module.get_output_embeddings().weight[[10, 20, 30, 40]] = (
            module.get_output_embeddings().weight[10].clone()
        )
    model = hw.wrap(module, tokenizer())
    ids = torch.tensor([[10, 20, 5, 30]])
    lens = hw.lens(model, ids)
    assert (lens.rank("input", ties="ties")[:, 0, [0, 1, 3]] == 3).all()
    assert (lens.rank("input", ties="ties")[:, 0, 2] == 0).all()
    torch.testing.assert_close(
        lens.rank("input"),
        lens.rank("input", ties="strict") + lens.rank("input", ties="ties") / 2,
    )


class _Masked(nn.Module):
    """Sets the logits of some tokens to minus infinity, as models that suppress tokens do."""

    def __init__(self, head, masked):
        super().__init__()
        self.head, self.masked = head, masked

    @property
    def weight(self):
        return self.head.weight

    def forward(self, hidden):
        logits = self.head(hidden)
        logits[..., self.masked] = -torch.inf
        return logits


def test_masked_logits_have_probability_zero_and_zero_log_zero_is_zero():
    module, masked = build("GPT-2", dtype=torch.float64), [4, 17, 60]
    plain = hw.wrap(module, tokenizer())
    ids = torch.tensor([[5, 9, 33, 21]])
    z, _, _ = dense(plain, ids)
    kept = [one for one in range(VOCAB) if one not in masked]
    lp = z[..., kept].log_softmax(-1)
    module.lm_head = _Masked(module.lm_head, masked)
    lens = hw.lens(hw.wrap(module, tokenizer()), ids)
    final, p = lp[-1], lp.exp()
    torch.testing.assert_close(lens.kl(), (final.exp() * (final - lp)).sum(-1), **CLOSE)
    torch.testing.assert_close(lens.entropy(), -(p * lp).sum(-1), **CLOSE)
    torch.testing.assert_close(lens.tv(), 0.5 * (p - final.exp()).abs().sum(-1), **CLOSE)
    assert (lens.js() <= math.log(2)).all()
    torch.testing.assert_close(lens.kl("r0")[1], torch.zeros(1, 4, dtype=torch.float64), **CLOSE)


def test_a_token_that_one_row_masks_and_another_does_not_makes_one_divergence_infinite():
    from headwater.lenses.readout import Tile
    from headwater.lenses.sums import Mixtures, Sums

    z = torch.tensor([[[0.0, 1.0, 2.0], [0.0, 1.0, -torch.inf]]], dtype=torch.float64)
    targets = torch.zeros(1, 1, dtype=torch.long)
    for cut in ([3], [1, 2], [2, 1], [1, 1, 1]):
        sums, first = Sums(z[..., :1], targets, 2), 0
        for width in cut:
            sums.add(Tile(0, first, z[..., first : first + width].clone()))
            first += width
        lp = z.log_softmax(-1)
        finite = float((lp[0, 1, :2].exp() * (lp[0, 1, :2] - lp[0, 0, :2])).sum())
        kl = sums.divergences()[0]
        assert kl[0, 1] == torch.inf
        assert float(kl[1, 0]) == pytest.approx(finite, abs=1e-12)
        assert float(sums.mean_logit()[0, 1]) == 0.5
        mixtures = Mixtures(sums.log_norm(), (0,))
        mixtures.add(Tile(0, 0, z.clone()))
        p, q = lp[0].exp()
        assert float(mixtures.tv[0, 1, 0]) == pytest.approx(float((p - q).abs().sum() / 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vocabulary_that_begins_with_masked_tokens_is_summed_without_underflow(dtype):
    from headwater.lenses.readout import Tile
    from headwater.lenses.sums import Sums

    z = torch.tensor([[[-torch.inf, -torch.inf, -120.0, -121.0, -123.0]]], dtype=dtype)
    sums = Sums(z[..., 2:3], torch.tensor([[2]]), 2)
    for first in (0, 2):
        sums.add(Tile(0, first, z[..., first : first + 3 if first else 2].clone()))
    lp = z[..., 2:].double().log_softmax(-1)
    assert float(sums.log_norm()) == pytest.approx(float(z[..., 2:].double().logsumexp(-1)))
    assert float(sums.entropy()) == pytest.approx(float(-(lp.exp() * lp).sum()), rel=1e-5)


def test_close_distributions_have_an_accurate_jensen_shannon_divergence():
    from headwater.lenses.readout import Tile
    from headwater.lenses.sums import Mixtures

    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 1, 5000, generator=generator, dtype=torch.float64)
    d = 1e-4 * torch.randn(1, 1, 5000, generator=generator, dtype=torch.float64)
    both = torch.cat([z, z + d], dim=1)
    lp = both.log_softmax(-1)
    # second order: JS = Var_p(d) / 8
    p = lp[0, 0].exp()
    variance = float((p * d[0, 0] ** 2).sum() - (p * d[0, 0]).sum() ** 2)
    for dtype, allowed in ((torch.float64, 1e-3), (torch.float32, 5e-2)):
        mixtures = Mixtures(both.logsumexp(-1), (0,))
        mixtures.add(Tile(0, 0, both.to(dtype, copy=True)))
        assert float(mixtures.js[0, 1, 0]) == pytest.approx(variance / 8, rel=allowed)


@pytest.mark.parametrize("size", [1.0, 10.0, 40.0])
def test_float32_divergences_are_right_to_a_thousandth_of_a_nat(size):
    from headwater.lenses.readout import Tile
    from headwater.lenses.sums import Sums

    z = size * torch.randn(4, 5, 20_000, generator=torch.Generator().manual_seed(1))
    lp = z.double().log_softmax(-1)
    expected = (lp.exp()[:, :, None] * (lp[:, :, None] - lp[:, None])).sum(-1)
    sums = Sums(z[..., :1], torch.zeros(4, 1, dtype=torch.long), 2)
    for first in range(0, 20_000, 2048):
        sums.add(Tile(0, first, z[..., first : first + 2048].clone()))
    torch.testing.assert_close(sums.divergences(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums.entropy(), -(lp.exp() * lp).sum(-1), rtol=1e-5, atol=1e-5)


def test_decided_is_the_row_after_which_the_choice_no_longer_changes():
    lens = hw.lens(hw.load("tiny"), ["Mary and John went to the store", "Anna gave the ball"])
    top, decided = lens.topk(1).ids[..., 0], lens.decided()
    for prompt, position in lens.mask.nonzero().tolist():
        same = [one == int(top[-1, prompt, position]) for one in top[:, prompt, position].tolist()]
        at = next(row for row in range(len(same)) if all(same[row:]))
        assert int(decided.at[prompt, position]) == at
        assert int(decided.first[prompt, position]) == same.index(True)
    assert (decided.at[~lens.mask] == -1).all()


@pytest.mark.parametrize("prompt", ["def f(x):\n    return x", "s = 'é\u4e2d\U0001f600'"])
def test_bits_per_byte_is_the_cross_entropy_of_the_text(prompt):
    model = hw.load("tiny-python")
    lens = hw.lens(model, prompt)
    ids = torch.tensor(model.tokenizer(prompt)["input_ids"])
    assert int(ids[0]) == model.tokenizer.bos_token_id  # it spells no byte: all are predicted
    lp = model.forward(ids[None])[0].log_softmax(-1)
    nats = -lp[:-1].gather(-1, ids[1:, None]).sum()
    expected = float(nats) / math.log(2) / len(prompt.encode())
    # float32 sums over the vocabulary in another order
    assert float(lens.bits_per_byte()[-1]) == pytest.approx(expected, rel=1e-4)


def test_bytes_of_the_first_token_are_read_and_not_predicted():
    lens = hw.lens(tiny("GPT-2"), "w17 w5 w20")
    assert lens.text_of(int(lens.arrays.ids[0, 0])) == "w17"
    expected = lens.cross_entropy()[-1].nansum() / math.log(2) / len(" w5 w20")
    assert float(lens.bits_per_byte()[-1]) == pytest.approx(float(expected), rel=1e-12)


def test_words_are_ranked_at_every_position():
    model = hw.load("tiny")
    lens = hw.lens(model, "Mary and John went to", tokens=["Mary", 7])
    z, lp, _ = dense(model, lens.arrays.ids)
    (mary,) = model.tokenizer("Mary", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(lens.logprob("Mary"), lp[..., mary], rtol=1e-4, atol=1e-4)
    assert (lens.rank("Mary")[-1] == 1 + (z[-1] > z[-1, ..., mary, None]).sum(-1)).all()
    assert lens.tokens[1] == lens.text_of(7)


def test_a_bfloat16_model_is_read_in_float32():
    module = build("Llama", dtype=torch.bfloat16)
    model, ids = hw.wrap(module, tokenizer()), tokens(1, 6)
    lens = hw.lens(model, ids)
    seen, _ = residuals(model, ids)
    with torch.no_grad():
        z = module.model.norm(seen[1]).float() @ module.lm_head.weight.float().T
    torch.testing.assert_close(
        lens.topk(3).logprobs[1], z.log_softmax(-1).topk(3)[0], rtol=1e-5, atol=1e-5
    )
    assert lens.kl().dtype == torch.float32


def test_one_token_is_enough():
    lens = hw.lens(tiny("GPT-2"), torch.tensor([[7]]))
    assert lens.kl().shape == (3, 1, 1)
    assert lens.cross_entropy().isnan().all()


def test_parameters_hooks_and_mode_are_as_before():
    module = build("GPT-2")
    model = hw.wrap(module, tokenizer())
    hooks = {
        name: len(one._forward_hooks) + len(one._forward_pre_hooks)
        for name, one in module.named_modules()
    }
    for option in ("final-norm", "next-norm", "none"):
        hw.lens(model, tokens(1, 4), readout=option)
    after = {
        name: len(one._forward_hooks) + len(one._forward_pre_hooks)
        for name, one in module.named_modules()
    }
    assert after == hooks
    assert all(parameter.requires_grad for parameter in module.parameters())


def gpt2(*prompts, **options):
    return hw.lens(tiny("GPT-2"), *prompts, **options)


REFUSED = [
    (lambda: gpt2(""), PromptError, "the text is empty"),
    (lambda: gpt2([]), PromptError, "no prompt to read"),
    (lambda: gpt2([[]]), PromptError, "no token ids"),
    (lambda: gpt2(["w5 w6", ""]), PromptError, "prompt 1: the text is empty"),
    (lambda: gpt2([[1, 99]]), PromptError, "token id 99 in prompt 0"),
    (lambda: gpt2(torch.ones(2)), PromptError, "holds no token ids"),
    (lambda: gpt2({"a": 1}), PromptError, "is no prompt"),
    (lambda: gpt2([1, 2], layers=[2]), UnknownOptionError, "no layer 2: .* 2 layers"),
    (lambda: gpt2([1, 2], readout="final"), UnknownOptionError, "'final-norm'"),
    (lambda: gpt2([1, 2], tokens=["w5 w6"]), AnswerError, "'w5 w6' is 2 tokens"),
    (lambda: gpt2([1, 2], tokens=[61]), AnswerError, "token id 61 is none"),
    (lambda: gpt2([1, 2], best=0), UnknownOptionError, "best=0"),
    (lambda: hw.lens(tiny("Phi"), [1, 2], sublayers=True), UnavailableSiteError, "resid_mid"),
    (lambda: hw.lens(hw.wrap(nn.Linear(2, 2)), "x"), UnsupportedModelError, "no Hugging Face"),
    (lambda: gpt2([1, 2]).kl("r7"), UnknownOptionError, "no row 'r7'"),
    (lambda: gpt2([1, 2]).kl(direction="both"), UnknownOptionError, "direction='both'"),
    (lambda: gpt2([1, 2]).topk(11), UnknownOptionError, r"hw.lens\(..., best=11\)"),
    (lambda: gpt2([1, 2]).rank("Mary"), UnknownOptionError, "'Mary' was ranked"),
    (lambda: gpt2([1, 2], mixtures=False).js(), UnknownOptionError, "mixtures=True"),
    (lambda: gpt2([1, 2])["kl(final|layer)"], UnknownOptionError, "Closest: 'kl"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "said"), REFUSED)
def test_what_cannot_be_read_is_refused_with_what_to_do(call, kind, said):
    with unchecked(), pytest.raises(kind, match=said):
        call()


def test_logits_that_are_no_numbers_are_named():
    module = build("GPT-2")
    model = hw.wrap(module, tokenizer())
    with torch.no_grad():
        module.transformer.h[0].mlp.c_proj.bias[0] = torch.nan
    with pytest.raises(NonFiniteError, match="prompt 0, position 0, row r0"):
        hw.lens(model, tokens(1, 4))


def test_a_lens_is_tested_only_on_the_model_that_was_read():
    module = build("GPT-2")
    model = hw.wrap(module, tokenizer())
    lens = hw.lens(model, tokens(1, 6))
    lens.check(sample=1, progress=False)
    with torch.no_grad():
        module.transformer.h[1].mlp.c_fc.weight.mul_(1.5)
    with pytest.raises(ResultError, match="another one now"):
        lens.check(sample=1)
    with pytest.raises(ResultError, match="another one now"):
        lens.kept(hw.wrap(build("GPT-2", seed=1), tokenizer()))


def test_infinite_divergences_are_left_out_of_printed_means_and_that_is_said():
    import dataclasses

    lens = hw.lens(tiny("GPT-2"), tokens(1, 4))
    kl = lens.arrays.kl.clone()
    kl[-1, 0, 0, 1] = torch.inf
    changed = dataclasses.replace(lens, arrays=dataclasses.replace(lens.arrays, kl=kl))
    lines = words.table(changed)
    shown = next(line for line in lines if line.startswith("input")).split()[1]
    expected = lens.kl()[0, 0, [0, 2, 3]].mean()
    assert float(shown) == pytest.approx(float(expected), rel=1e-3)
    assert "at 1 positions, are left out" in lines[-1]


def test_active_dropout_is_refused():
    module = build("GPT-2")
    model = hw.wrap(module, tokenizer())
    module.train()
    with pytest.raises(ModelStateError, match="dropout is active"):
        hw.lens(model, tokens(1, 4))


def test_a_readout_that_is_not_the_models_own_is_refused():
    module = build("GPT-2")
    model = hw.wrap(module, tokenizer())
    handle = module.lm_head.register_forward_hook(
        lambda _, args, output: output + 3 * args[0][..., :1]
    )
    with pytest.raises(FailedProofError, match="differs from the logits"):
        hw.lens(model, tokens(1, 4))
    handle.remove()
    hw.lens(model, tokens(1, 4))
