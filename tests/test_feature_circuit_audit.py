"""Exact edges and nodes against plain hooks; faithfulness against runs patched by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import headwater as hw
from coded_cases import dictionaries, dictionary, task
from headwater.errors import DictionaryError, ModelGoneError, ResultError, UnknownOptionError
from headwater.models import Model
from headwater.sites import Site
from shape_checks import unchecked
from tiny_tasks import model

FAMILIES = ("GPT-NeoX", "Llama")  # parallel and serial blocks


@contextlib.contextmanager
def outputs(module: nn.Module, change) -> Iterator[None]:
    """Replace what a module returns."""

    def hook(_, args, output):
        whole = output[0] if isinstance(output, tuple) else output
        new = change(whole)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def modules(found: Model) -> dict[str, nn.Module]:
    """The modules whose outputs are the sites, by path of the site."""
    family = type(found.module).__name__
    blocks = found.module.gpt_neox.layers if "NeoX" in family else found.module.model.layers
    named = {}
    for number, block in enumerate(blocks):
        attention = block.attention if "NeoX" in family else block.self_attn
        named |= {
            f"layers.{number}.attn.out": attention,
            f"layers.{number}.mlp.out": block.mlp,
            f"layers.{number}.resid_post": block,
        }
    named["embed"] = (
        found.module.gpt_neox.embed_in if "NeoX" in family else found.module.model.embed_tokens
    )
    return named


class Twin:
    """One pair of a task, run with plain hooks on the stock module in float64."""

    def __init__(self, found: Model, pair: hw.Pair) -> None:
        self.model, self.modules = found, modules(found)
        ids = found.tokenizer([pair.clean, pair.corrupted], return_tensors="pt")["input_ids"]
        self.clean, self.corrupted = ids[:1], ids[1:]
        self.answer, self.wrong = pair.answer[0], pair.wrong[0]
        self.values = self.kept(self.clean)
        self.off = self.kept(self.corrupted)

    def run(self, ids: Tensor, changes: Mapping[str, object]) -> Tensor:
        with contextlib.ExitStack() as stack, torch.no_grad():
            for site, change in changes.items():
                stack.enter_context(outputs(self.modules[site], change))
            logits = self.model.forward(ids)[0, -1]
        return logits[self.answer] - logits[self.wrong]

    def kept(self, ids: Tensor) -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}
        self.run(
            ids,
            {site: lambda value, site=site: kept.update({site: value}) for site in self.modules},
        )
        return kept

    def metric(self, changes: Mapping[str, Tensor] | None = None) -> float:
        return float(
            self.run(self.clean, {s: lambda _, v=v: v for s, v in (changes or {}).items()})
        )


def parts(name: str, circuit: hw.FeatureCircuit, found) -> tuple[str, int | None]:
    node = circuit.node(name)
    return node.site, node.index


def closed(twin: Twin, found, site: str, index: int | None) -> Tensor:
    """A site with one of its nodes at its value in the corrupted run."""
    value, off = twin.values[site], twin.off[site]
    if site not in found:
        return off
    one = found[site]
    here, there = one.encode(value), one.encode(off)
    if index is None:
        change = (value - one.decode(here)) - (off - one.decode(there))
    else:
        change = (here - there)[..., index, None] * one.decoder[index]
    return value - change


@pytest.fixture(params=FAMILIES, scope="module")
def case(request):
    found = model(request.param)
    given = dictionaries(found)
    circuit = hw.feature_circuit(
        found, task(), given, nodes=40, edge_threshold=0.0, estimator=hw.Gradient()
    )
    return found, given, circuit, [Twin(found, pair) for pair in task()]


def test_exact_nodes_are_what_plain_hooks_find(case):
    _, given, circuit, twins = case
    audit = circuit.audit(sample=1000, of="nodes")
    assert len(audit.rows) == len(circuit.nodes)
    for row in audit.rows:
        site, index = parts(row.name, circuit, given)
        lost = [
            twin.metric() - twin.metric({site: closed(twin, given, site, index)}) for twin in twins
        ]
        # sums of a few float64 numbers of size one
        assert row.exact == pytest.approx(sum(lost) / len(lost), abs=1e-12)


def test_exact_edges_are_what_two_runs_with_plain_hooks_find(case):
    found, given, circuit, twins = case
    audit = circuit.audit(sample=30)
    checked = [row for row in audit.rows if not row.name.endswith("logits")]
    assert len({row.name.split(" -> ")[1].split(".")[0] for row in checked}) >= 3
    order = [str(site) for site in found.sites()]
    for row in checked:
        (up, i), (down, j) = (parts(name, circuit, given) for name in row.name.split(" -> "))
        lost = []
        for twin in twins:
            # all sites before the target but the source are held at their clean values
            held = {
                site: twin.values[site]
                for site in twin.modules
                if order.index(site) < order.index(down)
            }
            held[up] = closed(twin, given, up, i)
            seen: dict[str, Tensor] = {}
            twin.run(
                twin.clean,
                {
                    **{site: lambda _, v=v: v for site, v in held.items()},
                    down: lambda value, seen=seen: seen.update(value=value),
                },
            )
            value, own, one = seen["value"], twin.values[down], given[down]
            new, old = one.encode(value), one.encode(own)
            if j is None:
                change = (value - one.decode(new)) - (own - one.decode(old))
            else:
                change = (new - old)[..., j, None] * one.decoder[j]
            lost.append(twin.metric() - twin.metric({down: own + change}))
        assert row.exact == pytest.approx(sum(lost) / len(lost), abs=1e-12)


def test_an_edge_into_the_metric_is_exact_as_its_node_where_the_last_residual_is_a_site(case):
    _, given, circuit, twins = case
    audit = circuit.audit(sample=10_000)
    rows = [row for row in audit.rows if row.name.endswith("logits")]
    assert rows
    for row in rows[:5]:
        site, index = parts(row.name.split(" -> ")[0], circuit, given)
        lost = [
            twin.metric() - twin.metric({site: closed(twin, given, site, index)}) for twin in twins
        ]
        assert row.exact == pytest.approx(sum(lost) / len(lost), abs=1e-12)


def test_a_masked_edge_is_exact_where_its_target_counts():
    threshold, estimator = 0.05, hw.IntegratedGradients(steps=4)
    found = model("Llama")
    given = dictionaries(found)
    options = {"node_threshold": threshold, "edge_threshold": 0.0, "estimator": estimator}
    circuit = hw.feature_circuit(found, task(), given, mask="original", **options)
    # where a node counts: its effects at single positions of single pairs
    counts = [
        {
            (node.site, node.index, node.position)
            for node in hw.feature_circuit(
                found, hw.Task([pair]), given, aggregation="none", **options
            ).nodes
        }
        for pair in task()
    ]
    twins = [Twin(found, pair) for pair in task()]
    checked = [row for row in circuit.audit(sample=40).rows if " -> r0.f" in row.name]
    assert checked
    masked = 0
    for row in checked:
        (up, i), (down, j) = (parts(name, circuit, given) for name in row.name.split(" -> "))
        lost = []
        for twin, counted in zip(twins, counts, strict=True):
            one, own = given[down], twin.values[down]
            # r0 is the sum of what lies before it
            value = own + closed(twin, given, up, i) - twin.values[up]
            change = (one.encode(value) - one.encode(own))[..., j, None] * one.decoder[j]
            for position in range(change.shape[1]):
                if (down, j, position) not in counted:
                    masked += bool(change[:, position].any())
                    change[:, position] = 0
            lost.append(twin.metric() - twin.metric({down: own + change}))
        assert row.exact == pytest.approx(sum(lost) / len(lost), abs=1e-12)
    assert masked  # so the mask decides something


def test_the_metric_counts_everywhere_whatever_the_mask():
    found = model("Llama")
    given = dictionaries(found)
    options = {"node_threshold": 0.05, "edge_threshold": 0.0}
    circuit = hw.feature_circuit(found, task(), given, mask="original", **options)
    into = {edge.source: edge.weight for edge in circuit.into("logits")}
    assert any(circuit.node(name).total != pytest.approx(into[name], rel=1e-3) for name in into)
    for name, weight in into.items():
        assert weight == pytest.approx(circuit.node(name).effect, abs=1e-12)
    exact = {row.name: row.exact for row in circuit.audit(sample=1000, of="nodes").rows}
    rows = [row for row in circuit.audit(sample=1000).rows if row.name.endswith(" -> logits")]
    assert len(rows) == len(into)
    for row in rows:
        assert row.exact == pytest.approx(exact[row.name.split(" ")[0]], abs=1e-12)
    # and so it is where the last residual is no node
    some = {site: one for site, one in given.items() if str(site) != "layers.1.resid_post"}
    pair = [
        hw.feature_circuit(found, task(), hw.Dictionaries(some), mask=mask, **options)
        for mask in ("aggregate", "original")
    ]
    weights, masked = ({one.source: one.weight for one in c.into("logits")} for c in pair)
    both = weights.keys() & masked.keys()
    assert len(both) > 5
    for name in both:
        assert masked[name] == pytest.approx(weights[name], abs=1e-12)


def test_a_transcoder_from_before_a_norms_weight_is_fitted_again_when_a_circuit_is_read(tmp_path):
    found = model("GPT-2")
    width = found.anatomy().d_model
    one = replace(dictionary(width, 12, 0), transcoder=True)
    hook, hook_out = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
    hw.write_dictionary(one, tmp_path / "one", hook=hook, hook_out=hook_out)
    given = hw.load_dictionaries(found, tmp_path / "one")
    circuit = hw.feature_circuit(found, task(), given, nodes=8, edge_threshold=0)
    circuit.save(tmp_path / "fc")
    read = hw.FeatureCircuit.load(tmp_path / "fc")
    for of in ("nodes", "edges"):
        rows, again = circuit.audit(50, of=of).rows, read.audit(50, of=of, model=found).rows
        assert [row.exact for row in again] == pytest.approx([row.exact for row in rows], abs=1e-9)
        assert any(row.exact for row in rows)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda c: c.audit(sample=2.5), "sample=2.5 is no whole number from 1 on"),
        (lambda c: c.audit(batch_size=0), "batch_size=0 is no whole number from 1 on"),
        (lambda c: c.evaluate(batch_size=0), "batch_size=0 is no whole number from 1 on"),
        (lambda c: c.evaluate(sizes=[2.5]), "sizes=[2.5]: the circuit has 1 to 3 nodes here"),
        (lambda c: c.evaluate(sizes=5), "sizes=5 is one number.\nWrite sizes=[5]"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(call, said):
    found = model("Llama")
    circuit = hw.feature_circuit(found, task(), dictionaries(found), nodes=3)
    with unchecked(), pytest.raises(UnknownOptionError) as refused:
        call(circuit)
    assert said in str(refused.value)


def test_positions_are_intervened_on_one_by_one():
    found = model("Llama")
    given = dictionaries(found)
    circuit = hw.feature_circuit(
        found, task(), given, nodes=40, edge_threshold=0.0, aggregation="none"
    )
    twins = [Twin(found, pair) for pair in task()]
    for row in circuit.audit(sample=40, of="nodes").rows:
        node = circuit.node(row.name)
        lost = []
        for twin in twins:
            value = twin.values[node.site].clone()
            at = node.position
            value[:, at] = closed(twin, given, node.site, node.index)[:, at]
            lost.append(twin.metric() - twin.metric({node.site: value}))
        assert row.exact == pytest.approx(sum(lost) / len(lost), abs=1e-12)


def test_a_faithful_circuit_is_the_run_with_all_other_nodes_patched_by_hand(case):
    _, given, circuit, twins = case
    evaluation = circuit.evaluate(sizes=[10, len(circuit.nodes)])
    for size in evaluation.sizes:
        kept = {(node.site, node.index) for node in circuit.top(size.nodes)}
        values = [_patched(twin, given, kept) for twin in twins]
        assert size.metric == pytest.approx(sum(values) / len(values), abs=1e-12)
        whole = {
            (site, index)
            for site in twins[0].modules
            for index in (*range(given[site].features if site in given else 0), None)
        }
        values = [_patched(twin, given, whole - kept) for twin in twins]
        assert size.without == pytest.approx(sum(values) / len(values), abs=1e-12)
    closed_all = [_patched(twin, given, set()) for twin in twins]
    assert evaluation.closed == pytest.approx(sum(closed_all) / 3, abs=1e-12)
    clean = sum(twin.metric() for twin in twins) / 3
    assert evaluation.faithfulness == pytest.approx(
        (evaluation.sizes[-1].metric - evaluation.closed) / (clean - evaluation.closed), abs=1e-9
    )


def _patched(twin: Twin, given, kept: set[tuple[str, int | None]]) -> float:
    """The metric with every node but the kept ones at its value in the corrupted run."""

    def change(site: str):
        def new(value: Tensor) -> Tensor:
            off = twin.off[site]
            if site not in given:
                return value if (site, None) in kept else off
            one = given[site]
            here, there = one.encode(value), one.encode(off)
            error = value - one.decode(here)
            if (site, None) not in kept:
                error = off - one.decode(there)
            for index in range(one.features):
                if (site, index) not in kept:
                    here[..., index] = there[..., index]
            return one.decode(here) + error

        return new

    return float(twin.run(twin.clean, {site: change(site) for site in twin.modules}))


@pytest.mark.parametrize("errors", ["keep", "remove"])
def test_errors_stay_or_go_whatever_the_circuit_holds(case, errors):
    _, given, circuit, twins = case
    evaluation = circuit.evaluate(sizes=[20], errors=errors)
    kept = {(node.site, node.index) for node in circuit.top(20)}
    names = {(site, None) for site in twins[0].modules if site in given}
    kept = kept | names if errors == "keep" else kept - names
    values = [_patched(twin, given, kept) for twin in twins]
    assert evaluation.sizes[0].metric == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_an_audit_says_what_rounding_does_and_what_it_cost(case):
    *_, circuit, _ = case
    audit = circuit.audit(sample=8, of="nodes")
    assert "rounding moves the metric by" in audit.cost
    assert circuit.audits["nodes"]["rows"][0]["name"] == audit.rows[0].name
    assert " nodes checked exactly" in repr(circuit)


def test_a_circuit_read_from_a_folder_wants_its_model_and_its_dictionaries(case, tmp_path):
    found, given, circuit, _ = case
    circuit.save(tmp_path / "run")
    read = hw.FeatureCircuit.load(tmp_path / "run")
    with pytest.raises(ModelGoneError, match="Pass it: model=model, as in"):
        read.audit()
    with pytest.raises(DictionaryError, match="made in memory"):
        read.audit(model=found)
    with pytest.raises(ResultError, match="differs from it in"):
        read.audit(model=model("GPT-2"), dictionaries=given)
    again = read.audit(20, model=found, dictionaries=given)
    assert [row.exact for row in again.rows] == [row.exact for row in circuit.audit(20).rows]


def test_another_set_of_dictionaries_is_refused_by_site(case):
    found, _, circuit, _ = case
    other = dictionaries(found, features=9)
    with pytest.raises(DictionaryError, match=r"'layers\.0\.attn\.out' is another"):
        circuit.audit(dictionaries=other)
    some = dictionaries(found, names=("mlp.out",))
    with pytest.raises(DictionaryError, match="Give those the circuit was found with"):
        circuit.evaluate(dictionaries=some)


def test_what_cannot_be_audited_or_evaluated_is_refused_in_words(case):
    *_, circuit, _ = case
    with unchecked(), pytest.raises(UnknownOptionError, match="of='heads' is unknown"):
        circuit.audit(of="heads")
    with pytest.raises(UnknownOptionError, match=r"sizes=\[0\]: the circuit has 1 to 40 nodes"):
        circuit.evaluate(sizes=[0])
    with unchecked(), pytest.raises(UnknownOptionError, match="errors='drop' is unknown"):
        circuit.evaluate(errors="drop")


def test_every_site_of_a_twin_is_a_node_site_of_the_circuit(case):
    *_, circuit, twins = case
    assert {Site.parse(site.site) for site in circuit.sites} == {
        Site.parse(site) for site in twins[0].modules
    }
