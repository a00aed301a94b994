"""The page of a feature circuit as text: what it holds, what it never holds, what it carries."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

import circuit_page_cases as cases
import feature_circuit_cases
from headwater.errors import ResultError
from headwater.feature_circuits import view
from headwater.feature_circuits.collect import Graph
from headwater.feature_circuits.contexts import Contexts
from headwater.feature_circuits.result import FeatureCircuit
from headwater.page.circuit import (
    SCRIPTS,
    STYLES,
    circuit_fragment,
    render_circuit,
    strongest,
    write_circuit,
)
from headwater.page.circuit_payload import HEAT, heat
from headwater.page.document import asset
from headwater.page.tokens import visible
from test_page import HOSTILE, Outline, embedded


@pytest.fixture(scope="module")
def small() -> str:
    return render_circuit(cases.page())


def static(text: str) -> str:
    """A page's visible text with scripts off."""
    return Outline(re.sub(r"<(script|style)[ >].*?</\1>", "", text, flags=re.DOTALL)).text


def test_the_page_holds_no_address(small):
    assert "http" not in small
    fixed = "".join(map(asset, ("circuit.html", *STYLES, *SCRIPTS)))
    assert "//" not in fixed.replace("data:,", "")


def test_nothing_in_the_page_could_load_anything(small):
    outline = Outline(small)
    assert not {tag for tag, _ in outline.tags} & {"img", "iframe", "object", "embed", "base"}
    assert [a for _, a in outline.tags if "src" in a or "style" in a] == []
    assert [a["href"] for tag, a in outline.tags if tag == "link"] == ["data:,"]


def test_the_policy_names_style_and_script_by_hash(small):
    found = re.search(r'content="(default-src [^"]*)"', small)
    assert found
    assert found[1].startswith("default-src 'none'; style-src 'sha256-")
    assert "script-src 'sha256-" in found[1]
    assert "unsafe" not in found[1]


def test_the_script_builds_the_page_from_text_alone():
    script = "".join(map(asset, SCRIPTS))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_the_shell_is_at_most_sixty_kilobytes():
    data = cases.page(1, 1, 0, corpus=False)
    assert len(render_circuit(data).encode()) <= 60_000


def test_a_thousand_nodes_and_twenty_thousand_edges_are_under_a_megabyte():
    data = cases.page(12, 1000, 20_000)
    assert len(data["edges"]) == 20_000
    assert len(render_circuit(data).encode()) < 1_000_000


def filled(word: str) -> dict[str, Any]:
    """A page in which every text is the word."""
    data = cases.page(2, 12, 20)
    context = {"tokens": [word] * 3, "activations": [0.1, 1.0, 0.0], "strongest": 1, "prompt": 0}
    feature = {"fires": 1, "prompts": 1, "contexts": [context]}
    return data | {
        "title": word, "heading": word, "sentences": [word], "notes": [word],
        "facts": {word: word}, "provenance": {word: word}, "metric": word,
        "sites": [site | {"label": word} for site in data["sites"]],
        "nodes": [node | {"name": f"{word}{n}", "annotation": word}
                  for n, node in enumerate(data["nodes"])],
        "prompts": [[word, word]],
        "features": {f"{word}{n}": feature for n in range(len(data["nodes"]))},
        "corpus": {"source": word, "tokens": 3, "prompts": 1},
        "tables": [{"title": word, "caption": word, "headings": (word,), "rows": [(word,)]}],
    }  # fmt: skip


def test_hostile_text_adds_no_element_anywhere():
    for render in (render_circuit, circuit_fragment):
        hostile, harmless = (
            Outline(render(filled(word)))  # pyright: ignore
            for word in (HOSTILE, "x" * len(HOSTILE))
        )
        assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]


def test_numbers_that_are_not_finite_are_carried_as_none():
    data = cases.page(2, 6, 6)
    data["nodes"][0] |= {"effect": math.nan, "se": math.inf}
    data["edges"][0]["weight"] = -math.inf
    held = embedded(render_circuit(data))
    assert held["nodes"]["effect"][0] is None
    assert held["nodes"]["se"][0] is None
    assert held["edges"]["weight"][0] is None


