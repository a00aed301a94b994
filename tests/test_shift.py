"""SHIFT: probes, what they go by, ablation and judgment, against slow twins and closed forms."""

import json
import math
import random

import pytest
import torch

import headwater as hw
import tiny_tasks
from headwater.dictionaries import JumpRelu, TopK
from headwater.dictionaries.collection import Dictionaries
from headwater.dictionaries.dictionary import Dictionary
from headwater.errors import (
    DictionaryError,
    NonFiniteError,
    PairFileError,
    PromptError,
    ResultError,
    RunFolderError,
    UnavailableSiteError,
    UnfitReferenceError,
    UnknownComponentError,
    UnknownOptionError,
    UnknownTaskError,
)
from headwater.shifts import (
    Ablation,
    Examples,
    Judged,
    Probe,
    ProbeEffects,
    Rate,
    Shift,
    candidates,
    judge,
    probe_effects,
    read_judgments,
    shift,
    write_judgments,
)
from headwater.shifts.accuracy import accuracies, gained
from headwater.shifts.effects import FeatureEffect
from headwater.shifts.judging import contrasts, sides_of
from headwater.shifts.logistic import fit_logistic
from headwater.sites import Site
from headwater.zoo.biased import BIASED, biased
from shape_checks import unchecked

FEATURES = 18
CLOSE = {"rtol": 1e-4, "atol": 3e-6}
"""Plain runs of a float64 model cast down to float32 inside; headwater's do not."""
FAMILIES = ["GPT-2", "Llama", "GPT-NeoX", "Mamba"]


def dictionary(width, seed, activation=None):
    draw = torch.Generator().manual_seed(seed)
    encoder = torch.randn(width, FEATURES, generator=draw, dtype=torch.float64)
    decoder = torch.randn(FEATURES, width, generator=draw, dtype=torch.float64)
    return Dictionary(
        encoder=encoder / width**0.5,
        encoder_bias=0.1 * torch.randn(FEATURES, generator=draw, dtype=torch.float64),
        decoder=decoder / width**0.5,
        decoder_bias=torch.randn(width, generator=draw, dtype=torch.float64),
        **({} if activation is None else {"activation": activation}),
    )


def random_dictionaries(model, activation=None):
    adapter = model.anatomy()
    names = [f"layers.0.{adapter.writes[-1]}", "layers.0.resid_post", "layers.1.resid_post"]
    return Dictionaries(
        {name: dictionary(adapter.d_model, seed, activation) for seed, name in enumerate(names)}
    )


def random_examples(count=14, seed=0):
    draw = random.Random(seed)
    rows = []
    for place in range(count):
        words = [draw.randrange(tiny_tasks.FIRST_WORD, 61) for _ in range(draw.randint(3, 7))]
        label, spurious = place % 2, place // 2 % 2
        rows.append({"text": tiny_tasks.text(words), "label": label, "spurious": spurious})
    return Examples(rows)


def module_of(model, site):
    """The module whose output is a site, found by hand."""
    layer = model.anatomy().layers[site.layer]
    if site.name == "resid_post":
        return layer
    names = {"mlp.out": "mlp", "mixer.out": "mixer"}
    return getattr(layer, names[site.name])


def by_hand(model, examples, site, ablated, pooling="mean"):
    """Pooled activations of a run in which plain hooks take features out, text by text."""
    rows = []
    for text in examples.texts:
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        seen = {}
        handles = []

        def take_out(found, columns, seen=seen):
            def hook(module, args, output):
                value = output[0] if isinstance(output, tuple) else output
                changed = value.clone()
                for at in range(value.shape[1]):
                    pre = value[0, at] @ found.encoder + found.encoder_bias
                    features = found.activation(pre)
                    for column in columns:
                        changed[0, at] -= features[column] * found.decoder[column]
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            return hook

        def keep(module, args, output, seen=seen):
            seen["value"] = output[0] if isinstance(output, tuple) else output

        for there, (found, columns) in ablated.items():
            handles.append(module_of(model, there).register_forward_hook(take_out(found, columns)))
        handles.append(module_of(model, site).register_forward_hook(keep))
        with torch.no_grad():
            model.module(input_ids=ids, use_cache=False)
        for handle in handles:
            handle.remove()
        value = seen["value"][0].double()
        rows.append(value[-1] if pooling == "last" else sum(value) / len(value))
    return torch.stack(rows)


# --- examples ------------------------------------------------------------------------------------


