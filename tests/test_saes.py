"""Dictionaries trained and looked into, against plain hooks, loops and closed forms."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import pytest
import torch
from torch.testing import assert_close

import headwater as hw
import tiny_tasks
from headwater.dictionaries import Dictionaries, Dictionary, JumpRelu, Origin, Relu, TopK
from headwater.errors import (
    DictionaryError,
    ModelStateError,
    PromptError,
    RunFolderError,
    UnavailableSiteError,
    UnknownOptionError,
    UnknownSiteError,
)
from headwater.loading import embedded_folder
from headwater.saes import inspect_dictionary, train_dictionary
from headwater.saes.learner import Learner, Units
from headwater.saes.recipe import Recipe
from headwater.saes.stream import Place, Stream
from headwater.sites import Site
from headwater.zoo import corpus
from headwater.zoo.train_dictionaries import DictionaryRecipe, sites, train
from tiny_models import VOCAB, build

SITE = "layers.0.mlp.out"
QUICK = {"features": 12, "steps": 23, "tokens": 16, "learning_rate": 0.01, "progress": False}
WEIGHTS = "sae_weights.safetensors"


@pytest.fixture(scope="module")
def model():
    return tiny_tasks.model("GPT-2")  # float64 in its own code too, so plain hooks see the same


def prompts(count, *, seed=0, lengths=range(2, 9)):
    draw = random.Random(seed)
    return [
        tiny_tasks.text([draw.randrange(tiny_tasks.FIRST_WORD, VOCAB) for _ in range(length)])
        for length in (draw.choice(list(lengths)) for _ in range(count))
    ]


TEXTS = prompts(12)


def ids_of(text):
    return torch.tensor([tiny_tasks.tokenizer()(text)["input_ids"]])


def outputs(module, part, text):
    """What a module returns on one prompt alone, [pos, width], by a hook of torch's own."""
    kept = []

    def hook(_, args, output):
        kept.append((output[0] if isinstance(output, tuple) else output)[0])

    handle = part.register_forward_hook(hook)
    with torch.no_grad():
        module(ids_of(text))
    handle.remove()
    return kept[0]


def sorted_rows(values):
    return torch.tensor(sorted(values.tolist()), dtype=values.dtype)


def stream(model, dataset, site=SITE, **changed):
    options = {
        "tokens": 8,
        "buffer": 40,
        "batch_size": 2,
        "limit": None,
        "length": None,
        "skip": 0,
        "seed": 0,
        **changed,
    }
    return Stream(model, dataset, Site.parse(site), **options)


# What is read


def test_a_stream_serves_every_real_token_and_no_padding(model):
    expected = torch.cat(
        [outputs(model.module, model.module.transformer.h[0].mlp, t) for t in TEXTS]
    )
    found = next(stream(model, TEXTS, buffer=10_000).rounds(Place()))
    assert found.last
    assert_close(sorted_rows(found.values), sorted_rows(expected), rtol=0, atol=1e-12)


def test_positions_at_the_front_can_be_left_out_and_prompts_cut(model):
    mlp = model.module.transformer.h[0].mlp
    expected = torch.cat([outputs(model.module, mlp, text)[2:5] for text in TEXTS])
    found = next(stream(model, TEXTS, buffer=10_000, skip=2, length=5).rounds(Place()))
    assert_close(sorted_rows(found.values), sorted_rows(expected), rtol=0, atol=1e-12)


def test_heads_are_laid_side_by_side(model):
    projection = model.module.transformer.h[0].attn.c_proj
    kept = []
    handle = projection.register_forward_pre_hook(lambda _, args: kept.append(args[0][0]))
    with torch.no_grad():
        for text in TEXTS:
            model.module(ids_of(text))
    handle.remove()
    found = next(stream(model, TEXTS, "layers.0.attn.z", buffer=10_000).rounds(Place()))
    assert_close(sorted_rows(found.values), sorted_rows(torch.cat(kept)), rtol=0, atol=1e-12)


def test_a_round_serves_each_of_its_tokens_once_in_an_order_of_its_own(model):
    reader = stream(model, TEXTS, buffer=10_000, tokens=7)
    rounds = reader.rounds(Place())
    first, second = next(rounds), next(rounds)
    served = [torch.cat([x for _, x in reader.batches(one)]) for one in (first, second)]
    whole = Counter(map(tuple, first.values.tolist()))
    for rows in served:
        assert len(rows) == len(first.values) // 7 * 7
        assert Counter(map(tuple, rows.tolist())) <= whole
    assert not torch.equal(*served)