def test_the_page_carries_every_node_and_edge():
    data = cases.page()
    held = embedded(render_circuit(data))
    assert held["nodes"]["name"] == [node["name"] for node in data["nodes"]]
    assert held["nodes"]["effect"] == pytest.approx(
        [node["effect"] for node in data["nodes"]], rel=1e-3
    )
    for key in ("source", "target"):
        assert held["edges"][key] == [edge[key] for edge in data["edges"]]
    assert held["edges"]["weight"] == pytest.approx(
        [edge["weight"] for edge in data["edges"]], rel=1e-3
    )


def test_checked_edges_carry_their_exact_weight():
    data = cases.page()
    data["edges"][3]["exact"] = 0.25
    assert embedded(render_circuit(data))["edges"]["exact"] == {"3": 0.25}


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 2.0], [0, 25, 99]), ([-1.0, 1.0], [-99, 99]), ([1e-9, 1.0, 0.0], [1, 99, 0]),
     ([0.0, 0.0], [0, 0]), ([math.inf, 1.0], [0, 0]), ([], [])],
)  # fmt: skip
def test_heat_is_the_share_of_the_strongest_token(values, expected):
    context = {"tokens": [""] * len(values), "activations": values, "strongest": 0, "prompt": 0}
    assert heat(context) == expected  # pyright: ignore[reportArgumentType]
    assert HEAT == 99


def test_tokens_of_contexts_are_numbers_into_one_vocabulary():
    data = cases.page()
    held = embedded(render_circuit(data))
    assert len(set(held["vocabulary"])) == len(held["vocabulary"])
    for name, feature in data["features"].items():
        for context, one in zip(feature["contexts"], held["features"][name]["contexts"],
                                strict=True):  # fmt: skip
            assert [held["vocabulary"][token] for token in one["tokens"]] == [
                visible(token) for token in context["tokens"]
            ]
            assert one["strongest"] == context["strongest"]


def test_without_scripts_the_strongest_nodes_and_edges_are_a_table():
    data = cases.page(3, 60, 200)
    text = static(render_circuit(data))
    for node in strongest(data)[:30]:  # pyright: ignore[reportArgumentType]
        assert node["name"] in text
    assert text.count("logit-diff") >= sum(
        edge["target"] == len(data["nodes"]) for edge in data["edges"][:30]
    )
    assert "Where they are strongest" in text


def test_without_scripts_words_of_a_context_are_apart_and_pieces_are_not():
    def shown(tokens: list[str]) -> str:
        data = cases.page(1, 4, 0)
        name = next(node["name"] for node in data["nodes"] if node["kind"] == "feature")
        context = {
            "tokens": tokens,
            "activations": [0.0] * len(tokens),
            "strongest": 1,
            "prompt": 0,
        }
        data["features"] = {name: {"fires": 1, "prompts": 1, "contexts": [context]}}
        return static(render_circuit(data))

    assert "gave a hat" in shown(["gave", "a", "hat"])
    assert "they gave" in shown(["the", "y", " gave"])


def test_what_is_left_out_is_said():
    data = cases.page()
    data["shown"] = {"nodes": 20, "of_nodes": 3000, "edges": 80, "of_edges": 80}
    text = static(render_circuit(data))
    assert "The page holds the 20 strongest of 3,000 nodes" in text
    assert "strongest of 80 edges" not in text


def test_a_page_without_contexts_says_nothing_of_them():
    data = cases.page(corpus=False)
    assert "Where they are strongest" not in static(render_circuit(data))
    assert embedded(render_circuit(data))["corpus"] is None


def test_the_notebook_shows_ten_nodes_without_style_sheet_or_script():
    outside = circuit_fragment(cases.page(3, 40, 60)).split("<details>")[0]  # pyright: ignore
    assert outside.count("<tr>") == 11
    assert not re.search(r"<(script|style|link)", outside)
    assert "The 10 strongest of" in outside


def test_a_page_is_written_whole_with_its_folder(tmp_path):
    path = write_circuit(cases.page(), tmp_path / "deep" / "page.html")  # pyright: ignore
    assert path.read_text(encoding="utf-8") == render_circuit(cases.page())


# what a real circuit puts there


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    corpus = [[3 + (7 * row + column) % 40 for column in range(9)] for row in range(20)]
    return feature_circuit_cases.known().contexts(corpus, progress=False)