def test_examples_are_read_written_and_hashed_alike(tmp_path):
    made = Examples(
        [
            {"text": "Mary said", "label": True, "spurious": 3},
            {"text": "John said", "label": False, "spurious": 4.0},
        ]
    )
    read = Examples.read(made.write(tmp_path / "some.jsonl"))
    assert [row.to_dict() for row in read] == [
        {"text": "Mary said", "label": "true", "spurious": "3"},
        {"text": "John said", "label": "false", "spurious": "4"},
    ]
    assert read.sha256() == made.sha256()
    assert read.name == "some"
    assert made[:1].sha256() != made.sha256()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a", "label": "b"', "line 2: not JSON"),
        ('{"text": "", "label": "b"}', "line 2: text is ''"),
        ('{"text": "a", "label": NaN}', "line 2: label is nan"),
        ('{"text": "a"}', "line 2: label is None"),
        ('{"text": "a", "label": "b", "spurius": "c"}', "Closest: 'spurious'"),
        ("[1]", "line 2: [1] (list) is no example"),
    ],
)
def test_a_line_that_is_no_example_is_named(tmp_path, line, said):
    path = tmp_path / "some.jsonl"
    path.write_text(f'{{"text": "a", "label": "b"}}\n{line}\n')
    with pytest.raises(PairFileError) as refused:
        Examples.read(path)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


def test_no_examples_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(PairFileError, match="holds no example"):
        Examples.read(tmp_path / "empty.jsonl")
    with pytest.raises(PairFileError, match="there is no file"):
        Examples.read(tmp_path / "none.jsonl")
    with pytest.raises(PromptError, match="there are no examples"):
        Examples([])


def test_a_split_keeps_the_mix_of_groups_and_loses_no_example():
    made = Examples(
        [
            {"text": f"w{place + 3}", "label": place % 2, "spurious": place % 4 // 2}
            for place in range(40)
        ]
    )
    first, second = made.split(0.7, seed=1)
    assert [len(places) for places in first.groups().values()] == [7, 7, 7, 7]
    assert [len(places) for places in second.groups().values()] == [3, 3, 3, 3]
    assert sorted([*first.texts, *second.texts]) == sorted(made.texts)
    assert made.split(0.7, seed=1)[0].texts == first.texts
    assert made.split(0.7, seed=2)[0].texts != first.texts


def test_a_sample_holds_each_group_by_its_share():
    rows = [{"text": f"a{place}", "label": "one"} for place in range(30)]
    rows += [{"text": f"b{place}", "label": "two"} for place in range(10)]
    drawn = Examples(rows).sample(20, seed=3)
    assert [len(places) for places in drawn.groups().values()] == [15, 5]
    assert len(Examples(rows).sample(99)) == 40


def test_an_attribute_stands_for_the_label_it_mostly_goes_with():
    rows = [("a", "x"), ("a", "x"), ("b", "x"), ("b", "y")]
    made = Examples([{"text": "t", "label": label, "spurious": one} for label, one in rows])
    assert made.stands_for() == {"x": "a", "y": "b"}


# --- logistic regression --------------------------------------------------------------------------


def newton(x, positive, l2):
    """The same minimum by Newton's method, written out."""
    z = (x - x.mean(0)) / x.std(0)
    z = torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], 1)
    price = torch.diag(torch.tensor([l2] * (z.shape[1] - 1) + [0.0], dtype=torch.float64))
    weights = torch.zeros(z.shape[1], dtype=torch.float64)
    for _ in range(100):
        says = torch.sigmoid(z @ weights)
        slope = z.T @ (says - positive.double()) / len(z) + price @ weights
        curve = (z.T * (says * (1 - says))) @ z / len(z) + price
        weights = weights - torch.linalg.solve(curve, slope)
    return weights


@pytest.mark.parametrize("l2", [1e-3, 0.1])
@pytest.mark.parametrize("separable", [False, True])
def test_a_logistic_regression_is_the_minimum_that_newton_finds(l2, separable):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=draw, dtype=torch.float64) * torch.tensor([1, 2, 3, 4, 5.0])
    noise = 0 if separable else 3 * torch.randn(60, generator=draw, dtype=torch.float64)
    positive = x[:, 0] + x[:, 1] + noise > 0
    found = fit_logistic(x, positive, l2)
    expected = newton(x, positive, l2)
    torch.testing.assert_close(found.weights, expected[:-1], rtol=1e-5, atol=1e-5)
    assert found.bias == pytest.approx(float(expected[-1]), abs=1e-5)
    logits = (x - x.mean(0)) / x.std(0) @ expected[:-1] + expected[-1]
    torch.testing.assert_close(found.logit(x), logits, rtol=1e-4, atol=1e-4)


def test_a_column_that_does_not_vary_gets_no_weight():
    x = torch.tensor([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0], [4.0, 7.0]])
    found = fit_logistic(x, torch.tensor([False, False, True, True]), 0.1)
    assert float(found.weights[1]) == 0
    assert float(found.weights[0]) > 0


def test_what_cannot_be_fitted_is_refused():
    x, both = torch.randn(4, 2), torch.tensor([True, False, True, False])
    with pytest.raises(PromptError, match="all 4 examples are of one class"):
        fit_logistic(x, torch.ones(4, dtype=torch.bool), 0.1)
    with pytest.raises(UnknownOptionError, match=r"l2=0.*\n.*l2=0.01"):
        fit_logistic(x, both, 0)
    x[2, 0] = math.nan
    with pytest.raises(NonFiniteError, match="example 2"):
        fit_logistic(x, both, 0.1)