def test_memory_is_the_buffer_and_one_window_more(model):
    reader = stream(model, prompts(60), buffer=40, batch_size=2)
    longest = 4 * 2 * 8  # batches a window, prompts a batch, tokens of the longest prompt
    rounds = reader.rounds(Place())
    assert all(40 <= len(next(rounds).values) < 40 + longest for _ in range(4))


def test_a_corpus_that_fits_into_the_buffer_runs_once(model):
    reader, ran = stream(model, TEXTS, buffer=10_000), []
    reader.advance = lambda work, note="": ran.append(work)
    rounds = reader.rounds(Place())
    for _ in range(5):
        next(rounds)
    assert sum(ran) == len(TEXTS)


# What is learned


def planted(count=2000, width=16, features=8, seed=0):
    """Sums of two out of eight orthogonal directions, on a mean that is not zero."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.float64))[0]
    chosen = torch.rand(count, features, generator=draw).argsort(1)[:, :2]
    sizes = torch.zeros(count, features, dtype=torch.float64)
    amount = 1 + torch.rand(count, 2, generator=draw, dtype=torch.float64)
    sizes.scatter_(1, chosen, amount)
    return directions[:features], 3 * sizes @ directions[:features] + 5


def learned(values, **settings):
    recipe = Recipe(**{"tokens": 100, "learning_rate": 0.02, "buffer": 2000, **settings})
    learner = Learner(recipe, Units.of(values))
    draw = torch.Generator().manual_seed(1)
    for _ in range(recipe.steps):
        learner.step(values[torch.randint(len(values), (recipe.tokens,), generator=draw)])
    return learner


@pytest.mark.parametrize(
    "kind", [{"activation": "topk", "k": 2}, {"activation": "relu", "l1": 0.1}]
)
def test_planted_directions_are_found(kind):
    directions, values = planted()
    learner = learned(values, features=12, steps=600, **kind)
    found = learner.found()
    cosines = (found.decoder / found.decoder.norm(dim=-1, keepdim=True)) @ directions.T
    assert float(cosines.max(0).values.min()) > 0.97
    error = (values - found.reconstruct(values)).square().sum()
    assert float(error / (values - values.mean(0)).square().sum()) < 0.05
    assert learner.figures()["explained_variance"] > 0.95


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_the_dictionary_does_in_the_site_s_units_what_was_learned_in_others(kind):
    _, values = planted()
    learner = learned(values, features=12, steps=20, activation=kind)
    mean, scale = learner.units.mean, learner.units.scale
    with torch.no_grad():
        pre = (values - mean) * scale @ learner.encoder + learner.encoder_bias
        found = learner.activation(pre)
        expected = (found @ learner.decoder + learner.decoder_bias) / scale + mean
    dictionary = learner.found()
    assert_close(dictionary.encode(values), found / scale, rtol=1e-9, atol=1e-9)
    assert_close(dictionary.reconstruct(values), expected, rtol=1e-9, atol=1e-9)
    rows = dictionary.decoder.norm(dim=-1)
    assert_close(rows, torch.ones_like(rows))


def test_the_first_step_s_loss_and_move_are_those_of_plain_torch():
    _, values = planted()
    recipe = Recipe(features=12, steps=100, tokens=50, activation="relu", l1=0.3, buffer=2000)
    learner = Learner(recipe, Units.of(values))
    before = {name: getattr(learner, name).detach().clone() for name in ("encoder", "decoder")}
    batch = values[:50]
    z = (batch - values.mean(0)) / (values - values.mean(0)).square().mean().sqrt()
    encoder = before["encoder"].clone().requires_grad_()
    pre = z @ encoder
    features = torch.where(pre > 0, pre, torch.zeros_like(pre))
    missed = z - features @ before["decoder"]
    # the price has risen to a tenth in the first of ten steps
    loss = (missed**2).mean() + 0.3 * 0.1 * features.sum(1).mean() / math.sqrt(16)
    loss.backward()
    lost, active = learner.step(batch)
    assert lost == pytest.approx((missed**2).mean().item(), rel=1e-12)
    assert active == pytest.approx(float((features > 0).sum(1).double().mean()))
    # Adam's first step is the rate times the gradient's sign; the rate is a fifth of 1e-3
    moved = before["encoder"] - recipe.learning_rate / 5 * encoder.grad.sign()
    big = encoder.grad.abs() > 1e-4  # where Adam's eps of 1e-8 plays no part
    assert_close(learner.encoder.detach()[big], moved[big], rtol=1e-4, atol=1e-7)
    assert bool(big.any())


def test_a_feature_that_is_silent_for_a_tenth_of_the_steps_is_begun_anew():
    _, values = planted()
    recipe = Recipe(features=12, steps=100, tokens=50, activation="relu", buffer=2000)
    learner = Learner(recipe, Units.of(values))
    with torch.no_grad():
        learner.encoder_bias[3] = -1e6
    for step in range(9):
        learner.step(values[50 * step : 50 * (step + 1)])
    assert int(learner.silent[3]) == 450
    old = learner.decoder[3].detach().clone()
    batch = values[450:500]
    with torch.no_grad():
        z = learner.units(batch)
        found = (z @ learner.encoder + learner.encoder_bias).relu()
        missed = z - (found @ learner.decoder + learner.decoder_bias)
        directions = missed / missed.norm(dim=1, keepdim=True)
    learner.step(batch)
    new = learner.decoder[3].detach()
    assert not torch.allclose(new, old, atol=0.1)
    assert float((directions @ new).max()) == pytest.approx(1, abs=1e-9)
    assert learner.encoder_bias[3].item() == 0
    assert int(learner.silent[3]) == 0
    assert float(learner.adam.state[learner.encoder]["exp_avg"][:, 3].abs().max()) == 0


# Ended and taken up again


class Ended(KeyboardInterrupt):
    """Stands for Ctrl-C."""


def ended_at(monkeypatch, step):
    """Have a training end in the middle of a step."""
    whole = Learner.step

    def stepped(self, x):
        if self.done == step:
            raise Ended
        return whole(self, x)

    monkeypatch.setattr(Learner, "step", stepped)


@pytest.mark.parametrize(
    ("activation", "buffer", "dtype"),
    [
        ("topk", 10_000, torch.float64),  # one round, held
        ("relu", 40, torch.float32),  # several rounds a pass, several passes
        ("topk", 40, torch.float32),
    ],
    ids=str,
)
def test_a_training_taken_up_again_gives_the_very_numbers(
    activation, buffer, dtype, tmp_path, monkeypatch
):
    model = tiny_tasks.model("GPT-2", dtype)
    # few active features: some fall silent and are begun anew, between states too
    few = {"k": 1} if activation == "topk" else {"l1": 3.0}
    more = {**few, "activation": activation, "buffer": buffer, "batch_size": 2}
    more |= {"features": 40, "steps": 40, "save_every": 3}
    whole = train_dictionary(model, TEXTS, SITE, out=tmp_path / "whole", **{**QUICK, **more})
    for step in (7, 38):
        with monkeypatch.context() as patch:
            ended_at(patch, step)
            with pytest.raises(Ended):
                train_dictionary(model, TEXTS, SITE, out=tmp_path / "parts", **{**QUICK, **more})
        assert not (tmp_path / "parts" / "cfg.json").exists()
    parts = train_dictionary(model, TEXTS, SITE, out=tmp_path / "parts", **{**QUICK, **more})
    one, other = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("whole", "parts"))
    assert one == other
    assert torch.equal(whole.encoder, parts.encoder)
    records = [(tmp_path / name / "training.json").read_text() for name in ("whole", "parts")]
    assert records[0] == records[1]
    assert not (tmp_path / "parts" / "checkpoint.safetensors").exists()


def test_a_folder_changes_no_number(model, tmp_path):
    kept = train_dictionary(model, TEXTS, SITE, out=tmp_path, **QUICK)
    free = train_dictionary(model, TEXTS, SITE, **QUICK)
    for name in ("encoder", "encoder_bias", "decoder", "decoder_bias"):
        assert torch.equal(getattr(kept, name), getattr(free, name))
    assert kept.origin.hook == free.origin.hook == "blocks.0.hook_mlp_out"


def test_the_seed_decides(model):
    one, again, other = (
        train_dictionary(model, TEXTS, SITE, seed=seed, **QUICK).encoder for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_finished_folder_is_read_and_nothing_runs(model, tmp_path, monkeypatch):
    first = train_dictionary(model, TEXTS, SITE, out=tmp_path, **QUICK)
    ended_at(monkeypatch, 0)
    again = train_dictionary(model, TEXTS, SITE, out=tmp_path, **QUICK)
    assert torch.equal(first.encoder, again.encoder)


def test_ctrl_c_is_told_what_is_kept(model, tmp_path, monkeypatch, caplog):
    ended_at(monkeypatch, 9)
    with pytest.raises(Ended):
        train_dictionary(model, TEXTS, SITE, out=tmp_path, save_every=4, **QUICK)
    assert f"8 of 23 steps are kept in {tmp_path}" in caplog.text


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_training_or_corpus_is_refused(model, tmp_path, monkeypatch, finished):
    with monkeypatch.context() as patch:
        if finished:
            train_dictionary(model, TEXTS, SITE, out=tmp_path, **QUICK)
        else:
            ended_at(patch, 9)
            with pytest.raises(Ended):
                train_dictionary(model, TEXTS, SITE, out=tmp_path, save_every=4, **QUICK)
    with pytest.raises(RunFolderError, match=r"seed: 0 there, 1 now"):
        train_dictionary(model, TEXTS, SITE, out=tmp_path, **QUICK, seed=1)
    with pytest.raises(RunFolderError, match=r"other prompts than those"):
        train_dictionary(model, prompts(20, seed=1), SITE, out=tmp_path, **QUICK)
    other = tiny_tasks.model("GPT-2", torch.float32)
    with pytest.raises(RunFolderError, match=r"weights_hash"):
        train_dictionary(other, TEXTS, SITE, out=tmp_path, **QUICK)


def test_a_broken_state_is_refused_by_name(model, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"no")
    with pytest.raises(RunFolderError, match=r"checkpoint.safetensors is of no training"):
        train_dictionary(model, TEXTS, SITE, out=tmp_path, **QUICK)


def test_a_dictionary_from_elsewhere_is_never_written_over(model, tmp_path):
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"was not trained here"):
        train_dictionary(model, TEXTS, SITE, out=tmp_path, **QUICK)
    assert (tmp_path / "cfg.json").read_text() == "{}"


# What is refused


def test_a_corpus_with_fewer_tokens_than_a_step_is_refused_with_their_number(model):
    texts = prompts(4, lengths=[3])
    with pytest.raises(PromptError, match=r"the list has 12 tokens in 4 prompts, and a step takes"):
        train_dictionary(model, texts, SITE, **QUICK)
    with pytest.raises(PromptError, match=r"has 4 tokens in 4 prompts \(the first 2 of each"):
        train_dictionary(model, texts, SITE, skip=2, **QUICK)


def test_an_iterator_that_ends_too_early_is_refused(model):
    with pytest.raises(PromptError, match=r"can be read only once"):
        train_dictionary(model, iter(TEXTS), SITE, buffer=40, batch_size=2, **QUICK)


@pytest.mark.parametrize(
    ("site", "error", "said"),
    [
        ("layers.0.mlp.ot", UnknownSiteError, "layers.0.mlp.out"),
        ("layers.7.mlp.out", UnknownSiteError, "2 layers"),
        ("layers.0.mlp.gate", UnavailableSiteError, "mlp.pre"),
        ("layers.0.attn.pattern", UnknownSiteError, "a vector at each position"),
        ("logits", UnknownSiteError, "a vector at each position"),
    ],
)
def test_places_without_a_vector_are_refused(model, site, error, said):
    with pytest.raises(error, match=said):
        train_dictionary(model, TEXTS, site, **QUICK)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"features": 0}, "features=0: it must be positive"),
        ({"k": 13}, r"k=13 of 12 features"),
        ({"activation": "relu", "k": 3}, "activation='relu' has no k"),
        ({"l1": 0.1}, "activation='topk' has no l1"),
        ({"skip": -1}, "cannot be negative"),
        ({"buffer": 8}, "buffer=8 tokens are less than the 16 of a step"),
        ({"save_every": 0}, "save_every=0: it must be positive"),
    ],
)
def test_settings_without_a_meaning_are_refused(model, changed, said):
    with pytest.raises(UnknownOptionError, match=said):
        train_dictionary(model, TEXTS, SITE, **{**QUICK, **changed})


def test_active_dropout_is_refused():
    module = build("GPT-2").train()
    model = hw.wrap(module, tiny_tasks.tokenizer())
    with pytest.raises(ModelStateError, match="dropout is active"):
        train_dictionary(model, TEXTS, SITE, **QUICK)
    assert not any(part._forward_hooks for part in module.modules())


# How well it does


def random_dictionary(d_in, d_out=None, features=30, *, seed=0, **changed):
    draw = torch.Generator().manual_seed(seed)
    shapes = ((d_in, features), (features,), (features, d_out or d_in), (d_out or d_in,))
    tensors = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    origin = Origin(hook=SITE, model="another")
    return Dictionary(*tensors, **{"activation": Relu(), "origin": origin, **changed})


def losses_of(module, part, replace):
    """Mean next-token cross-entropy of TEXTS, one prompt and one token after another."""
    total, count = 0.0, 0
    handle = part.register_forward_hook(lambda _, args, output: replace(output))
    with torch.no_grad():
        for text in TEXTS:
            ids = ids_of(text)
            chances = module(ids).logits[0].softmax(-1)
            for place in range(ids.shape[1] - 1):
                total -= math.log(float(chances[place, ids[0, place + 1]]))
                count += 1
    handle.remove()
    return total / count


def test_every_figure_is_that_of_plain_hooks_and_loops(model):
    mlp = model.module.transformer.h[0].mlp
    dictionary = random_dictionary(24)
    values = torch.cat([outputs(model.module, mlp, text) for text in TEXTS])
    features = torch.clamp(values @ dictionary.encoder + dictionary.encoder_bias, min=0)
    rebuilt = features @ dictionary.decoder + dictionary.decoder_bias
    mean = values.mean(0)

    def spliced(x):
        found = torch.clamp(x @ dictionary.encoder + dictionary.encoder_bias, min=0)
        return found @ dictionary.decoder + dictionary.decoder_bias

    found = inspect_dictionary(dictionary, model, TEXTS, batch_size=3, progress=False).figures
    expected = 1 - ((values - rebuilt) ** 2).sum() / ((values - mean) ** 2).sum()
    assert found.explained_variance == pytest.approx(float(expected), rel=1e-9)
    norms = values.norm(dim=1) * rebuilt.norm(dim=1)
    assert found.cosine == pytest.approx(float(((values * rebuilt).sum(1) / norms).mean()))
    assert found.active == pytest.approx(float((features > 0).sum()) / len(values))
    assert found.dead == sum(1 for column in features.T if float(column.max()) == 0)
    assert (found.prompts, found.tokens) == (len(TEXTS), len(values))
    clean = losses_of(model.module, mlp, lambda x: x)
    splice = losses_of(model.module, mlp, spliced)
    at_mean = losses_of(model.module, mlp, lambda x: mean.expand_as(x))
    at_zero = losses_of(model.module, mlp, torch.zeros_like)
    for value, wanted in [
        (found.clean, clean),
        (found.spliced, splice),
        (found.mean_ablated, at_mean),
        (found.zero_ablated, at_zero),
        (found.loss_recovered, (at_mean - splice) / (at_mean - clean)),
        (found.loss_recovered_from_zero, (at_zero - splice) / (at_zero - clean)),
    ]:
        assert value == pytest.approx(wanted, rel=1e-7)


def test_a_transcoder_writes_what_it_makes_of_another_place(model):
    layer = model.module.transformer.h[0]
    origin = Origin(hook="layers.0.attn.out", hook_out=SITE)
    dictionary = random_dictionary(
        24, transcoder=True, skip=0.1 * torch.eye(24, dtype=torch.float64), origin=origin
    )
    read = [outputs(model.module, layer.attn, text) for text in TEXTS]
    written = torch.cat([outputs(model.module, layer.mlp, text) for text in TEXTS])
    rebuilt = dictionary.reconstruct(torch.cat(read))
    queue = iter([dictionary.reconstruct(one)[None] for one in read])
    splice = losses_of(model.module, layer.mlp, lambda x: next(queue))
    found = inspect_dictionary(dictionary, model, TEXTS, progress=False).figures
    expected = 1 - (written - rebuilt).square().sum() / (written - written.mean(0)).square().sum()
    assert (found.reads, found.site) == ("layers.0.attn.out", SITE)
    assert found.explained_variance == pytest.approx(float(expected), rel=1e-9)
    assert found.spliced == pytest.approx(splice, rel=1e-7)


def exact(width):
    """Every coordinate once for each sign: reconstructs everything."""
    eye = torch.eye(width, dtype=torch.float64)
    both = torch.cat([eye, -eye])
    zero = torch.zeros(1, dtype=torch.float64)
    return Dictionary(both.T, zero.expand(2 * width), both, zero.expand(width))


@pytest.mark.parametrize(
    ("family", "site", "width"),
    [
        ("GPT-2", "embed", 24),
        ("GPT-2", "layers.0.mlp.in", 24),
        ("GPT-2", "layers.1.attn.z", 24),
        ("GPT-2", "layers.1.resid_post", 24),
        ("GPT-NeoX", "layers.0.attn.out", 32),  # parallel attention and MLP
        ("Gemma 2", "layers.1.mlp.out", 24),  # a norm behind the MLP
        ("Mamba", "layers.0.mixer.out", 24),
    ],
)
def test_an_exact_dictionary_explains_everything_and_loses_nothing(family, site, width):
    model = tiny_tasks.model(family)
    found = inspect_dictionary(exact(width), model, TEXTS, site, progress=False).figures
    assert found.explained_variance == pytest.approx(1, abs=1e-12)
    assert found.spliced == pytest.approx(found.clean, abs=1e-12)
    assert found.loss_recovered == pytest.approx(1, abs=1e-9)


def test_a_constant_explains_nothing_and_recovers_nothing(model):
    mlp = model.module.transformer.h[0].mlp
    mean = torch.cat([outputs(model.module, mlp, text) for text in TEXTS]).mean(0)
    nothing = torch.zeros(24, 5, dtype=torch.float64)
    dictionary = Dictionary(nothing, nothing[0], nothing.T, mean)
    inspected = inspect_dictionary(dictionary, model, TEXTS, SITE, progress=False)
    found = inspected.figures
    assert found.explained_variance == pytest.approx(0, abs=1e-9)
    assert found.loss_recovered == pytest.approx(0, abs=1e-7)
    assert (found.active, found.dead) == (0, 5)
    assert "5 of 5 features are active at none of these" in " ".join(inspected.warnings())


def test_a_dictionary_of_centered_residuals_is_judged_on_them(model):
    """Exact on what is centered, and nothing of the mean over the width is lost."""
    whole = exact(24)
    level = torch.full((24, 24), 1 / 24, dtype=torch.float64)
    centered = Dictionary(
        whole.encoder - level @ whole.encoder,
        whole.encoder_bias,
        whole.decoder,
        whole.decoder_bias,
        centered=True,
    )
    found = inspect_dictionary(centered, model, TEXTS, SITE, progress=False).figures
    assert found.explained_variance == pytest.approx(1, abs=1e-12)
    assert found.spliced == pytest.approx(found.clean, abs=1e-12)


def test_positions_left_out_are_neither_counted_nor_replaced(model):
    found = inspect_dictionary(
        random_dictionary(24), model, prompts(6, lengths=[4]), skip=3, progress=False
    ).figures
    # only the last token of each prompt is replaced, which predicts nothing that is judged
    assert found.tokens == 6
    assert found.spliced == found.clean


def test_a_dictionary_that_does_not_fit_is_said_not_to(model):
    inspected = inspect_dictionary(random_dictionary(24), model, TEXTS, progress=False)
    assert inspected.figures.explained_variance < 0.2
    (said, *_) = inspected.warnings()
    assert said.startswith(f"explained variance {inspected.figures.explained_variance:.3f}: this")
    assert "Its file says another and layers.0.mlp.out" in said
    assert f"note: {said}" in repr(inspected)


def test_a_dictionary_can_be_looked_at_without_a_model():
    draw = torch.rand(30, dtype=torch.float64)
    for activation, kind in {Relu(): "standard", TopK(4): "topk, k=4", JumpRelu(draw): "jumprelu"
                             }.items():  # fmt: skip
        inspected = inspect_dictionary(random_dictionary(24, activation=activation))
        assert inspected.figures is None
        assert repr(inspected).startswith(f"a dictionary of 30 features, width 24 ({kind})")
        assert json.loads(json.dumps(inspected.to_dict()))["hook"] == SITE


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"texts": None}, UnknownOptionError, "model without texts"),
        ({"model": None}, UnknownOptionError, "texts without model"),
        ({"reads": SITE}, UnknownOptionError, "reads= is of transcoders"),
        ({"site": "layers.0.mlp.post"}, DictionaryError, "has 96 numbers a position"),
        ({"site": "layers.0.mlp.otu"}, UnknownSiteError, "layers.0.mlp.out"),
        ({"texts": ["w5", "w6"]}, PromptError, "none of the 2 prompts in the list has a second"),
        ({"skip": 30}, PromptError, "no prompt is longer than the 30 positions"),
        ({"limit": 0}, UnknownOptionError, "limit=0"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, given, error, said):
    given = {"model": model, "texts": TEXTS, "site": SITE, **given}
    with pytest.raises(error, match=said):
        inspect_dictionary(random_dictionary(24), progress=False, **given)


def test_a_dictionary_without_a_place_needs_one(model):
    dictionary = random_dictionary(24, origin=Origin())
    with pytest.raises(DictionaryError, match="does not name its place"):
        inspect_dictionary(dictionary, model, TEXTS, progress=False)


def test_a_transcoder_that_reads_what_it_has_written_is_refused(model):
    dictionary = random_dictionary(24, transcoder=True)
    with pytest.raises(UnknownOptionError, match="is computed after"):
        inspect_dictionary(dictionary, model, TEXTS, SITE, reads="layers.1.mlp.out", progress=False)


# What ships


def shipped():
    return json.loads((embedded_folder() / "tiny/dictionaries/training.json").read_text())


def test_tiny_has_a_good_dictionary_for_every_write_and_residual():
    folder = embedded_folder() / "tiny" / "dictionaries"
    found = Dictionaries.read(folder)
    wanted = {site for site in hw.load("tiny").sites()
              if site.name in ("embed", "attn.out", "mlp.out", "resid_post")}  # fmt: skip
    assert set(found) == wanted
    assert {str(site) for site in wanted} == shipped()["figures"].keys()
    for figures in shipped()["figures"].values():
        assert figures["explained_variance"] > 0.9
        assert figures["loss_recovered"] > 0.9
        assert 8 <= figures["active_features"] <= 20
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 6e6


def test_the_recorded_figures_are_measured_again():
    model, record = hw.load("tiny"), shipped()
    assert model.fingerprint()["weights_hash"] == record["weights_hash"]
    drawn = corpus.texts("tiny", record["recipe"]["seed"], held_out=True)
    texts = [next(drawn) for _ in range(record["recipe"]["held_out"])]
    folder = embedded_folder() / "tiny/dictionaries/layers.1.mlp.out"
    found = inspect_dictionary(folder, model, texts, batch_size=32, progress=False).figures
    recorded = record["figures"]["layers.1.mlp.out"]
    assert found.explained_variance == pytest.approx(recorded["explained_variance"], abs=1e-3)
    assert found.loss_recovered == pytest.approx(recorded["loss_recovered"], abs=1e-3)
    assert found.dead == recorded["dead_features"]


def test_the_script_writes_a_folder_a_site_and_measures_what_is_on_disk(tmp_path):
    model = hw.load("tiny")
    recipe = DictionaryRecipe(
        features=16, active=2, active_mixed=3, windows=8, held_out=2, steps=2, tokens=64
    )
    figures = train(model, recipe, tmp_path)
    found = Dictionaries.read(tmp_path)
    assert {str(site) for site in found} == {path.name for path in tmp_path.iterdir()}
    assert set(figures) == {str(site) for site in sites(model)} == {str(site) for site in found}
    for site, one in found.items():
        assert one.activation.k == (2 if site.name in ("embed", "mlp.out") else 3)
        assert torch.equal(one.encoder, one.encoder.half().float())
    again = inspect_dictionary(
        tmp_path / "embed",
        model,
        [text for text, _ in zip(corpus.texts("tiny", held_out=True), range(2), strict=False)],
        progress=False,
    ).figures
    assert figures["embed"]["cosine"] == pytest.approx(again.cosine, abs=1e-4)