def test_a_circuits_page_has_its_nodes_edges_and_accounts():
    circuit = feature_circuit_cases.known()
    data = view.page_data(circuit)
    assert [node["name"] for node in data["nodes"]] == [node.name for node in circuit.nodes]
    for node, of in zip(data["nodes"], circuit.nodes, strict=True):
        assert (node["effect"], node["incoming"], node["below"], node["unexplained"]) == (
            of.effect, of.incoming, of.below, of.unexplained,
        )  # fmt: skip
        assert data["sites"][node["site"]]["label"] == of.name.split(".")[0]
    names = [*(node["name"] for node in data["nodes"]), "logits"]
    assert [
        (names[edge["source"]], names[edge["target"]], edge["weight"]) for edge in data["edges"]
    ] == [(edge.source, edge.target, edge.weight) for edge in circuit.edges]


def test_sites_stand_in_the_columns_of_their_layer():
    found = view.page_data(feature_circuit_cases.known())["sites"]
    columns = {site["label"]: (site["layer"], site["column"]) for site in found}
    assert columns["input"] == (None, "residual")
    assert columns["a1"] == (1, "attention")
    assert columns["m0"] == (0, "MLP")
    assert columns["r1"] == (1, "residual")


def test_the_site_table_says_how_effects_add_up_and_what_slopes_were():
    circuit = feature_circuit_cases.known()
    table = view.page_data(circuit)["tables"][-1]
    assert table["title"] == "Sites"
    assert [row[0] for row in table["rows"]] == [site.label for site in circuit.sites]
    place = table["headings"].index("replaced")
    first, *rows = [row[place] for row in table["rows"]]
    assert first == view.ABSENT  # nothing flows into the first site
    assert rows == [f"{s.replaced:,}" if s.kept else view.ABSENT for s in circuit.sites[1:]]


def test_contexts_and_annotations_reach_their_nodes_at_every_position(contexts):
    circuit = feature_circuit_cases.known("none")
    node = next(
        n for n in circuit.nodes if n.kind == "feature" and n.name.split("@")[0] in contexts
    )
    base = node.name.split("@")[0]
    data = view.page_data(circuit, contexts, {base: "plural nouns"})
    said = {one["name"]: one["annotation"] for one in data["nodes"]}
    assert said[node.name] == "plural nouns"
    assert data["features"][base]["fires"] == contexts[base].fires
    assert data["features"][base]["contexts"][0]["tokens"] == contexts[base].contexts[0].tokens


def test_annotations_of_no_node_are_counted():
    circuit = feature_circuit_cases.known()
    name = next(node.name for node in circuit.nodes if node.kind == "feature")
    notes = view.page_data(circuit, annotations={name: "a", "m9.f1": "b", "m9.f2": "c"})["notes"]
    assert "2 of 3 annotations are of no node of this circuit, m9.f1 among them." in notes
    assert not any("annotations" in n for n in view.page_data(circuit, None, {name: "a"})["notes"])


def test_contexts_are_read_from_where_they_were_saved(contexts, tmp_path):
    contexts.save(tmp_path)
    circuit = feature_circuit_cases.known()
    saved = view.page_data(circuit, tmp_path)
    assert saved["features"] == view.page_data(circuit, contexts)["features"]


def test_contexts_of_another_dictionary_are_refused(contexts):
    made = json.loads(json.dumps(contexts.provenance))
    made["dictionaries"][1]["sha256"] = "0" * 64
    with pytest.raises(ResultError) as caught:
        view.page_data(feature_circuit_cases.known(), replace(contexts, provenance=made))
    assert str(caught.value) == (
        "these contexts are of another dictionary at 'layers.0.mlp.out' than the circuit's.\n"
        "Make them with the circuit: circuit.contexts(corpus)."
    )


def test_contexts_of_another_model_are_refused(contexts):
    made = json.loads(json.dumps(contexts.provenance))
    made["model"] |= {"weights_hash": "0", "name": "other"}
    with pytest.raises(ResultError, match="these contexts are of features of 'other'"):
        view.page_data(feature_circuit_cases.known(), replace(contexts, provenance=made))


def test_features_that_were_not_looked_for_are_counted(contexts):
    some = dict(list(contexts.features.items())[2:])
    notes = view.page_data(feature_circuit_cases.known(), replace(contexts, features=some))["notes"]
    assert any(note.startswith("2 features have no contexts here") for note in notes)