# --- rates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # Newcombe (1998), table I, method 3
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_rates_have_wilsons_intervals(right, total, low, high):
    assert Rate(right, total).interval == pytest.approx((low, high), abs=5e-5)


def test_accuracies_are_counted_in_all_in_groups_and_after_the_attribute():
    rows = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
    made = Examples([{"text": "t", "label": label, "spurious": one} for label, one in rows])
    says_b = torch.tensor([False, True, True, True])
    found = accuracies(says_b, made, ("a", "b"), {"x": "a", "y": "b"})
    assert found.all == Rate(3, 4)
    assert {name: rate.right for name, rate in found.groups.items()} == {
        "a, x": 1, "a, y": 0, "b, x": 1, "b, y": 1,
    }  # fmt: skip
    assert found.worst == ("a, y", Rate(0, 1))
    assert found.follows == Rate(3, 4)
    assert found.right == (True, False, True, True)


def test_a_gain_is_the_mean_difference_on_the_same_examples():
    made = Examples([{"text": "t", "label": label} for label in "abab"])

    def says(*words):
        return accuracies(torch.tensor([word == "b" for word in words]), made, ("a", "b"))

    one, other, after = says(*"bbbb"), says(*"aaaa"), says(*"abab")
    steps = [1.0, 0.0, 1.0, 0.0]
    assert gained([one], after)[0] == 0.5
    half = 1.959964 * math.sqrt(sum((step - 0.5) ** 2 for step in steps) / 3 / 4)
    assert gained([one], after)[1:] == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    assert gained([one, other], after) == (0.5, 0.5, 0.5)


# --- probes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_probe_reads_what_plain_hooks_read_whatever_the_padding(family, pooling):
    model, examples = tiny_tasks.model(family), random_examples()
    site = Site(0, "resid_post")
    probe = Probe.fit(model, examples, site, pooling=pooling, batch_size=5)
    expected = by_hand(model, examples, site, {}, pooling)
    torch.testing.assert_close(probe.read(model, examples, batch_size=4), expected, **CLOSE)
    right = (probe.logits(expected) > 0) == torch.tensor([row.label == "1" for row in examples])
    assert probe.trained == Rate(int(right.sum()), len(examples))
    assert probe.accuracy(model, examples).all == probe.trained


def test_a_probe_is_saved_and_loaded_with_every_digit(tmp_path):
    model, examples = tiny_tasks.model("Llama"), random_examples()
    probe = Probe.fit(model, examples, "layers.1.mlp.out", pooling="last")
    probe.save(tmp_path / "probe")
    again = Probe.load(tmp_path / "probe")
    assert again.sha256() == probe.sha256()
    assert repr(again) == repr(probe)
    x = probe.read(model, examples)
    assert torch.equal(again.logits(x), probe.logits(x))
    with pytest.raises(RunFolderError, match="already holds another probe"):
        Probe.fit(model, examples[:8], "layers.1.mlp.out").save(tmp_path / "probe")


def test_a_probe_says_what_it_cannot_read():
    model, examples = tiny_tasks.model("Llama"), random_examples()
    with pytest.raises(UnavailableSiteError, match="one vector at each position"):
        Probe.fit(model, examples, "layers.0.attn.pattern")
    with pytest.raises(UnavailableSiteError, match="inside the model"):
        Probe.fit(model, examples, "final_norm")
    with unchecked(), pytest.raises(UnknownOptionError, match="Closest: 'mean'"):
        Probe.fit(model, examples, pooling="men")
    with pytest.raises(PromptError, match="has 1 labels"):
        Probe.fit(model, examples[:1])
    three = Examples([*examples, {"text": "w4", "label": "2"}])
    with pytest.raises(PromptError, match="has 3 labels"):
        Probe.fit(model, three)
    with pytest.raises(PromptError, match="example 14 of examples is labeled '2'"):
        Probe.fit(model, examples).accuracy(model, three)


def test_an_activation_that_is_no_number_is_refused_by_its_text():
    model, examples = tiny_tasks.model("GPT-2"), random_examples()

    def spoiled(batch):
        return {Site(0, "mlp.out"): lambda value: value * math.nan}

    with pytest.raises(NonFiniteError, match="is NaN or infinite in 14 of 14 texts, the first 'w"):
        Probe.fit(model, examples, "layers.0.resid_post", taps=spoiled)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_a_probe_has_its_logit_and_leaves_no_hook(family):
    model, examples = tiny_tasks.model(family), random_examples()
    probe = Probe.fit(model, examples, "layers.0.resid_post")
    hooks = sum(len(part._forward_hooks) for part in model.module.modules())
    scores = hw.attribute(
        probe.on(model), probe.task(examples), hw.residual(layers=0, positions="all"),
        hw.Exact(), reference=hw.Zero(),
    )  # fmt: skip
    logits = probe.logits(by_hand(model, examples, probe.site, {}))
    signs = torch.tensor([1.0 if row.label == "1" else -1.0 for row in examples])
    torch.testing.assert_close(scores.parts.clean.double(), signs * logits, **CLOSE)
    # with the residual at 0 what the probe reads is 0, and its logit the offset
    gone = signs * (logits - probe.fitted.offset)
    torch.testing.assert_close(scores.scores[:, 0].double(), gone.double(), **CLOSE)
    assert sum(len(part._forward_hooks) for part in model.module.modules()) == hooks


