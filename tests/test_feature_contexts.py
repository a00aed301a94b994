"""Top contexts of features against a loop over single prompts with plain hooks."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import feature_circuit_cases as cases
import headwater as hw
import tiny_tasks
from headwater.dictionaries.activations import Relu, TopK
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import (
    ModelGoneError,
    PromptError,
    RunFolderError,
    UnknownComponentError,
    UnknownOptionError,
)
from headwater.feature_circuits import strongest
from headwater.feature_circuits.contexts import FILE, Context, Contexts, FeatureContexts
from headwater.feature_circuits.result import FeatureCircuit
from headwater.prompts.encoding import token_texts
from headwater.sites import Site
from tiny_models import VOCAB


def prompts(count: int = 40, seed: int = 0) -> list[list[int]]:
    """Random prompts of several lengths; some come twice."""
    draw = random.Random(seed)
    some = [
        [draw.randrange(tiny_tasks.FIRST_WORD, VOCAB) for _ in range(draw.randrange(2, 12))]
        for _ in range(count - count // 6)
    ]
    return [*some, *(list(one) for one in some[: count // 6])]


def features_at(site: Site, found: Any, ids: Sequence[int]) -> torch.Tensor:
    """Every feature of a site in one prompt, [pos, feature], by a plain hook."""
    model = tiny_tasks.model("Llama")
    layer = model.module.model.layers[site.layer]
    module = {"attn.out": layer.self_attn, "mlp.out": layer.mlp, "resid_post": layer}[site.name]
    kept = []

    def keep(_: Any, __: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(keep)
    with torch.no_grad():
        model.module(input_ids=torch.tensor([ids]))
    handle.remove()
    one = found[site]
    pre = kept[0].reshape(len(ids), -1) @ one.encoder + one.encoder_bias
    if isinstance(one.activation, TopK):
        least = pre.topk(one.activation.k).values[:, -1:]
        return pre.relu() * (pre >= least)
    return pre.relu()


def looked_up(
    circuit: FeatureCircuit, corpus: list[list[int]], *, top: int, before: int, after: int,
    skip: int = 0,
) -> dict[str, tuple[int, int, list[tuple[int, int, int, list[int], list[float]]]]]:  # fmt: skip
    """The slow twin: prompt by prompt, everything kept and sorted at the end."""
    found = circuit.live.dictionaries
    sites = {node.site: Site.parse(node.site) for node in circuit.nodes if node.kind == "feature"}
    known = {
        name: [features_at(site, found, ids) for ids in corpus] for name, site in sites.items()
    }
    result = {}
    for node in circuit.nodes:
        if node.kind != "feature":
            continue
        fires = in_prompts = 0
        best: dict[tuple[int, ...], Any] = {}
        for number, ids in enumerate(corpus):
            column = known[node.site][number][:, node.index].tolist()
            counted = [abs(value) if at >= skip else 0.0 for at, value in enumerate(column)]
            fires += sum(value != 0 for value in counted)
            in_prompts += any(counted)
            if not any(counted):
                continue
            # what differs by less than rounding of another batch shape can make is equal
            at = next(i for i, value in enumerate(counted) if value >= 0.9999 * max(counted))
            start = max(0, at - before)
            shown = slice(start, at + after + 1)
            key = (-float(f"{counted[at]:.4g}"), number, at)
            window = tuple(ids[shown])
            if window not in best or key < best[window][0]:
                best[window] = (key, (number, at, start, ids[shown], column[shown]))
        places = [one for _, one in sorted(best.values(), key=lambda one: one[0])[:top]]
        result[node.name.split("@")[0]] = (fires, in_prompts, places)
    return result


def same(found: Contexts, expected: dict[str, Any]) -> None:
    assert set(found.features) == set(expected)
    for name, (fires, in_prompts, places) in expected.items():
        one = found[name]
        assert (one.fires, one.prompts) == (fires, in_prompts)
        assert [(c.prompt, c.position, c.start) for c in one.contexts] == [p[:3] for p in places]
        for context, (*_, ids, values) in zip(one.contexts, places, strict=True):
            assert list(context.tokens) == token_texts(tiny_tasks.tokenizer(), ids)
            # stock attention takes its softmax in float32, where padding changes the last digits
            assert context.activations == pytest.approx(values, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("activation", [Relu, lambda: TopK(5)], ids=["relu", "topk"])
def test_contexts_are_those_of_a_loop_over_single_prompts(activation):
    circuit = cases.circuit(activation=activation)
    found = circuit.contexts(prompts(), top=3, before=4, after=2, batch_size=8, progress=False)
    same(found, looked_up(circuit, prompts(), top=3, before=4, after=2))
    assert found.prompts == 40
    assert found.tokens == sum(map(len, prompts()))


@pytest.mark.parametrize("name", ["attn.z", "mlp.out"])
def test_transcoders_and_heads_are_encoded_from_what_they_read(name):
    model = tiny_tasks.model("Llama")
    layer = model.module.model.layers[1]
    # a transcoder reads what enters the MLP, a dictionary of heads what enters the projection
    reader = {"attn.z": layer.self_attn.o_proj, "mlp.out": layer.mlp}[name]
    width = {"attn.z": layer.self_attn.o_proj.in_features, "mlp.out": model.anatomy().d_model}[name]
    one = cases.dictionary(width, 20, 3, Relu())
    site = Site(1, name)
    if name == "mlp.out":
        one = replace(one, transcoder=True)
    found = Dictionaries({site: one}, {site: Site(1, "mlp.in")} if name == "mlp.out" else {})
    task = hw.Task([tiny_tasks.pair(6, seed=seed, changed=(1, 3)) for seed in range(4)])
    circuit = hw.feature_circuit(
        model, task, found, nodes=8, edge_threshold=0, estimator=hw.Gradient(), progress=False
    )
    contexts = circuit.contexts(prompts(20), progress=False)
    values: list[torch.Tensor] = []
    handle = reader.register_forward_pre_hook(lambda _, args: values.append(args[0][0]))
    with torch.no_grad():
        for ids in prompts(20):
            model.module(input_ids=torch.tensor([ids]))
    handle.remove()
    features = (torch.cat(values) @ one.encoder + one.encoder_bias).relu()
    kept = [node for node in circuit.nodes if node.index is not None]
    assert kept
    for node in kept:
        assert contexts[node.name].fires == int((features[:, node.index] > 0).sum())
        strongest = contexts[node.name].contexts[0].activation
        assert strongest == pytest.approx(float(features[:, node.index].max()), rel=1e-4)


def test_skipped_positions_are_shown_and_do_not_count():
    circuit = cases.known()
    found = circuit.contexts(prompts(), top=2, before=9, after=9, skip=2, progress=False)
    same(found, looked_up(circuit, prompts(), top=2, before=9, after=9, skip=2))
    assert found.tokens == sum(max(0, len(one) - 2) for one in prompts())


def test_prompts_are_cut_to_a_length_and_read_up_to_a_limit():
    found = cases.known().contexts(prompts(), top=2, length=5, limit=20, progress=False)
    cut = [one[:5] for one in prompts()[:20]]
    same(found, looked_up(cases.known(), cut, top=2, before=16, after=6))


@pytest.mark.parametrize("batch_size", [1, 3, 40])
def test_batches_and_chunks_change_nothing(monkeypatch, batch_size):
    whole = cases.known().contexts(prompts(), progress=False)
    monkeypatch.setattr(strongest, "ENCODED_BYTES", 1)
    parts = cases.known().contexts(iter(prompts()), batch_size=batch_size, progress=False)
    assert {one.name: one.fires for one in parts} == {one.name: one.fires for one in whole}
    for one in parts:
        assert [c.tokens for c in one.contexts] == [c.tokens for c in whole[one.name].contexts]


def test_the_contexts_of_one_feature_are_of_different_tokens():
    corpus = [*prompts(12), *prompts(12), *prompts(12)]
    for one in cases.known().contexts(corpus, progress=False):
        assert len({context.tokens for context in one.contexts}) == len(one.contexts)
        assert all(context.prompt < 12 for context in one.contexts)


def test_only_kept_features_are_encoded(monkeypatch):
    circuit, asked = cases.known(), []
    dictionary = type(circuit.live.dictionaries[Site(0, "mlp.out")])
    encode = dictionary.encode

    def watched(self: Any, x: torch.Tensor, columns: Any = None) -> torch.Tensor:
        asked.append((self, columns))
        return encode(self, x, columns)

    monkeypatch.setattr(dictionary, "encode", watched)
    circuit.contexts(prompts(4), progress=False)
    kept = {
        len_of(circuit, site): sorted({n.index for n in circuit.nodes
                                       if n.site == str(site) and n.index is not None})
        for site in circuit.live.dictionaries
    }  # fmt: skip
    # no two dictionaries have the same number of features
    assert {one.features: columns.tolist() for one, columns in asked} == {
        features: some for features, some in kept.items() if some
    }


def len_of(circuit: FeatureCircuit, site: Site) -> int:
    return circuit.live.dictionaries[site].features


def test_a_feature_at_several_positions_has_one_entry():
    found = cases.known("none").contexts(prompts(10), progress=False)
    names = [node.name for node in cases.known("none").nodes if node.kind == "feature"]
    assert all("@" in name for name in names)
    assert set(found.features) == {name.split("@")[0] for name in names}
    assert found[names[0]] is found[names[0].split("@")[0]]


def test_hooks_are_gone_afterwards():
    module = tiny_tasks.model("Llama").module
    cases.known().contexts(prompts(4), progress=False)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_saved_contexts_are_read_back(tmp_path):
    found = cases.known().contexts(prompts(10), progress=False)
    file = found.save(tmp_path)
    assert file == tmp_path / FILE
    for path in (tmp_path, file):
        again = Contexts.load(path)
        assert again.features == found.features
        assert (again.tokens, again.prompts) == (found.tokens, found.prompts)
    found.save(tmp_path)


def test_contexts_of_another_corpus_are_not_written_over(tmp_path):
    found = cases.known().contexts(prompts(10), progress=False)
    found.save(tmp_path)
    other = cases.known().contexts(prompts(9), progress=False)
    with pytest.raises(RunFolderError) as caught:
        other.save(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / FILE} holds contexts of other features, another corpus or other options.\n"
        "Choose another folder, or write save(..., overwrite=True)."
    )
    other.save(tmp_path, overwrite=True)
    assert Contexts.load(tmp_path).prompts == 9


@pytest.mark.parametrize("text", ["{", '{"schema_version": 7}', "[]", '{"schema_version": 1}'])
def test_a_file_that_is_none_is_refused_with_what_to_type(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(RunFolderError, match="holds no contexts that this release can read"):
        Contexts.load(tmp_path)


def test_a_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(RunFolderError) as caught:
        Contexts.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / FILE} is not there.\n"
        f"Make it: circuit.contexts(corpus).save({str(tmp_path)!r})."
    )


def test_a_name_that_was_not_looked_for_is_refused():
    found = cases.known().contexts(prompts(4), progress=False)
    name = next(iter(found.features))
    with pytest.raises(UnknownComponentError) as caught:
        found[f"{name}9@3"]
    assert str(caught.value).startswith(f"no contexts of '{name}9@3': they were looked for of ")
    assert f"{name}9" not in found
    assert f"{name}@3" in found


@pytest.mark.parametrize(
    ("corpus", "message"),
    [([], "the list in corpus= gave no prompt, so there is nothing to show"),
     ({"text": []}, "corpus= is a mapping with 'text', not prompts")],
)  # fmt: skip
def test_a_corpus_that_gives_nothing_is_refused(corpus, message):
    with pytest.raises(PromptError) as caught:
        cases.known().contexts(corpus, progress=False)
    assert message in str(caught.value)


@pytest.mark.parametrize("options", [{"top": 0}, {"before": -1}, {"skip": -1}, {"limit": 0}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(UnknownOptionError):
        cases.known().contexts(prompts(4), progress=False, **options)


def test_a_circuit_without_its_model_asks_for_it(tmp_path):
    circuit = replace(cases.known(), live=None)
    with pytest.raises(ModelGoneError):
        circuit.contexts(prompts(4), progress=False)
    found = circuit.contexts(
        prompts(4), model=tiny_tasks.model("Llama"),
        dictionaries=cases.known().live.dictionaries, progress=False,
    )  # fmt: skip
    assert found.features == cases.known().contexts(prompts(4), progress=False).features


def test_what_is_saved_says_what_was_read():
    found = cases.known().contexts(prompts(10), skip=1, progress=False)
    made = json.loads(json.dumps(found.to_dict()))["provenance"]
    assert made["corpus"]["source"] == "the list"
    assert made["corpus"]["prompts"] == 10
    assert made["skip"] == 1
    assert len(made["corpus"]["sha256"]) == 64


def test_a_printed_result_is_one_screen_with_the_strongest_place_marked():
    context = Context(3, 2, 1, (" to", " the", " store"), (0.0, 2.5, 0.1))
    one = FeatureContexts("m1.f5", 4, 2, (context,))
    found = Contexts({"m1.f5": one}, 200, 20, {"corpus": {"source": "the file c.txt"}})
    assert repr(found).splitlines() == [
        "Top contexts of 1 features in the file c.txt: 20 prompts, 200 tokens",
        "feature    fires      most  where",
        "m1.f5      2.00%       2.5  to[[ the]] store",
    ]
    assert context.activation == 2.5
    words = replace(context, tokens=("to", "the", "store"))
    assert words.marked() == "to [[the]] store"
