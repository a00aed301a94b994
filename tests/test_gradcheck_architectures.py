"""Every gradient of headwater against differences: sites, gates, estimators, on all families.

Differences tell whether a gradient is the slope of the function that headwater runs. That this
function is the model's own is told by plain hooks: the same value, the same gradient.
"""

from __future__ import annotations

import copy
import functools
import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import headwater as hw
from headwater.components import KINDS, SELECTORS, Selection, parse_component
from headwater.gates import Linearized, Move
from headwater.gradchecks.result import Check
from headwater.lenses.readout import Readout
from headwater.lenses.translators.divergence import divergence
from headwater.precision import context_for
from headwater.sites import Site
from oracles import NAMES, Float64, Names, Place, Twin
from shape_checks import unchecked
from tiny_models import BUILDERS, shared
from tiny_tasks import gated, model, pair, text

IDS = [7, 20, 33, 11, 50, 9]
"""Six tokens: a sliding window of four hides some of them."""
PROMPT, CORRUPTED = text(IDS), text([8, 20, 33, 44, 50, 9])
WORD = 17
METRIC = hw.logprob(f"w{WORD}")
DOUBLE = torch.float64

WITHOUT_FORWARD_MODE = {
    "BLOOM": "must implement the jvp function",  # its GELU is a custom autograd.Function
}
"""Families with an operation that torch cannot differentiate forward, and what torch says."""


# --- sites --------------------------------------------------------------------------------------


@functools.cache
def shapes(family: str) -> dict[Site, torch.Size]:
    """The shape of the value at every site, of all positions."""
    found, kept = model(family), {}
    taps = {
        site: functools.partial(lambda site, value: kept.update({site: value.shape[1:]}), site)
        for site in found.sites()
    }
    with torch.no_grad():
        found.forward(torch.tensor([IDS]), taps=taps, read=1)
    return kept


def shape_at(family: str, site: Site, position: int | str) -> torch.Size:
    """The shape of the value at a site and position."""
    axes, shape = site.axes.split()[1:], list(shapes(family)[site])
    if position != "all":
        del shape[axes.index("query" if "query" in axes else "pos")]
    return torch.Size(shape)


def checked(family: str, site: Site, position: int | str, dtype: torch.dtype = DOUBLE) -> Check:
    """The check of a gradient along one Gaussian direction."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(shape_at(family, site, position), generator=generator, dtype=DOUBLE)
    report = hw.gradcheck(
        model(family, dtype),
        PROMPT,
        site=str(site),
        metric=METRIC,
        position=position,  # type: ignore[arg-type]
        directions=direction[None],
        steps=16,
    )
    (check,) = report.checks
    return check


UNLIKE_LAYERS = ("Gemma 3", "gpt-oss", "GPT-Neo")
"""Families whose two layers differ: one sees a sliding window only, the other everything."""


@functools.cache
def checks(family: str) -> dict[str, Check]:
    """The sites of a family, layer 0 at all positions at once."""
    layers = (None, 0, 1) if family in UNLIKE_LAYERS else (None, 0)
    # checks of shapes take as long as the runs; below, every family is checked with them on
    with unchecked():
        return {
            str(site): checked(family, site, -1 if site.layer == 1 else "all")
            for site in model(family).sites()
            if site.layer in layers
        }


@pytest.mark.parametrize("family", BUILDERS)
def test_the_gradient_at_every_site_is_the_slope(family):
    verdicts = {site: check.verdict for site, check in checks(family).items()}
    # "flat" and "kink" would pass elsewhere: a Gaussian direction meets neither
    assert verdicts == dict.fromkeys(verdicts, "agree")


@pytest.mark.parametrize("family", BUILDERS)
def test_noise_at_every_site_is_that_of_float64(family):
    noise = {
        site: check.directions[0].difference.noise / abs(check.objective)
        for site, check in checks(family).items()
    }
    assert {site: size for site, size in noise.items() if size >= 1e-13} == {}


@pytest.mark.parametrize("family", BUILDERS)
def test_forward_mode_gives_the_same_slope_wherever_there_is_one(family):
    for site, check in checks(family).items():
        (direction,) = check.directions
        if direction.forward is None:
            assert family in WITHOUT_FORWARD_MODE, f"{site}: {check.notes}"
            assert WITHOUT_FORWARD_MODE[family] in check.notes[0], site
        else:
            # both are exact but for the rounding of some hundred additions
            size = float(check.gradient.abs().sum())
            assert direction.forward == pytest.approx(direction.gradient, rel=0, abs=1e-12 * size)


KINDS_OF_TWINS = {
    "residual": "resid_post",
    "head": "attn.z",
    "query": "attn.q",
    "key": "attn.k",
    "value": "attn.v",
    "attention": "attn.out",
    "mlp": "mlp.out",
    "neuron": "mlp.post",
    "mixer": "mixer.out",
    "token": "resid_pre",
}
"""Where the twins' parts are, by headwater's names."""


def objective(logits: Tensor) -> Tensor:
    return logits[0, -1].log_softmax(-1)[WORD]


def plainly(twin: Twin, place: Place) -> tuple[Tensor, Tensor]:
    """The stock model's metric and its gradient at a place: one hook, one backward pass."""
    leaves: list[Tensor] = []

    def cut(value: Tensor) -> Tensor:
        leaves.append(value.detach().requires_grad_())
        return leaves[0]

    ids = torch.tensor([IDS])
    with Float64(), twin._changed(place, cut, ids.shape):
        value = objective(twin.module(ids, use_cache=False).logits)
    (gradient,) = torch.autograd.grad(value, leaves[0])
    return value.detach(), gradient[0]