def test_two_probes_on_one_model_are_two_models():
    model, examples = tiny_tasks.model("Llama"), random_examples()
    one = Probe.fit(model, examples, "layers.0.resid_post").on(model)
    other = Probe.fit(model, examples, "layers.0.resid_post", l2=1.0).on(model)
    assert one.fingerprint() != other.fingerprint()
    assert one.fingerprint()["config_hash"] == model.fingerprint()["config_hash"]
    assert one.anatomy().n_layers == 1


# --- effects --------------------------------------------------------------------------------------


def effects_of(family, dictionaries, examples, site="layers.1.resid_post", **options):
    model = tiny_tasks.model(family)
    probe = Probe.fit(model, examples, site)
    return model, probe, probe_effects(model, probe, examples, dictionaries, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_probes_own_site_effects_are_linear_and_known_in_closed_form(family):
    model, examples = tiny_tasks.model(family), random_examples()
    site = Site(1, "resid_post")
    found = Dictionaries({site: dictionary(model.anatomy().d_model, 5)})
    _, probe, effects = effects_of(family, found, examples)
    names = [f"r1.f{index}" for index in range(FEATURES)]
    adds = effects.contributions(names)
    toward = found[site].decoder @ probe.fitted.direction
    for place, text in enumerate(examples.texts):
        one = Examples([examples[place]])
        assert one.texts == [text]
        values = _values(model, text, site)
        mean = found[site].encode(values).mean(0)
        torch.testing.assert_close(adds[place].float(), (mean * toward).float())


def _values(model, text, site):
    kept = []
    handle = module_of(model, site).register_forward_hook(
        lambda module, args, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model.module(input_ids=torch.tensor([model.tokenizer(text)["input_ids"]]), use_cache=False)
    handle.remove()
    return kept[0][0].double()


def test_exact_effects_are_what_ablating_one_feature_takes_from_the_margin():
    family, examples = "Llama", random_examples()
    dictionaries = random_dictionaries(tiny_tasks.model(family))
    model, probe, effects = effects_of(family, dictionaries, examples, estimator=hw.Exact())
    clean = probe.logits(probe.read(model, examples))
    for name in ("m0.f3", "r0.f5", "r0.error", "r1.f7"):
        ablation = Ablation(model, dictionaries, [name])
        lost = clean - probe.logits(probe.read(model, examples, taps=ablation.taps))
        torch.testing.assert_close(effects.contributions([name])[:, 0], lost, rtol=1e-5, atol=1e-5)


def test_effects_weigh_labels_alike_so_that_a_constant_cancels():
    examples = random_examples(12)[:9]  # five of one label, four of the other
    family = "GPT-2"
    dictionaries = random_dictionaries(tiny_tasks.model(family))
    _, probe, effects = effects_of(family, dictionaries, examples, estimator=hw.Gradient())
    one = effects.top(1)[0]
    adds = effects.contributions([one.name])[:, 0]
    of = {
        label: torch.stack([a for a, row in zip(adds, examples, strict=True) if row.label == label])
        for label in probe.classes
    }
    zero, ones = of["0"], of["1"]
    assert one.effect == pytest.approx(float(ones.mean() - zero.mean()) / 2)
    spread = float(ones.var() / len(ones) + zero.var() / len(zero)) ** 0.5 / 2
    assert one.se == pytest.approx(spread)
    assert not any(found.name.endswith("error") for found in effects.top())
    assert any(found.name.endswith("error") for found in effects.top(errors=True))


def test_only_dictionaries_before_the_probe_are_used():
    model, examples = tiny_tasks.model("Llama"), random_examples()
    dictionaries = random_dictionaries(model)
    probe = Probe.fit(model, examples, "layers.0.resid_post")
    effects = probe_effects(model, probe, examples, dictionaries, estimator=hw.Gradient())
    assert [str(site) for site in effects.dictionaries] == [
        "layers.0.mlp.out", "layers.0.resid_post",
    ]  # fmt: skip
    with pytest.raises(DictionaryError, match=r"no dictionary lies before the probe at 'layers.0"):
        probe_effects(
            model, Probe.fit(model, examples, "layers.0.attn.out"), examples, dictionaries
        )


def test_effects_are_audited_against_ablation():
    family, examples = "Llama", random_examples()
    dictionaries = random_dictionaries(tiny_tasks.model(family))
    _, _, effects = effects_of(family, dictionaries, examples)
    checked = effects.audit(10, progress=False)
    assert checked.counts.checked == 10
    row = next(row for row in checked.rows if not row.name.endswith("error"))
    model = tiny_tasks.model(family)
    probe = effects.probe
    lost = probe.logits(probe.read(model, examples))
    taps = Ablation(model, dictionaries, [row.name]).taps
    lost = lost - probe.logits(probe.read(model, examples, taps=taps))
    signs = torch.tensor([1.0 if one.label == "1" else -1.0 for one in examples])
    assert row.exact == pytest.approx(float((signs * lost).mean()), rel=1e-4, abs=1e-6)


def test_a_probe_has_a_circuit():
    examples = random_examples()
    model = tiny_tasks.model("Llama")
    dictionaries = random_dictionaries(model)
    probe = Probe.fit(model, examples, "layers.1.resid_post")
    circuit = hw.feature_circuit(
        probe.on(model), probe.task(examples), dictionaries,
        nodes=12, edge_threshold=0.0, reference=hw.Zero(), estimator=hw.Gradient(),
    )  # fmt: skip
    scores = hw.attribute(
        probe.on(model), probe.task(examples), hw.features(dictionaries), hw.Gradient(),
        reference=hw.Zero(),
    )  # fmt: skip
    for node in circuit.nodes:
        if node.name in scores.names:
            assert node.effect == pytest.approx(float(scores[node.name].double().mean()), rel=1e-4)
    assert circuit.edges


# --- ablation -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation",
    [None, TopK(4), JumpRelu(torch.full((FEATURES,), 0.2, dtype=torch.float64))],
    ids=["relu", "topk", "jumprelu"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_is_what_plain_hooks_do_site_after_site(family, activation):
    model, examples = tiny_tasks.model(family), random_examples()
    dictionaries = random_dictionaries(model, activation)
    first, second, third = dictionaries
    label = {"mlp.out": "m0", "mixer.out": "mixer0"}[first.name]
    names = [f"{label}.f{index}" for index in range(9)] + ["r0.f2", "r0.f3", "r1.f0"]
    ablation = Ablation(model, dictionaries, names)
    probe = Probe.fit(model, examples, third)
    expected = by_hand(
        model,
        examples,
        third,
        {
            first: (dictionaries[first], range(9)),
            second: (dictionaries[second], [2, 3]),
            third: (dictionaries[third], [0]),
        },
    )
    found = probe.read(model, examples, taps=ablation.taps, batch_size=5)
    torch.testing.assert_close(found, expected, **CLOSE)
    plain = probe.read(model, examples)
    assert float((found - plain).abs().max()) > 0.01
    right = (probe.logits(expected) > 0) == torch.tensor([row.label == "1" for row in examples])
    assert probe.accuracy(model, examples, taps=ablation.taps).all.right == int(right.sum())


def test_ablating_the_error_leaves_features_and_bias():
    model, examples = tiny_tasks.model("Llama"), random_examples(4)
    dictionaries = random_dictionaries(model)
    site = Site(1, "resid_post")
    probe = Probe.fit(model, examples, site)
    found = probe.read(model, examples, taps=Ablation(model, dictionaries, ["r1.error"]).taps)
    one = dictionaries[site]
    for place, text in enumerate(examples.texts):
        expected = one.decode(one.encode(_values(model, text, site))).mean(0)
        torch.testing.assert_close(found[place], expected, **CLOSE)


def test_a_feature_is_held_at_its_mean_over_the_examples():
    model, examples = tiny_tasks.model("GPT-2"), random_examples()
    dictionaries = random_dictionaries(model)
    site, one = Site(1, "resid_post"), dictionaries["layers.1.resid_post"]
    values = [_values(model, text, site) for text in examples.texts]
    mean = torch.cat([one.encode(value)[:, 3] for value in values]).mean()
    probe = Probe.fit(model, examples, site)
    ablation = Ablation(
        model, dictionaries, ["r1.f3"], reference=hw.Mean(over="clean"), examples=examples
    )
    found = probe.read(model, examples, taps=ablation.taps)
    for place, value in enumerate(values):
        changed = value + (mean - one.encode(value)[:, 3])[:, None] * one.decoder[3]
        torch.testing.assert_close(found[place], changed.mean(0), **CLOSE)


def test_no_names_change_nothing():
    model, examples = tiny_tasks.model("Llama"), random_examples()
    probe = Probe.fit(model, examples)
    ablation = Ablation(model, random_dictionaries(model), [])
    plain = probe.read(model, examples)
    assert torch.equal(probe.read(model, examples, taps=ablation.taps), plain)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("r0.f18", "has 18, from r0.f0 to r0.f17"),
        ("a0.f1", "There are dictionaries of m0, r0, r1"),
        ("r0.f1@2", "no feature at all positions"),
        ("m0.n3", "no feature at all positions"),
        ("r0f1", "is not a component's name"),
    ],
)
def test_a_name_that_is_no_feature_here_is_answered(name, said):
    model = tiny_tasks.model("Llama")
    with pytest.raises(UnknownComponentError) as refused:
        Ablation(model, random_dictionaries(model), [name])
    assert said in str(refused.value)


def test_a_reference_that_needs_another_prompt_is_refused():
    model = tiny_tasks.model("Llama")
    with pytest.raises(UnfitReferenceError, match="reference=Corrupted"):
        Ablation(model, random_dictionaries(model), ["r0.f1"], reference=hw.Corrupted())


# --- judgment ------------------------------------------------------------------------------------


def test_contrasts_are_differences_of_group_means_each_group_counting_once():
    rows = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("b", "y")]
    made = Examples([{"text": "t", "label": label, "spurious": one} for label, one in rows])
    adds = torch.tensor([[1.0], [2.0], [5.0], [10.0], [14.0]], dtype=torch.float64)
    label, spurious, error = contrasts(adds, made, "b", {"x": False, "y": True})
    assert float(label) == ((12 + 5) - (2 + 1)) / 2
    assert float(spurious) == ((12 + 2) - (5 + 1)) / 2
    assert float(error) == pytest.approx((8 / 2 / 4) ** 0.5)


