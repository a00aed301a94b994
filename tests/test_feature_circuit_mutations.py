"""Every identity that guards against a known mistake fails when that mistake is made.

The mistakes are those of `headwater.feature_circuits.mistakes`, put in the place of the engine's
own steps; what must fail is what `test_feature_circuit_identities` asserts.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import tiny_tasks
from circuit_cases import FAMILIES, SERIAL, dictionaries, found, pairs, twin
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import DictionaryError, UnknownOptionError
from headwater.feature_circuits import mistakes
from headwater.feature_circuits.edges import Parent
from headwater.feature_circuits.mistakes import MistakenSubtraction, residual_edges
from headwater.feature_circuits.subtracted import Subtraction
from headwater.sites import Site
from shape_checks import unchecked

FIRST, LAST = Site(0, "resid_post"), Site(1, "resid_post")
TOLERANCE = 1e-9


def off(one: Tensor, other: Tensor) -> float:
    """By how much two tensors differ, relative to the second."""
    return float((one - other).norm() / other.norm())


def subtraction_is_not_holding(family: str) -> float:
    """I2: how far edges between residuals by subtraction are from those by holding."""
    sources = dictionaries(family)
    held, subtracted = (
        found(family, sources, pairs(), aggregation="sum", subtract=subtract).edges.blocks
        for subtract in (False, True)
    )
    return max(
        off(subtracted[ends].weights, block.weights)
        for ends, block in held.items()
        if ends[1].name == "resid_post"
    )


def edges_out_do_not_add_up(family: str) -> float:
    """I1: how far edges out of nodes are from first-order effects by plain hooks."""
    sources = dictionaries(family)
    slow, fast = twin(family, sources), found(family, sources, pairs())
    each = [slow.effects(pair) for pair in pairs().pairs]
    return max(
        off(fast.out_of(site), (sum(one[site] for one in each) / len(each)).flatten())
        for site in fast.nodes.sites[:-1]
    )


def numbers(sources: Dictionaries, site: Site, names: list[str]) -> list[int]:
    """Return where nodes stand among all of their site."""
    last = sources[site].features
    return [last if name.endswith("error") else int(name.split("f")[1]) for name in names]


def errors_are_silent() -> bool:
    """Whether some block has no edge out of an error."""
    fast = found("Llama", dictionaries("Llama"), pairs(), aggregation="sum")
    return any(not block.weights[:, -1].any() for block in fast.edges.blocks.values())


def mistaken(monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., Tensor]) -> None:
    """Have every gradient by a mediator spoiled; `spoil` gets it, the mediator, and its change."""
    right = Subtraction.gradients

    def gradients(self: Subtraction, mediator: Site, at: object) -> Tensor:
        state = self.states[mediator]
        change = torch.cat([state.change, state.error_change], -1)
        return spoil(right(self, mediator, at), change, state.node.features)

    monkeypatch.setattr(Subtraction, "gradients", gradients)


# --- as they are, they hold ----------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_identities_hold_without_mistakes(family):
    assert subtraction_is_not_holding(family) < TOLERANCE
    assert edges_out_do_not_add_up(family) < TOLERANCE
    assert not errors_are_silent()


# --- the mistakes of the first published code -----------------------------------------


@pytest.mark.parametrize("family", ["Llama", "GPT-NeoX"])
def test_i2_fails_when_gradients_are_multiplied_by_the_change_and_contracted(monkeypatch, family):
    def spoil(right, change, features):
        numbers = mistakes.contracted(right, change, features)
        return torch.nn.functional.pad(numbers, (0, right.shape[-1] - numbers.shape[-1]))

    mistaken(monkeypatch, spoil)
    assert subtraction_is_not_holding(family) > 0.1


@pytest.mark.parametrize("family", ["Llama", "GPT-NeoX"])
def test_i2_fails_when_numbers_are_read_with_another_stride(monkeypatch, family):
    def spoil(right, change, features):
        return mistakes.misplaced(right[..., : features + 1], right.shape[-1])

    mistaken(monkeypatch, spoil)
    assert subtraction_is_not_holding(family) > 0.1


@pytest.mark.parametrize("family", ["Llama", "GPT-NeoX"])
def test_i2_fails_when_one_node_of_the_mediator_stands_for_all(monkeypatch, family):
    mistaken(
        monkeypatch,
        lambda right, change, features: mistakes.one_entry(right, features, range(len(right))),
    )
    assert subtraction_is_not_holding(family) > 0.1


@pytest.mark.parametrize("family", SERIAL)
def test_i2_fails_in_serial_blocks_when_what_passes_both_is_taken_twice(monkeypatch, family):
    monkeypatch.setattr(Subtraction, "twice", lambda self, at: 0.0)
    assert subtraction_is_not_holding(family) > 0.1


def test_i2_holds_in_parallel_blocks_without_that_term(monkeypatch):
    monkeypatch.setattr(Subtraction, "twice", lambda self, at: 0.0)
    assert subtraction_is_not_holding("GPT-NeoX") < TOLERANCE


def test_i1_fails_when_nothing_is_held(monkeypatch):
    monkeypatch.setattr(Subtraction, "indirect", lambda self, at: 0.0)
    assert subtraction_is_not_holding("Llama") > 0.1
    sources = dictionaries("Llama")
    fast = found("Llama", sources, pairs(), subtract=True)
    assert off(fast.out_of(FIRST), fast.own(FIRST)) > 0.1


def test_i1_fails_when_the_gradients_of_errors_are_lost(monkeypatch):
    def losing(right):
        def lost(self, *given):
            weights, total = right(self, *given)
            weights[..., -1] *= not self.kept.rows.error
            return weights, total

        return lost

    for method in ("projected", "multiplied"):
        monkeypatch.setattr(Parent, method, losing(getattr(Parent, method)))
    assert errors_are_silent()
    assert edges_out_do_not_add_up("Llama") > 0.1


# --- restated, for all to look at -----------------------------------------------------


@pytest.mark.parametrize("family", ["Llama", "GPT-NeoX"])
def test_restated_without_mistakes_edges_are_those_of_a_circuit(family):
    sources = dictionaries(family)
    right = residual_edges(tiny_tasks.model(family), pairs(), sources, 1)
    block = found(family, sources, pairs(), aggregation="sum").edges.blocks[FIRST, LAST].weights
    assert right.rows[-1] == "r1.error"
    assert right.columns[-1] == "r0.error"
    rows, columns = numbers(sources, LAST, right.rows), numbers(sources, FIRST, right.columns)
    assert off(right.edges, block[rows][:, columns]) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_with_all_three_mistakes_edges_hold_everything_that_flows(family):
    sources = dictionaries(family)
    right = residual_edges(tiny_tasks.model(family), pairs(4), sources, 1)
    three = residual_edges(
        tiny_tasks.model(family), pairs(4), sources, 1, ("contracted", "misplaced", "one entry")
    )
    assert three.picks > 50
    assert three.nonzero < 0.1 * three.picks  # none at all where dictionaries are sparse and wide
    assert off(three.edges, three.total) < 0.2
    assert off(three.edges, right.edges) > 0.2


@pytest.mark.parametrize("mistake", ["contracted", "misplaced", "one entry"])
def test_each_mistake_alone_is_enough_to_be_wrong(mistake):
    model, sources = tiny_tasks.model("GPT-NeoX"), dictionaries("GPT-NeoX")
    right = residual_edges(model, pairs(), sources, 1)
    assert residual_edges(model, pairs(), sources, 1, (mistake,)).error_of(right) > 0.1


def test_errors_lost_leave_a_column_of_zeros():
    model, sources = tiny_tasks.model("GPT-NeoX"), dictionaries("GPT-NeoX")
    lost = residual_edges(model, pairs(), sources, 1, ("errors lost",))
    assert not lost.edges[:, -1].any()
    assert residual_edges(model, pairs(), sources, 1).edges[:, -1].any()


def test_numbers_read_with_another_stride_land_in_other_positions():
    numbers = torch.arange(1.0, 9.0).view(1, 1, 2, 4)  # three features and an error, twice
    read = mistakes.misplaced(numbers, 5)
    assert read.tolist() == [[[[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]]]]


def test_of_one_entry_an_error_keeps_its_whole_width():
    gradients = torch.ones(2, 1, 2, 5)  # two features, an error of width three, two positions
    kept = mistakes.one_entry(gradients, 2, [1, 5])
    assert kept[0].flatten().tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert kept[1].flatten().tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]


def test_each_row_looks_for_its_own_number_at_every_position():
    model, sources = tiny_tasks.model("GPT-NeoX"), dictionaries("GPT-NeoX")
    one = residual_edges(model, pairs(), sources, 1, ("one entry",))
    assert 0 < one.nonzero <= one.picks
    assert issubclass(MistakenSubtraction, Subtraction)


def test_a_layer_without_dictionaries_is_refused():
    with pytest.raises(DictionaryError, match=r"no dictionary at 'layers\.7\.resid_post'"):
        residual_edges(tiny_tasks.model("Llama"), pairs(), dictionaries("Llama"), 7)


def test_a_mistake_nobody_made_is_refused():
    with unchecked(), pytest.raises(UnknownOptionError, match="There are: contracted"):
        residual_edges(tiny_tasks.model("Llama"), pairs(), dictionaries("Llama"), 1, ("swapped",))