@pytest.mark.parametrize("family", BUILDERS)
def test_value_and_gradient_are_those_of_the_stock_model(family):
    twin = Twin(family)
    for kind in twin.kinds:
        check = checks(family)[f"layers.0.{KINDS_OF_TWINS[kind]}"]
        value, gradient = plainly(twin, (kind, 0))
        # rounding of two float64 models that add in another order
        assert check.objective == pytest.approx(float(value), rel=1e-12), kind
        expected = gradient.reshape(check.gradient.shape)
        size = float(expected.abs().max())
        assert_close(check.gradient, expected, rtol=0, atol=1e-11 * size, msg=kind)


@pytest.mark.parametrize("family", BUILDERS)
def test_a_float32_model_is_checked_in_float64_from_its_own_residual_on(family):
    check = checked(family, Site(1, "resid_pre"), "all", torch.float32)
    residuals: list[Tensor] = []
    first = f"{NAMES.get(family, Names()).layers}.1"

    def keep(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        residuals.append(args[0] if args else kwargs["hidden_states"])

    layer = shared(family).get_submodule(first)
    with layer.register_forward_pre_hook(keep, with_kwargs=True), torch.no_grad():
        shared(family)(torch.tensor([IDS]), use_cache=False)

    def replaced(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Any:
        double = residuals[0].double()
        return ((double, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": double})

    twin = copy.deepcopy(shared(family)).double()
    layer = twin.get_submodule(first)
    with (
        layer.register_forward_pre_hook(replaced, with_kwargs=True),
        torch.no_grad(),
        context_for(twin),
    ):
        value = objective(twin(torch.tensor([IDS]), use_cache=False).logits)
    assert check.verdict == "agree"
    assert check.objective == pytest.approx(float(value), rel=1e-12)
    assert check.precision is not None
    # float32 keeps 7 digits, of which two layers of sums lose two at most
    assert check.precision.largest < 1e-4


@pytest.mark.parametrize(
    "family", ["GPT-2", "Llama", "Gemma 2", "Mixtral", "Falcon new", "GPT-NeoX", "Mamba-2"]
)
def test_a_float32_model_agrees_at_its_own_precision(family):
    found = model(family, torch.float32)
    names = [site.name for site in found.sites() if site.layer == 0]
    for name in ("resid_pre", names[-2], names[-1]):
        report = hw.gradcheck(
            found,
            PROMPT,
            site=f"layers.0.{name}",
            metric=METRIC,
            position="all",
            coordinates=0,
            dtype="native",
        )
        (check,) = report.checks
        assert check.dtype == "float32"
        assert check.verdict == "agree", f"{name}: {report}"
        # a value's rounding over the best step is about eps ** (2 / 3) = 2e-5 of the slope
        assert check["gradient"].apart < 1e-3, name


# --- gates --------------------------------------------------------------------------------------

KINDS_OF_BLOCKS = {
    "GPT-2": "learned positions, tied embeddings",
    "Llama": "grouped heads",
    "GPT-NeoX": "attention and MLP beside each other",
    "Gemma 2": "norms after the blocks, soft caps, sliding window",
    "Mixtral": "experts",
    "Falcon new": "no attention interface",
    "Mamba": "a state-space mixer",
    "Mamba-2": "heads of a state-space mixer",
}
"""Families whose components are unlike in kind, and what is special about them."""


def offered(family: str) -> list[str]:
    """The kinds of component that a family has."""
    sites = {site.name for site in model(family).sites()}
    return [rule.plural for rule in KINDS.values() if rule.site in sites]


def test_the_families_offer_every_kind_of_component():
    assert {kind for family in KINDS_OF_BLOCKS for kind in offered(family)} == {
        rule.plural for rule in KINDS.values() if rule.site
    }


@pytest.mark.parametrize(
    ("family", "corrupted"),
    [(family, CORRUPTED) for family in KINDS_OF_BLOCKS]
    + [(family, None) for family in ("GPT-2", "Llama", "Mamba", "Mamba-2")],
)
def test_the_gradient_at_the_gates_of_every_kind_is_the_slope(family, corrupted):
    for kind in offered(family):
        report = hw.gradcheck(
            model(family),
            PROMPT,
            site=SELECTORS[kind](),
            metric=hw.logit_diff(),
            answer="w5",
            wrong="w6",
            corrupted=corrupted,
            coordinates=1,
            steps=16,
        )
        assert report.verdict == "agree", f"{kind}: {report}"
        # a token that is the same in both prompts, the last layer at a token that is not read
        flat = [one.gradient for one in report.checks[0].directions if one.verdict == "flat"]
        assert flat == [0.0] * len(flat), kind


def test_one_component_is_checked_by_its_name_among_its_siblings():
    report = hw.gradcheck(model("Llama"), PROMPT, site="a1.kv1<k>", metric=METRIC)
    coordinates = [one for one in report.checks[0].directions if one.kind == "coordinate"]
    assert [one.name for one in coordinates] == ["a1.kv1<k>"]
    assert report.verdict == "agree"


# --- estimators ---------------------------------------------------------------------------------

COMPONENTS = hw.heads() + hw.mlps()
SCORED = ["a0.h0", "a0.h1", "a0.h2", "a0.h3", "a1.h0", "a1.h1", "a1.h2", "a1.h3", "m0", "m1"]
LAYERS_OF_A_KIND = ([0, 1, 2, 3], [4, 5, 6, 7], [8], [9])
FAMILIES = ("GPT-2", "Llama", "Gemma 2")
PAIR = pair(6, seed=0)
SAME_TOKENS = {f"input@{position}" for position in range(1, 5)}
"""Those of the pair that are the same in both prompts, so that their gates do nothing."""


def gates(family: str, end: str = "clean", components: Selection = COMPONENTS):
    """The gated function of one prompt pair, `a0.h0` to `m1`."""
    found = gated(model(family), hw.Task([PAIR]), components, end=end)
    assert components is not COMPONENTS or list(found.names) == SCORED
    return found


def slopes(function: Callable[[float], Tensor], step: float = 1e-3) -> Tensor:
    """Slopes at 0 by differences, from a function of a small number a row.

    The error is that of the fourth power of the step and of the rounding of a value of about 1
    over the step: both about 1e-12.
    """
    ahead, behind, far_ahead, far_behind = (function(k * step) for k in (1, -1, 2, -2))
    near, far = (ahead - behind) / (2 * step), (far_ahead - far_behind) / (4 * step)
    return (4 * near - far) / 3


def gate_slopes(f: hw.GatedFunction, points: Tensor) -> Tensor:
    """`df/dm` at points [point, component] by differences, one gate at a time."""
    rows = points[:, None, :].expand(-1, len(f.names), -1)
    units = torch.eye(len(f.names), dtype=DOUBLE)

    def moved(by: float) -> Tensor:
        with torch.no_grad():
            settings = (rows + by * units).flatten(0, 1)[:, None]
            return torch.cat([f(part) for part in settings.split(512)])[:, 0]

    return slopes(moved).reshape(points.shape)


@pytest.mark.parametrize("end", ["clean", "corrupted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_the_gradient_are_the_slopes_at_the_gates(family, end):
    inside = hw.queries() + hw.keys() + hw.values() + hw.tokens()
    for components in (COMPONENTS, inside):
        f = gates(family, end, components)
        scores = hw.Gradient(at=end).scores(f)[0]
        with model(family).frozen():
            report = hw.check_gradient(f, gradient=scores, coordinates="all")
        assert report.verdict == "agree", str(report)
        flat = {one.name for one in report.checks[0].directions if one.verdict == "flat"}
        assert flat <= SAME_TOKENS


@pytest.mark.parametrize("family", FAMILIES)
def test_slopes_between_open_and_closed_gates_agree_too(family):
    f = gates(family)
    point = 0.2 + 0.7 * torch.rand(10, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    with model(family).frozen():
        report = hw.check_gradient(f, point, coordinates="all", steps=16)
    assert report.verdict == "agree", str(report)
    (slope,) = f.slopes([Move((0, 1, 2, 3), 0.4)])
    closed = torch.ones(1, 10, dtype=DOUBLE)
    closed[0, :4] = 0.6
    assert_close(slope.gradient[0], gate_slopes(f, closed)[0, :4], rtol=0, atol=1e-9)


@pytest.mark.parametrize("end", ["clean", "corrupted"])
def test_the_second_order_corrects_by_half_the_curvature(end):
    f = gates("GPT-2", end)
    step, rest = 2.5e-3, f.gates()[0, 0]

    def value(by: float) -> Tensor:
        with torch.no_grad():
            return f((rest + by * torch.eye(10, dtype=DOUBLE))[:, None])[:, 0]

    near = value(step) + value(-step) - 2 * value(0)
    far = value(2 * step) + value(-2 * step) - 2 * value(0)
    curvature = (16 * near - far) / (12 * step**2)
    sign = -1 if end == "clean" else 1
    expected = gate_slopes(f, rest[None])[0] + sign * curvature / 2
    scores = hw.SecondOrder(probes="exact", at=end).scores(f)[0]
    # sixth derivatives of some thousands times the step to the fourth over 90: a few 1e-9
    assert_close(scores, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("path", "together"),
    [
        ("family", LAYERS_OF_A_KIND),
        ("component", [[one] for one in range(10)]),
        ("joint", [list(range(10))]),
    ],
)
def test_integrated_gradients_are_integrals_of_slopes(path, together):
    f = gates("GPT-2")
    nodes, weights = np.polynomial.legendre.leggauss(40)
    shares = torch.tensor((nodes + 1) / 2)
    expected = torch.zeros(10, dtype=DOUBLE)
    for columns in together:
        points = torch.ones(len(shares), 10, dtype=DOUBLE)
        points[:, columns] -= shares[:, None]
        integral = torch.tensor(weights / 2) @ gate_slopes(f, points)
        expected[columns] = integral[columns]
    scores = hw.IntegratedGradients(path=path, steps=32).scores(f)[0]
    # 32 points have converged; what is left is the error of a difference
    assert_close(scores, expected, rtol=0, atol=1e-9)


def test_the_trapezoid_is_the_mean_of_the_slopes_at_both_ends():
    f = gates("GPT-2")
    both = gate_slopes(f, torch.stack([torch.ones(10), torch.zeros(10)]).double())
    assert_close(hw.Trapezoid().scores(f)[0], both.mean(0), rtol=0, atol=1e-9)


def part(name: str) -> tuple[Place, int]:
    """Where the twin has a head or an MLP."""
    component = parse_component(name)
    kind = "head" if component.kind == "head" else "mlp"
    return (kind, component.layer or 0), component.index or 0


class Inputs:
    """A twin between two prompts: the input of layer 0 at shares of the way, and parts nudged."""

    def __init__(self, family: str) -> None:
        found = model(family)
        (batch,) = hw.Task([PAIR]).batches(found.tokenizer, align=True)
        self.ids, self.twin = batch.clean, Twin(family)
        self.token: Place = ("token", 0)
        assert batch.corrupted is not None
        assert batch.answer is not None
        assert batch.wrong is not None
        self.answer, self.wrong = int(batch.answer), int(batch.wrong)
        places = [self.token, *{part(name)[0] for name in SCORED}]
        self.clean = self.twin.values(self.ids, places)
        self.corrupted = self.twin.values(batch.corrupted, places)

    def input(self, shares: Tensor) -> Callable[[Tensor], Tensor]:
        clean, corrupted = self.clean[self.token], self.corrupted[self.token]
        return lambda _: corrupted + shares[:, None, None, None] * (clean - corrupted)

    def at(self, share: float) -> dict[Place, Tensor]:
        """The value at every place with the input at a share of the way."""
        kept: dict[Place, Tensor] = {}
        change: dict[Place, Callable[[Tensor], Tensor]] = {
            place: functools.partial(kept.setdefault, place) for place in self.clean
        }
        change[self.token] = self.input(torch.tensor([share], dtype=DOUBLE))
        self.twin.run(self.ids, change)
        return kept

    def slopes(self, name: str, shares: Tensor, increments: Tensor) -> Tensor:
        """Slopes along increments of a part, [share, ...], at shares of the way."""
        place, unit = part(name)

        def moved(by: float) -> Tensor:
            def nudge(value: Tensor) -> Tensor:
                value = value.clone()
                value[:, :, unit] += by * increments[:, :, unit]
                return value

            changes = {self.token: self.input(shares), place: nudge}
            logits = self.twin.run(self.ids.expand(len(shares), -1), changes)[:, -1]
            return logits[:, self.answer] - logits[:, self.wrong]

        return slopes(moved)


def test_integrated_gradients_along_the_inputs_are_integrals_of_slopes():
    twin = Inputs("GPT-2")
    nodes, weights = np.polynomial.legendre.leggauss(100)
    shares = torch.tensor((nodes + 1) / 2)
    expected = []
    for name in SCORED:
        place, _ = part(name)
        increment = twin.clean[place] - twin.corrupted[place]
        found = twin.slopes(name, shares, increment.expand(len(shares), -1, -1, -1))
        expected.append(torch.tensor(weights / 2) @ found)
    scores = hw.IntegratedGradients(path="inputs", steps=80).scores(gates("GPT-2"))[0]
    assert_close(scores, torch.stack(expected), rtol=0, atol=1e-9)


def test_conductance_adds_slopes_along_what_each_cell_moves():
    twin, cells = Inputs("GPT-2"), 3
    edges = [twin.at(k / cells) for k in range(cells + 1)]
    middles = (torch.arange(cells, dtype=DOUBLE) + 0.5) / cells
    expected = []
    for name in SCORED:
        place, _ = part(name)
        steps = [after[place] - before[place] for before, after in itertools.pairwise(edges)]
        expected.append(twin.slopes(name, middles, torch.cat(steps)).sum())
    conductance = hw.IntegratedGradients(
        path="inputs", increments="path", rule="midpoint", steps=cells
    )
    assert_close(conductance.scores(gates("GPT-2"))[0], torch.stack(expected), rtol=0, atol=1e-9)


# --- what AtP* looks at -------------------------------------------------------------------------


def linearized() -> tuple[hw.GatedFunction, Linearized]:
    f = gates("GPT-2")
    with model("GPT-2").frozen():
        return f, f.linearized(attention=True, drops=True)


def test_the_pattern_slopes_of_atp_star_are_gradients():
    f = gates("GPT-2", components=hw.queries() + hw.keys())
    with model("GPT-2").frozen():
        linear = f.linearized(attention=True, drops=True)
    for layer in (0, 1):
        report = hw.gradcheck(
            model("GPT-2"),
            PAIR.clean,
            site=f"layers.{layer}.attn.pattern",
            metric=hw.logit_diff(),
            answer=PAIR.answer,
            wrong=PAIR.wrong,
            position="all",
            gradient=linear.slopes.patterns[layer][0],
            coordinates=4,
            steps=16,
        )
        assert report.verdict == "agree", str(report)


@pytest.mark.parametrize("dropped", [0, 1])
def test_slopes_with_a_layer_held_constant_are_those_of_the_run_with_its_writes_replaced(dropped):
    twin, (_, linear) = Inputs("GPT-2"), linearized()
    writes: list[Place] = [("attention", dropped), ("mlp", dropped)]
    constant = twin.twin.values(twin.ids, writes)
    expected = []
    for name in SCORED:
        place, unit = part(name)
        increment = (twin.clean[place] - twin.corrupted[place])[:, :, unit]

        def moved(by: float, place=place, unit=unit, increment=increment) -> Tensor:
            def nudge(value: Tensor) -> Tensor:
                value = value.clone()
                value[:, :, unit] += by * increment
                return value

            held = {write: (lambda _, value=constant[write]: value) for write in writes}
            logits = twin.twin.run(twin.ids, {place: nudge} | held)[0, -1]
            return logits[twin.answer] - logits[twin.wrong]

        expected.append(slopes(moved))
    assert_close(linear.dropped(dropped).gates[0], torch.stack(expected), rtol=0, atol=1e-9)


# --- functions with a backward of their own -------------------------------------------------------


def divergence_summed_tile_by_tile() -> None:
    """KL(final || row) of random rows through a soft-capped head and a plain one."""
    generator = torch.Generator().manual_seed(0)
    for family in ("Gemma 2", "GPT-2"):
        readout = Readout(model(family))
        width = readout.adapter.d_model
        final = torch.randn(3, width, generator=generator, dtype=torch.float64)
        normed = torch.randn(3, 2, width, generator=generator, dtype=torch.float64)
        weights = torch.randn(3, 2, generator=generator, dtype=torch.float64)

        def objective(rows: Tensor, readout=readout, final=final, weights=weights) -> Tensor:
            return (weights * divergence(readout, final, rows)).sum()

        report = hw.check_gradient(objective, normed)
        assert report.verdict == "agree", str(report)


CHECKED: dict[str, Callable[[], None]] = {
    "headwater.lenses.translators.divergence._Divergence": divergence_summed_tile_by_tile,
}
"""By qualified name, what checks a custom autograd function of ours."""


@pytest.mark.parametrize("check", CHECKED.values(), ids=CHECKED)
def test_the_backward_pass_of_every_custom_function_is_the_slope(check):
    check()


def custom_functions(package: str) -> set[str]:
    """The autograd functions that are defined in a package, by qualified name."""

    def below(kind: type) -> Iterator[type]:
        for one in kind.__subclasses__():
            yield one
            yield from below(one)

    names = {f"{one.__module__}.{one.__qualname__}" for one in below(torch.autograd.Function)}
    return {name for name in names if name.startswith(f"{package}.")}


def test_every_custom_autograd_function_of_ours_is_checked_by_name():
    for found in pkgutil.walk_packages(hw.__path__, "headwater."):
        importlib.import_module(found.name)
    assert custom_functions("headwater") == set(CHECKED)


def test_the_search_for_custom_autograd_functions_finds_one():
    class Planted(torch.autograd.Function):
        pass

    assert {name.rpartition(".")[2] for name in custom_functions(__name__)} == {"Planted"}
    del Planted