class Planted(ProbeEffects):
    """Effects whose contributions are given."""

    def __init__(self, examples, adds):
        model = tiny_tasks.model("Llama")
        probe = Probe.fit(model, random_examples())
        effects = probe_effects(
            model, probe, random_examples(4), random_dictionaries(model), estimator=hw.Gradient()
        )
        super().__init__(effects.scores, effects.model, probe, examples, effects.dictionaries)
        object.__setattr__(self, "adds", adds)

    def contributions(self, names):
        return self.adds[:, : len(names)]


def test_what_tells_the_attribute_better_than_the_label_is_ablated():
    rows = [(label, one) for label in "01" for one in "xy" for _ in range(5)]
    made = Examples([{"text": "t", "label": label, "spurious": one} for label, one in rows])
    label = torch.tensor([float(row.label == "1") for row in made], dtype=torch.float64)
    side = torch.tensor([float(row.spurious == "y") for row in made], dtype=torch.float64)
    noise = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    adds = torch.stack([3 * label + side, label - 2 * side, 100 * noise, label + 1.5 * side], 1)
    features = [FeatureEffect(f"r0.f{i}", 1.0, 0.1) for i in range(4)]
    sides = {"x": False, "y": True}
    planted = Planted(made, adds)
    found = judge(features, planted, sides)
    assert [one.judgment for one in found] == ["keep", "ablate", "keep", "ablate"]
    assert [found[0].on_label, found[0].on_spurious] == pytest.approx([3, 1])
    assert [found[1].on_label, found[1].on_spurious] == pytest.approx([1, -2])
    assert found[1].share == pytest.approx(2 / 3)
    stricter = judge(features, planted, sides, threshold=0.65)
    assert [one.judgment for one in stricter] == ["keep", "ablate", "keep", "keep"]
    with pytest.raises(UnknownOptionError, match=r"threshold=1 is no share"):
        judge(features, planted, sides, threshold=1)