def large(circuit: FeatureCircuit, edges: int) -> FeatureCircuit:
    """The circuit with so many edges, each weaker than the one before."""
    count = len(circuit.nodes)
    weights = torch.linspace(1, 0.1, edges, dtype=torch.float64)
    sources = torch.arange(edges) % count
    graph = circuit.graph
    return replace(circuit, graph=Graph(graph.nodes, sources, (sources + 1) % (count + 1), weights,
                                        0, 0.0, graph.sites))  # fmt: skip


def test_a_page_holds_the_strongest_edges_and_says_of_how_many(monkeypatch):
    monkeypatch.setattr(view, "MOST_EDGES", 50)
    data = view.page_data(large(feature_circuit_cases.known(), 200))
    assert len(data["edges"]) == 50
    assert min(edge["weight"] for edge in data["edges"]) > 0.7
    assert data["shown"] | {"edges": 50, "of_edges": 200} == data["shown"]


def test_a_page_holds_the_strongest_nodes_in_the_order_of_the_forward_pass(monkeypatch):
    circuit = feature_circuit_cases.known()
    monkeypatch.setattr(view, "MOST_NODES", 10)
    data = view.page_data(circuit)
    kept = {node.name for node in circuit.top(10)}
    assert [node["name"] for node in data["nodes"]] == [
        node.name for node in circuit.nodes if node.name in kept
    ]
    names = [*(node["name"] for node in data["nodes"]), "logits"]
    ends = [(names[edge["source"]], names[edge["target"]]) for edge in data["edges"]]
    assert ends == [
        (edge.source, edge.target)
        for edge in circuit.edges
        if {edge.source, edge.target} <= kept | {"logits"}
    ]


def test_an_audits_exact_values_and_figures_are_on_the_page():
    circuit = replace(feature_circuit_cases.known(), audits={})
    edge, node = circuit.edges[0], circuit.top(1)[0]
    statistic = {"name": "slope", "value": 0.98, "low": 0.9, "high": 1.1, "words": "near 1"}
    for of, name in (("edges", f"{edge.source} -> {edge.target}"), ("nodes", node.name)):
        circuit.audits[of] = {
            "rows": [{"name": name, "exact": 0.5}], "statistics": [statistic],
            "sentence": "Checked 3 components exactly.", "verdict": "trust it",
            "cost": "3 forwards",
        }  # fmt: skip
    data = view.page_data(circuit)
    assert data["edges"][0]["exact"] == 0.5
    assert [one["exact"] for one in data["nodes"] if one["name"] == node.name] == [0.5]
    assert [table["title"] for table in data["tables"]][:2] == [
        "Audit of the edges", "Audit of the nodes",
    ]  # fmt: skip
    assert data["tables"][0]["rows"] == [("slope", "0.980", "0.900 to 1.10", "near 1")]
    assert data["tables"][0]["caption"] == "Checked 3 edges exactly. Cost: 3 forwards."
    assert not any("Checked" in note for note in data["notes"])  # said once
    assert "Audit of the edges: trust it" in data["sentences"]
    assert not any("Not audited" in one for one in data["sentences"])


def test_what_the_circuit_carries_is_on_the_page():
    size = {"nodes": 9, "metric": 1.5, "faithfulness": 0.75, "without": 0.1, "completeness": None}
    found = {"clean": 2.0, "closed": 0.0, "reference": "mean", "errors": "keep", "sizes": [size]}
    circuit = replace(feature_circuit_cases.known(), evaluation=found)
    (table,) = (
        one
        for one in view.page_data(circuit)["tables"]
        if one["title"] == "What the circuit carries"
    )
    assert table["rows"] == [("9", "1.50", "0.750", "0.100", "\u2013")]


def test_a_circuit_writes_its_page_and_shows_itself_in_a_notebook(tmp_path):
    circuit = feature_circuit_cases.known()
    path = circuit.page(tmp_path / "page.html")
    assert embedded(path.read_text(encoding="utf-8"))["nodes"]["name"] == [
        node.name for node in circuit.nodes
    ]
    assert circuit.top(1)[0].name in circuit._repr_html_().split("<details>")[0]
