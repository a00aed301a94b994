"""Circuits of features as their user meets them: options, results, folders, refusals."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import headwater as hw
from coded_cases import dictionaries, dictionary, task
from headwater.cli.app import app
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import (
    DictionaryError,
    GateError,
    RunFolderError,
    StationaryMetricError,
    UnalignedPromptsError,
    UnavailableSiteError,
    UnfitReferenceError,
    UnknownComponentError,
    UnknownOptionError,
)
from headwater.sites import Site
from shape_checks import unchecked
from tiny_tasks import model, pair

FAMILY = "Llama"


def found(**options) -> hw.FeatureCircuit:
    given = {"nodes": 30, "edge_threshold": 0.0, "estimator": hw.Gradient(), **options}
    if "node_threshold" in options:
        del given["nodes"]
    return hw.feature_circuit(model(FAMILY), task(), dictionaries(model(FAMILY)), **given)


@pytest.fixture(scope="module")
def circuit() -> hw.FeatureCircuit:
    return found()


# --- effects and choices ---------------------------------------------------------------------


def test_node_effects_are_those_of_attribute_with_the_same_estimator(circuit):
    for estimator in (hw.Gradient(), hw.IntegratedGradients(steps=6)):
        scores = hw.attribute(
            model(FAMILY), task(), hw.features(dictionaries(model(FAMILY))), estimator
        )
        by_name = dict(zip(scores.names, scores.mean().tolist(), strict=True))
        for node in found(estimator=estimator).nodes:
            if node.kind != "site":
                # the same slopes, contracted in another order
                assert node.effect == pytest.approx(by_name[node.name], abs=1e-12)


def test_any_other_estimator_gives_node_effects_too():
    exact = found(estimator=hw.Exact(), nodes=12)
    audit = exact.audit(100, of="nodes")
    for row in audit.rows:
        assert row.estimate == pytest.approx(row.exact, abs=1e-12)


def test_the_strongest_nodes_are_kept_or_those_above_a_threshold(circuit):
    every = found(node_threshold=0.0)
    sizes = sorted((abs(node.effect) for node in every.nodes), reverse=True)
    assert sorted((abs(node.effect) for node in circuit.nodes), reverse=True) == sizes[:30]
    some = found(node_threshold=sizes[10])
    assert len(some.nodes) == 10


def test_the_original_mask_keeps_what_is_strong_on_any_pair_and_position():
    threshold = 0.05
    circuit = found(node_threshold=threshold, mask="original")
    single = [
        hw.feature_circuit(
            model(FAMILY),
            hw.Task([one]),
            dictionaries(model(FAMILY)),
            node_threshold=threshold,
            estimator=hw.Gradient(),
            aggregation="none",
        )
        for one in task()
    ]
    strong = {node.name.partition("@")[0] for one in single for node in one.nodes}
    assert {node.name for node in circuit.nodes} == strong


def test_a_masked_circuit_counts_each_node_only_where_it_is_strong():
    threshold = 0.05
    circuit = found(node_threshold=threshold, mask="original", slope="gradient")
    single = {
        (number, node.name): node.effect
        for number, one in enumerate(task())
        for node in hw.feature_circuit(
            model(FAMILY),
            hw.Task([one]),
            dictionaries(model(FAMILY)),
            node_threshold=threshold,
            estimator=hw.Gradient(),
            aggregation="none",
        ).nodes
    }
    for node in circuit.nodes:
        if node.incoming is None:
            continue
        counted = sum(
            effect for (_, name), effect in single.items() if name.partition("@")[0] == node.name
        )
        total = node.incoming + node.below + node.unexplained
        assert total == pytest.approx(counted / len(task()), abs=1e-12)
    assert "are of those pairs and positions where a node's effect exceeds" in repr(circuit)
    assert "another estimate" not in repr(circuit)


def test_edges_below_the_threshold_are_counted_and_the_rest_are_the_same(circuit):
    threshold = sorted(abs(edge.weight) for edge in circuit.edges)[len(circuit.edges) // 2]
    some = found(edge_threshold=threshold)
    kept = [edge for edge in circuit.edges if abs(edge.weight) > threshold]
    assert some.edges == tuple(kept)
    left = [abs(edge.weight) for edge in circuit.edges if abs(edge.weight) <= threshold]
    assert some.graph.dropped == len(left)
    assert some.graph.dropped_size == pytest.approx(sum(left), abs=1e-12)
    assert "below the threshold" in repr(some)


def test_numbers_do_not_depend_on_batches(monkeypatch):
    whole = found()
    small = found(batch_size=2)
    monkeypatch.setattr("headwater.feature_circuits.runs.CODED_BYTES", 1)
    monkeypatch.setattr("headwater.feature_circuits.runs.HELD", 0)
    monkeypatch.setattr("headwater.feature_circuits.edges.ROWS_BYTES", 1)
    single = found()
    for other in (small, single):
        assert [node.name for node in other.nodes] == [node.name for node in whole.nodes]
        for one, same in zip(whole.nodes, other.nodes, strict=True):
            assert same.effect == pytest.approx(one.effect, abs=1e-12)
            assert same.se == pytest.approx(one.se, abs=1e-12)
        weights = {(edge.source, edge.target): edge.weight for edge in other.edges}
        for edge in whole.edges:
            assert weights.get((edge.source, edge.target), 0) == pytest.approx(
                edge.weight, abs=1e-12
            )


def test_standard_errors_are_those_over_pairs(circuit):
    values = {node.name: [] for node in circuit.nodes}
    for one in task():
        single = hw.feature_circuit(
            model(FAMILY),
            hw.Task([one]),
            dictionaries(model(FAMILY)),
            node_threshold=0.0,
            estimator=hw.Gradient(),
        )
        effects = {node.name: node.effect for node in single.nodes}
        assert all(node.se is None for node in single.nodes)
        for name in values:
            values[name].append(effects.get(name, 0.0))
    for node in circuit.nodes:
        expected = torch.tensor(values[node.name], dtype=torch.float64)
        assert node.effect == pytest.approx(float(expected.mean()), abs=1e-12)
        assert node.se == pytest.approx(float(expected.std() / 3**0.5), abs=1e-12)


def test_padding_changes_no_number():
    prompts = [pair(6, seed=1, changed=(1, 3)), pair(9, seed=2, changed=(1, 3))]
    options = {"node_threshold": 0.0, "edge_threshold": 0.0, "estimator": hw.Gradient()}
    given = dictionaries(model(FAMILY))
    both = hw.feature_circuit(model(FAMILY), hw.Task(prompts), given, **options)
    alone = [hw.feature_circuit(model(FAMILY), hw.Task([one]), given, **options) for one in prompts]
    for node in both.nodes:
        parts = [{n.name: n.effect for n in one.nodes}.get(node.name, 0.0) for one in alone]
        assert node.effect == pytest.approx(sum(parts) / 2, abs=1e-12)
    weights = [{(e.source, e.target): e.weight for e in one.edges} for one in alone]
    for edge in both.edges:
        parts = [one.get((edge.source, edge.target), 0.0) for one in weights]
        assert edge.weight == pytest.approx(sum(parts) / 2, abs=1e-12)


@pytest.mark.parametrize(
    "reference",
    [hw.Zero(), hw.Mean(), hw.PositionalMean(), hw.Resample(draws=2), hw.Corrupted()],
    ids=lambda one: one.name,
)
def test_with_every_reference_edges_add_up_out_of_every_node(reference):
    circuit = found(node_threshold=0.0, reference=reference, slope="gradient")
    out = dict.fromkeys((node.name for node in circuit.nodes), 0.0)
    for edge in circuit.edges:
        out[edge.source] += edge.weight
    for node in circuit.nodes:
        assert out[node.name] == pytest.approx(node.effect, abs=1e-12)


def test_the_fit_of_a_dictionary_is_measured_on_the_prompts(circuit):
    given = dictionaries(model(FAMILY))
    ids = model(FAMILY).tokenizer([one.clean for one in task()], return_tensors="pt")["input_ids"]
    kept = {}
    taps = {site: (lambda value, site=site: kept.update({site: value})) for site in given}
    with torch.no_grad():
        model(FAMILY).forward(ids, taps=taps)
    for summary in circuit.sites[1:]:
        value = kept[Site.parse(summary.site)].flatten(0, 1)
        one = given[Site.parse(summary.site)]
        missed = (value - one.reconstruct(value)).square().sum()
        spread = (value - value.mean(0)).square().sum()
        assert summary.explained == pytest.approx(float(1 - missed / spread), abs=1e-12)
        active = (one.encode(value) != 0).double().sum(1).mean()
        assert summary.active_features == pytest.approx(float(active))
    assert "dictionaries explain little of the variance" in repr(circuit)


# --- the result ------------------------------------------------------------------------------


def test_nodes_and_edges_are_found_by_name(circuit):
    edge = next(edge for edge in circuit.edges if edge.target != "logits")
    assert edge in circuit.out_of(edge.source)
    assert edge in circuit.into(edge.target)
    assert all(one.target == "logits" for one in circuit.into("logits"))
    with pytest.raises(UnknownComponentError, match=r"no node 'm9\.f1' among the 30"):
        circuit.node("m9.f1")


def test_a_circuit_comes_back_from_its_folder(circuit, tmp_path):
    circuit.save(tmp_path / "run")
    again = hw.FeatureCircuit.load(tmp_path / "run")
    assert again.nodes == circuit.nodes
    assert again.sites == circuit.sites
    assert again.edges == circuit.edges
    assert repr(again) == repr(circuit)
    assert again.to_dict() == json.loads(json.dumps(circuit.to_dict()))


def test_a_folder_with_another_circuit_is_refused_before_anything_runs(tmp_path, monkeypatch):
    found(out=tmp_path / "run")
    found(out=tmp_path / "run")  # the same again
    monkeypatch.setattr(
        "headwater.feature_circuits.circuit.Runs", lambda *_, **__: pytest.fail("it ran")
    )
    with pytest.raises(RunFolderError, match="already holds another circuit"):
        found(out=tmp_path / "run", nodes=12)


def test_a_notebook_and_a_table_show_it(circuit):
    pandas = pytest.importorskip("pandas")
    table = circuit.to_frame()
    assert isinstance(table, pandas.DataFrame)
    assert list(table["name"]) == [node.name for node in circuit.nodes]
    assert circuit.nodes[0].name in circuit._repr_html_()


def test_taps_and_flags_are_as_before_whatever_happens(monkeypatch):
    one = model(FAMILY)
    before = [
        len(part._forward_hooks) + len(part._forward_pre_hooks) for part in one.module.modules()
    ]
    found()

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("headwater.feature_circuits.edges.cotangents", fail)
    with pytest.raises(KeyboardInterrupt):
        found(slope="secant", sites=None)
    after = [
        len(part._forward_hooks) + len(part._forward_pre_hooks) for part in one.module.modules()
    ]
    assert before == after


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"aggregation": "mean"},
            "aggregation='mean' is unknown.\nWrite aggregation='sum' or aggregation='none'.",
        ),
        ({"slope": "secants"}, "Closest: 'secant'."),
        ({"nodes": 0}, "nodes=0 is no number of nodes. Type nodes=50."),
        ({"nodes": 2.5}, "nodes=2.5 is no number of nodes. Type nodes=50."),
        ({"edge_threshold": -1.0}, "edge_threshold=-1.0 is no size.\nType edge_threshold=0.02."),
        ({"edge_threshold": "0.1"}, "edge_threshold='0.1' is no size."),
        ({"node_threshold": -1.0}, "node_threshold=-1.0 is no size.\nType node_threshold=0.02."),
        ({"steepest": "10"}, "steepest='10' allows no secant slope.\nType steepest=10.0"),
        (
            {"mask": "original"},
            'mask="original" compares single pairs with a threshold.\nType node_threshold=0.1.',
        ),
        (
            {"mask": "original", "node_threshold": 0.1, "estimator": hw.Exact()},
            'mask="original" needs effects at every position of every pair, which Exact() does not '
            "give.\nUse hw.Gradient() or hw.IntegratedGradients().",
        ),
        ({"sites": "embed"}, "sites='embed' is one text.\nWrite sites=['embed']."),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_what_to_write(options, message):
    with unchecked(), pytest.raises(UnknownOptionError) as refused:
        found(**options)
    assert message in str(refused.value)


def test_thresholds_that_keep_nothing_say_what_the_largest_effect_is():
    with pytest.raises(GateError) as refused:
        found(node_threshold=1e6)
    largest = max(found(nodes=1).nodes, key=lambda node: abs(node.effect))
    assert str(refused.value) == (
        f"node_threshold=1000000.0 keeps no node: the largest effect is "
        f"{abs(largest.effect):.3g}, of {largest.name}.\n"
        "Type a smaller one, or nodes=50 for the strongest."
    )


def test_a_reference_that_is_the_run_itself_is_said_to_be():
    same = hw.Task([pair(6, seed=0, changed=(5,))], metric=hw.logit_diff())
    given = Dictionaries({Site(0, "mlp.out"): dictionary(24, 8, 0)})
    with pytest.raises(GateError, match="every node's effect is exactly 0"):
        hw.feature_circuit(
            model(FAMILY),
            same,
            given,
            nodes=3,
            reference=hw.Mean(over=[same.pairs[0].clean] * 2),
            sites=[],
            estimator=_Zeroed(),
        )


class _Zeroed(hw.Estimator):
    """Finds nothing."""

    name = "zeroed"
    estimand = "each component alone, by intervention"

    def scores(self, function):
        return function.gates()[0].zero_()

    def forwards(self, families):
        return 0.0

    def to_dict(self):
        return {"name": self.name}


def test_positions_of_prompts_of_several_lengths_are_refused():
    prompts = [pair(6, seed=1, changed=(1, 3)), pair(9, seed=2, changed=(1, 3))]
    with pytest.raises(UnalignedPromptsError) as refused:
        hw.feature_circuit(
            model(FAMILY), hw.Task(prompts), dictionaries(model(FAMILY)), aggregation="none"
        )
    assert str(refused.value) == (
        'aggregation="none" tells nodes apart by position, but the prompts have lengths 6, 9: '
        "position 5 would be another word in each.\n"
        'Write aggregation="sum", or take the prompts of one length: '
        "task.by_length(model.tokenizer)[6], on the command line --length 6."
    )


def test_the_divergence_from_the_clean_run_has_no_slope_there():
    with pytest.raises(StationaryMetricError, match=r"and with Gradient\(\) the circuit takes it"):
        found(metric=hw.kl())
    integrated = hw.IntegratedGradients(steps=4)
    with pytest.raises(StationaryMetricError, match=r"and with edge_slope='clean' the circuit"):
        found(metric=hw.kl(), estimator=integrated, edge_slope="clean")
    assert found(metric=hw.kl(), estimator=hw.IntegratedGradients(steps=4)).nodes


def test_a_dictionary_of_another_width_is_refused_with_both():
    given = Dictionaries({Site(0, "mlp.out"): dictionary(20, 8, 0)})
    with pytest.raises(DictionaryError, match="20"):
        hw.feature_circuit(model(FAMILY), task(), given)


def test_a_site_that_cannot_be_a_node_is_refused():
    with pytest.raises(UnavailableSiteError, match=r"'layers\.0\.attn\.q' cannot be a node"):
        found(sites=["layers.0.attn.q"])


def test_sites_are_named_beside_those_of_the_dictionaries():
    given = Dictionaries({Site(0, "mlp.out"): dictionary(24, 8, 0)})
    for sites, labels in {
        None: ["input", "m0"],
        (): ["m0"],
        ("layers.1.attn.out", "embed"): ["input", "m0", "a1"],
    }.items():
        circuit = hw.feature_circuit(model(FAMILY), task(), given, nodes=3, sites=sites)
        assert [site.label for site in circuit.sites] == labels


def test_a_reference_of_another_kind_is_refused(circuit):
    with unchecked(), pytest.raises(UnfitReferenceError, match="reference: expected a Reference"):
        circuit.evaluate(reference="mean")


def test_circuits_are_told_apart_by_which_they_are(circuit):
    assert circuit == circuit
    assert circuit != found()


@pytest.mark.parametrize("write", ["page", "export"])
def test_a_folder_is_no_file_to_write(circuit, tmp_path, write):
    with pytest.raises(RunFolderError) as refused:
        getattr(circuit, write)(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path} is a folder, not a file.\nName a file in it: {tmp_path / 'NAME'}."
    )
    assert not list(tmp_path.iterdir())


# --- what is said of it ----------------------------------------------------------------------


def test_sites_between_others_of_their_kind_that_are_no_nodes_are_named():
    tiny, prompts = hw.load("tiny"), hw.task("subject-verb")[:2]
    given = hw.load_dictionaries(tiny)
    how = {"nodes": 3, "estimator": hw.Gradient()}
    assert "no node, though" not in repr(hw.feature_circuit(tiny, prompts, given, **how))
    some = {site: one for site, one in given.items() if str(site)[-3:] == "out"}
    del some[Site(1, "mlp.out")], some[Site(2, "mlp.out")]  # of the others no layer is missing
    circuit = hw.feature_circuit(tiny, prompts, Dictionaries(some), **how)
    assert "m1, m2 are no node, though sites of their kind before and behind" in repr(circuit)


def test_positions_multiply_the_nodes_that_there_could_be():
    one = sum(site.features + 1 for site in found(nodes=3).sites)
    assert f" of {one:,}; " in repr(found(nodes=3))
    length = len(task().pairs[0].clean.split())
    assert f" of {one * length:,}; " in repr(found(nodes=3, aggregation="none"))


def test_a_mask_is_named_as_the_reason_only_where_there_is_one():
    joint = found(estimator=hw.IntegratedGradients(path="component", steps=2))
    assert "these come from another estimate" in repr(joint)
    assert 'mask="original"' not in repr(joint)
    masked = found(node_threshold=0.05, mask="original", edge_slope="clean",
                   estimator=hw.IntegratedGradients(steps=2))  # fmt: skip
    assert "are first-order effects in the clean run, of those pairs and positions" in repr(masked)


def test_zero_is_said_to_leave_decoder_biases():
    zero = found(reference=hw.Zero())
    assert "at zero a site is its decoder's bias" in repr(zero)
    assert "decoder's bias" not in repr(found())


def test_the_cost_has_a_backward_for_each_distinct_feature_that_edges_are_pulled_from():
    given = Dictionaries({Site(1, "mlp.out"): dictionary(24, 12, 0)})
    rows, backwards = [], []
    for nodes in (3, 6, 11):
        circuit = hw.feature_circuit(
            model(FAMILY), task(), given, nodes=nodes, estimator=hw.Gradient()
        )
        rows.append(sum(node.site == "layers.1.mlp.out" for node in circuit.nodes))
        backwards.append(circuit.cost.backwards)
    first, second, third = rows
    assert first < second < third
    one = (backwards[1] - backwards[0]) / (second - first)
    assert 0 < one <= len(task())  # no more than a pass over the whole of every prompt
    assert backwards[2] - backwards[1] == pytest.approx(one * (third - second))


def test_one_of_a_thing_has_no_plural():
    given = Dictionaries({Site(0, "mlp.out"): dictionary(24, 8, 0)})
    circuit = hw.feature_circuit(model(FAMILY), task(), given, nodes=1, edge_threshold=0)
    assert "1 node (" in repr(circuit)
    assert "1 edge, " in repr(circuit)


def test_trained_gates_are_said_to_be_no_effects():
    circuit = found(estimator=hw.TrainedMask(steps=3), nodes=10_000)
    assert "the column effect holds no effects in units of the metric: which" in repr(circuit)
    assert "add up to the exact change" not in repr(circuit)
    unchanged = [node for node in circuit.nodes if node.total == 0]
    assert unchanged
    assert not any(node.orphan for node in unchanged)
    circuit.audit(4, of="nodes")
    assert "judge the kept set by its faithfulness, circuit.evaluate()." in repr(circuit)


# --- the command line ------------------------------------------------------------------------


def test_one_command_finds_saves_and_checks_a_circuit(tmp_path):
    said = CliRunner().invoke(
        app,
        [
            "features", "--model", "tiny", "--task", "subject-verb", "--pairs", "4",
            "--dictionaries", "embedded", "--node-threshold", "0.3", "--edge-threshold", "0.05",
            "--estimator", "gradient", "--audit", "10", "--evaluate", "--out", str(tmp_path / "fc"),
        ],
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    assert "Feature circuit of agreement on tiny" in said.stdout
    assert "edges checked exactly" in said.stdout
    assert "faithfulness" in said.stdout
    read = hw.FeatureCircuit.load(tmp_path / "fc")
    assert {"edges", "nodes"} == set(read.audits)
    page = (tmp_path / "fc" / "page.html").read_text()
    assert read.nodes[0].name in page


def test_json_holds_every_node_and_edge():
    said = CliRunner().invoke(
        app,
        [
            "features", "-m", "tiny", "-t", "subject-verb", "--pairs", "2", "--nodes", "8",
            "-e", "gradient", "--json",
        ],
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    data = json.loads(said.stdout)
    assert len(data["nodes"]) == 8
    names = {node["name"] for node in data["nodes"]} | {"logits"}
    assert all({edge["source"], edge["target"]} <= names for edge in data["edges"])


QUICK = ("features", "-m", "tiny", "--pairs", "2", "--nodes", "6", "-e", "gradient")


def test_a_saved_circuit_is_audited_in_its_folder(tmp_path):
    out = tmp_path / "fc"
    said = CliRunner().invoke(app, [*QUICK, "-t", "subject-verb", "--out", str(out)])
    assert said.exit_code == 0, said.output
    assert not hw.FeatureCircuit.load(out).audits
    said = CliRunner().invoke(app, ["audit", str(out), "--sample", "5"])
    assert said.exit_code == 0, said.output
    assert "5 of 6 nodes checked exactly" in said.stdout
    checked = hw.FeatureCircuit.load(out)
    assert set(checked.audits) == {"edges", "nodes"}
    assert "Audit of the nodes" in (out / "page.html").read_text()
    again = out.rename(tmp_path / "moved")
    report = again / "circuit.json"
    data = json.loads(report.read_text())
    data["provenance"]["model"]["name"] = "./gone"
    report.write_text(json.dumps(data))
    said = CliRunner().invoke(app, ["audit", str(again)])
    assert "say where it is now: --model FOLDER" in str(said.exception)
    said = CliRunner().invoke(app, ["audit", str(again), "--sample", "2", "--model", "tiny"])
    assert said.exit_code == 0, said.output
    said = CliRunner().invoke(app, ["audit", str(again), "--diagnose"])
    assert "--diagnose, --curves and --dtype are of scores" in str(said.exception)


def test_nodes_are_audited_where_no_edge_is_kept(tmp_path):
    words = [*QUICK, "-t", "subject-verb", "--edge-threshold", "1000", "--audit", "3", "--evaluate"]
    said = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "fc")])
    assert said.exit_code == 0, said.output
    assert "no edge exceeds the threshold: only nodes are checked." in said.stderr
    assert set(hw.FeatureCircuit.load(tmp_path / "fc").audits) == {"nodes"}
    assert "faithfulness" in said.stdout


def test_no_site_beside_the_dictionaries_is_typed_as_nothing():
    said = CliRunner().invoke(app, [*QUICK, "-t", "subject-verb", "--sites", "", "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["provenance"]["sites"] == []


def test_pairs_of_one_length_are_chosen_by_it(tmp_path):
    task = hw.task("ioi", 2)
    prompt = task.pairs[0].to_dict()
    longer = {
        key: f"and {prompt[key]}" if key in ("clean", "corrupted") else prompt[key]
        for key in prompt
    }
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (prompt, longer)))
    tokens = len(hw.load("tiny").tokenizer(prompt["clean"])["input_ids"])
    words = [*QUICK, "-t", str(path), "--aggregation", "none"]
    said = CliRunner().invoke(app, words)
    assert isinstance(said.exception, UnalignedPromptsError)
    said = CliRunner().invoke(app, [*words, "--length", "99"])
    assert "no pair of 'pairs' has 99 tokens" in str(said.exception)
    said = CliRunner().invoke(app, [*words, "--length", str(tokens), "--json"])
    assert said.exit_code == 0, said.output
    assert len(json.loads(said.stdout)["provenance"]["task"]["pairs"]) == 1


def test_annotations_of_no_node_are_counted(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text(
        '{"name": "m0.f93", "annotation": "subject"}\n{"name": "m9.f1", "annotation": "other"}\n'
    )
    said = CliRunner().invoke(app, [*QUICK, "-t", "subject-verb", "--annotations", str(path)])
    assert said.exit_code == 0, said.output
    assert "annotations are of no node of this circuit" in said.stderr