def test_sides_come_from_the_biased_set_or_from_two_attributes():
    def made(*rows):
        return Examples([{"text": "t", "label": label, "spurious": one} for label, one in rows])

    balanced = made(*((label, one) for label in "ab" for one in "xyz"))
    usual = made(("a", "x"), ("b", "y"), ("b", "z"))
    assert sides_of(usual, balanced, "b") == {"x": False, "y": True, "z": True}
    unknown = Examples([{"text": "t", "label": label} for label in "ab"])
    two = made(*((label, one) for label in "ab" for one in "xy"))
    assert sides_of(unknown, two, "b") == {"x": False, "y": True}
    with pytest.raises(PromptError, match="cannot be told from examples"):
        sides_of(unknown, balanced, "b")
    with pytest.raises(PromptError, match="does not say what is spurious"):
        sides_of(usual, unknown, "b")
    lacking = made(("a", "x"), ("b", "x"), ("a", "y"))
    adds = torch.zeros(3, 1, dtype=torch.float64)
    with pytest.raises(PromptError, match="no example that is 'b' with 'y'"):
        contrasts(adds, lacking, "b", {"x": False, "y": True})


def test_judgments_are_written_filled_in_and_read(tmp_path):
    path = tmp_path / "judge.jsonl"
    judged = [
        Judged("r0.f3", 1.23456789, 0.1, contexts=("a [[b]]",)),
        Judged("m0.f1", -0.5, None, "keep", on_label=0.1, on_spurious=0.2, note="why"),
    ]
    write_judgments(judged, path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0] == {
        "feature": "r0.f3", "judgment": "", "effect": 1.235, "se": 0.1, "contexts": ["a [[b]]"],
    }  # fmt: skip
    rows[0]["judgment"] = "Ablate"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_judgments(path)
    assert [(one.name, one.judgment) for one in found] == [("r0.f3", "ablate"), ("m0.f1", "keep")]
    assert found[1].note == "why"
    with pytest.raises(RunFolderError, match="judgments in it would be lost"):
        write_judgments(judged, path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"feature": "r0.f3", "judgment": "ablat"}', "Closest: 'ablate'"),
        ('{"feature": "r0", "judgment": "keep"}', "'r0' is no feature"),
        ('{"feature": "r0.f3"', "line 1: not JSON"),
        ("r0.f3\nr0.f3", "line 2: r0.f3 stands there twice"),
        ("nonsense", "line 1: 'nonsense' is no feature"),
    ],
)
def test_a_judgment_that_says_nothing_is_refused_by_line(tmp_path, text, said):
    path = tmp_path / "judge.jsonl"
    path.write_text(text)
    with pytest.raises(PairFileError) as refused:
        read_judgments(path)
    assert said in str(refused.value)


def test_a_list_of_names_is_a_file_of_judgments(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("r0.f3\n\nm1.f2\n")
    assert [(one.name, one.judgment) for one in read_judgments(path)] == [
        ("r0.f3", "ablate"), ("m1.f2", "ablate"),
    ]  # fmt: skip


def test_a_candidate_is_shown_where_it_is_strongest():
    model, examples = tiny_tasks.model("Llama"), random_examples()
    dictionaries = random_dictionaries(model)
    found = candidates(
        model, examples, dictionaries, site="layers.1.resid_post", features=4, contexts=3, audit=0,
        estimator=hw.Gradient(),
    )  # fmt: skip
    for one in found.judged:
        label, _, index = one.name.partition(".f")
        site = {"m0": "layers.0.mlp.out", "r0": "layers.0.resid_post"}.get(label)
        site = Site.parse(site or "layers.1.resid_post")
        strongest = []
        for place, text in enumerate(examples.texts):
            values = dictionaries[site].encode(_values(model, text, site))[:, int(index)]
            at = int(values.argmax())
            words = model.tokenizer.convert_ids_to_tokens(model.tokenizer(text)["input_ids"])
            words[at] = f"[[{words[at]}]]"
            if float(values[at]) > 0:
                strongest.append((-float(values[at]), place, " ".join(words)))
        assert list(one.contexts) == [text for _, _, text in sorted(strongest)[:3]]
    assert "not audited" in repr(found)


# --- biased tasks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BIASED)
def test_a_biased_task_is_biased_and_its_balanced_set_is_not(name):
    some, balanced = biased(name, 80, seed=1)
    assert [len(places) for places in some.groups().values()] == [40, 40]
    assert [len(places) for places in balanced.groups().values()] == [20] * 4
    texts = [*some.texts, *balanced.texts]
    assert len(set(texts)) == len(texts) == 160
    task = BIASED[name]
    assert some.stands_for() == dict(zip(task.attributes, task.labels, strict=True))
    assert biased(name, 80, seed=1)[0].sha256() == some.sha256()
    assert biased(name, 80, seed=2)[0].sha256() != some.sha256()
    tokenizer = hw.load("tiny").tokenizer
    assert tokenizer.unk_token_id not in tokenizer(" ".join(texts))["input_ids"]


def test_labels_and_attributes_say_what_is_in_the_text():
    from headwater.zoo.words import FEMALE_NAMES, NOUNS

    plural = {noun.plural for noun in NOUNS}
    for row in (*biased("gender-by-number", 40)[1], *biased("number-by-gender", 40)[1]):
        words = row.text.split()
        gender = "female" if words[0] in FEMALE_NAMES else "male"
        number = "plural" if words[words.index("The") + 1] in plural else "singular"
        assert {row.label, row.spurious} == {gender, number}
    for row in biased("subject-by-attractor", 40)[1]:
        words = row.text.split()
        assert row.label == ("plural" if words[1] in plural else "singular")
        assert row.spurious == ("plural" if words[4] in plural else "singular")


def test_a_bias_below_one_leaves_exceptions():
    some, _ = biased("gender-by-number", 80, bias=0.9)
    sizes = {group: len(places) for group, places in some.groups().items()}
    assert sizes == {
        ("female", "plural"): 36, ("female", "singular"): 4,
        ("male", "plural"): 4, ("male", "singular"): 36,
    }  # fmt: skip


def test_what_no_biased_task_is_is_refused():
    with pytest.raises(UnknownTaskError, match="Closest: 'gender-by-number'"):
        biased("gender-by-numbers")
    with pytest.raises(PromptError, match=r"count=81.*\n.*count=80"):
        biased("gender-by-number", 81)
    with pytest.raises(PromptError, match=r"bias=0.2 is no share"):
        biased("gender-by-number", 80, bias=0.2)


# --- the whole ------------------------------------------------------------------------------------


def few_dictionaries(model):
    """Those of MLPs and residuals of the first two layers."""
    found = hw.load_dictionaries(model)
    names = [f"layers.{layer}.{name}" for layer in (0, 1) for name in ("mlp.out", "resid_post")]
    return Dictionaries({name: found[name] for name in names})


@pytest.fixture(scope="module")
def repaired():
    model = hw.load("tiny")
    return shift(
        model,
        *biased("gender-by-number", 160),
        few_dictionaries(model),
        site="layers.1.resid_post",
        features=20,
        sample=24,
        audit=8,
        draws=2,
        estimator=hw.IntegratedGradients(steps=4),
        progress=False,
    )


def test_a_probe_that_goes_by_number_is_made_to_go_by_gender(repaired):
    before = repaired.outcome("before").balanced
    assert before.all.interval[1] < 0.7
    assert before.follows.interval[0] > 0.9
    after = repaired.outcome("ablated", retrained=True).balanced
    assert after.all.interval[0] > 0.7
    assert repaired.gained["before"][1] > 0.2
    assert repaired.gained["random"][1] > 0.2
    assert repaired.outcome("oracle").balanced.all.interval[0] > 0.75
    assert repaired.outcome("random", retrained=True).balanced.all.interval[1] < 0.75


def test_every_outcome_is_what_ablating_by_hand_gives(repaired):
    model = hw.load("tiny")
    some, balanced = biased("gender-by-number", 160)
    train, test = some.split(0.8)
    _, measuring = balanced.split(0.5)
    probe = Probe.fit(model, train, "layers.1.resid_post")
    assert probe.sha256() == repaired.probe.sha256()
    for kind in ("ablated", "strongest", "random"):
        found = repaired.outcome(kind)
        taps = Ablation(model, few_dictionaries(model), found.ablated).taps
        assert probe.accuracy(model, measuring, taps=taps).all == found.balanced.all
        assert probe.accuracy(model, test, taps=taps).all == found.biased.all
        again = Probe.fit(model, train, "layers.1.resid_post", taps=taps)
        retrained = repaired.outcome(kind, retrained=True)
        assert again.accuracy(model, measuring, taps=taps).groups == retrained.balanced.groups
    assert len(repaired.outcome("random").ablated) == len(repaired.ablated)


def test_a_shift_says_in_words_what_came_of_it(repaired):
    said = repr(repaired)
    assert "SHIFT of gender-by-number on tiny: a probe at layers.1.resid_post" in said
    assert "it goes by what is spurious" in said
    assert "Ablating and retraining helps" in said
    assert "It is better than ablating as many random features" in said
    assert "8 of 1,540 components checked exactly" in said
    assert max(map(len, said.split("Effects:")[0].splitlines())) < 150


def test_a_shift_is_saved_and_loaded(repaired, tmp_path):
    repaired.save(tmp_path / "run")
    again = Shift.load(tmp_path / "run")
    assert repr(again) == repr(repaired)
    assert again.retrained.sha256() == repaired.retrained.sha256()
    assert again.to_dict() == json.loads(json.dumps(repaired.to_dict()))
    assert list(repaired.to_frame()["treatment"]).count("random") == 4


def test_features_that_are_given_are_ablated_and_no_attribute_is_needed(tmp_path):
    model, examples = tiny_tasks.model("Llama"), random_examples(40)
    plain = Examples([{"text": row.text, "label": row.label} for row in examples])
    path = tmp_path / "judge.jsonl"
    write_judgments([Judged("r0.f1", judgment="ablate"), Judged("r0.f2")], path)
    dictionaries = random_dictionaries(model)
    options = {"site": "layers.1.resid_post", "audit": 0, "draws": 1, "progress": False}
    options["estimator"] = hw.Gradient()
    out = tmp_path / "run"
    found = shift(model, plain, plain, dictionaries, path, out=out, **options)
    assert found.ablated == ("r0.f1",)
    assert found.outcome("before").balanced.follows is None
    assert list(found.outcome("before").balanced.groups) == ["0", "1"]
    assert Shift.load(out).ablated == ("r0.f1",)
    with pytest.raises(RunFolderError, match="already holds another shift"):
        shift(model, plain, plain, dictionaries, ["r0.f1"], out=out, **options)
    none = shift(model, plain, plain, dictionaries, [], **options)
    assert none.ablated == ()
    assert none.gained == {}
    assert "nothing was changed" in repr(none)
    with pytest.raises(ResultError, match="no outcome 'ablated'"):
        none.outcome("ablated")


def test_a_shift_refuses_before_it_runs():
    model, examples = tiny_tasks.model("Llama"), random_examples(40)
    dictionaries = random_dictionaries(model)
    with pytest.raises(UnknownComponentError, match="no dictionary"):
        shift(model, examples, examples, dictionaries, ["a0.f1"])
    with pytest.raises(UnknownComponentError, match="There are dictionaries of m0, r0"):
        shift(model, examples, examples, dictionaries, ["r1.f1"], site="layers.0.resid_post")
    with pytest.raises(UnknownOptionError, match="features=0: it must be at least 1"):
        shift(model, examples, examples, dictionaries, features=0)
    with pytest.raises(UnknownOptionError, match="held_out=1 leaves one part empty"):
        shift(model, examples, examples, dictionaries, held_out=1)
    one = Examples([row for row in examples if row.label == "1"])
    with pytest.raises(PromptError, match="has 1 labels"):
        shift(model, one, examples, dictionaries)
    with pytest.raises(PromptError, match="holds only '1'"):
        shift(model, examples, one, dictionaries)
