"""Find a circuit of features: the main verb of this folder."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from headwater.attribution.checks import refuse_arguments, refuse_modes
from headwater.dictionaries.collection import Dictionaries
from headwater.errors import StationaryMetricError, UnknownOptionError, did_you_mean
from headwater.estimators import Estimator, Gradient, IntegratedGradients
from headwater.feature_circuits import folder
from headwater.feature_circuits.again import Live
from headwater.feature_circuits.choice import Mask, NodeRule, refuse_no_count, refuse_no_size
from headwater.feature_circuits.collect import collected
from headwater.feature_circuits.edges import EdgeRule, Method, Slope, connect
from headwater.feature_circuits.effects import Aggregation, measure
from headwater.feature_circuits.estimates import from_attribution
from headwater.feature_circuits.into_metric import into_metric, refuse_stationary
from headwater.feature_circuits.provenance import Asked, described
from headwater.feature_circuits.result import FeatureCircuit
from headwater.feature_circuits.runs import Runs
from headwater.feature_circuits.sites import node_sites
from headwater.metrics import Metric, kl
from headwater.models import Model
from headwater.progress import progress_bar
from headwater.prompts import Task
from headwater.references import Corrupted, Reference
from headwater.sites import Site

_CHOICES = {
    "aggregation": ("sum", "none"),
    "slope": ("secant", "gradient"),
    "mask": ("aggregate", "original"),
    "edge_slope": ("nodes", "clean"),
    "edges": ("direct", "subtracted"),
}
STEEPEST = 10.0


def feature_circuit(
    model: Model,
    task: Task,
    dictionaries: Dictionaries,
    *,
    node_threshold: float | None = None,
    edge_threshold: float = 0.01,
    nodes: int | None = None,
    estimator: Estimator | None = None,
    reference: Reference | None = None,
    metric: Metric | type[Metric] | Callable[..., Tensor] | str | None = None,
    aggregation: Aggregation = "sum",
    slope: Slope = "secant",
    mask: Mask = "aggregate",
    edge_slope: str = "nodes",
    edges: Method = "direct",
    sites: Sequence[Site | str] | None = None,
    steepest: float = STEEPEST,
    batch_size: int = 32,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool | None = None,
    out: str | Path | None = None,
) -> FeatureCircuit:
    """Find which features of which sites carry a behavior, and what flows between them.

    A node is a feature of a dictionary, or what a site's features leave out (its *error*). Its
    effect is what the metric loses when it is put at its reference, estimated with everything
    behind it free to follow. An edge is the part of a node's effect that comes *directly* from a
    node before it: every other site holds its value. Positive supports the behavior.

    What flows into a node is accounted for in full: kept edges, edges from nodes below the
    threshold, and a remainder that no slope explains, which a circuit shows beside each other.

    Args:
        model: From `hw.load` or `hw.wrap`.
        task: Prompt pairs and metric.
        dictionaries: From `hw.load_dictionaries(model, ...)`; each of their sites has nodes.
        node_threshold: Keep nodes whose effect exceeds this in size; 0.1 if `nodes` is not given
            either.
        edge_threshold: Keep edges whose weight exceeds this in size.
        nodes: Keep this many nodes instead, the strongest.
        estimator: Of node effects: `hw.IntegratedGradients(steps=10)` by default, whose path is
            each site's own; `hw.Gradient()` is one forward and backward for all sites; any other,
            such as `hw.Exact()`, runs through `hw.attribute`.
        reference: What a closed node is set to; `hw.Corrupted()` by default.
        metric: Replaces the task's metric.
        aggregation: `"sum"`: a node is a feature wherever it is active. `"none"`: a feature at one
            position; prompts must have one length.
        slope: How a feature follows its pre-activation. `"secant"`: as it does from the reference
            to the clean run, so that edges into a residual add up to the node's effect, also for
            features that are inactive at one end. `"gradient"`: as in the clean run alone.
        mask: `"aggregate"`: thresholds are on means over pairs. `"original"`: on single pairs and
            positions, before anything is added up, as feature-circuits does.
        edge_slope: Of the metric, at the edge's upper end. `"nodes"`: as the node effects take it,
            so edges *into* a node add up to its effect. `"clean"`: of the clean run, so edges *out
            of* a node add up to its first-order effect.
        edges: How edges between residuals leave out what passes attention and MLP. `"direct"`:
            these hold their values. `"subtracted"`: what passes them is computed and taken away,
            as in the paper's equation 6; the same numbers at many times the cost, for checking.
        sites: Sites that are nodes beside those of the dictionaries, each as a whole; by default
            `embed`.
        steepest: Secants above this in size are not used (TopK features that others push out):
            the clean slope takes their place, and the rest is in the remainder.
        batch_size: Most pairs in one forward.
        dtype: Compute in this number type, on a converted copy; `"float64"` is true float64.
        device: Compute on this device, on a copy.
        seed: Seeds whatever draws random numbers.
        progress: True, False, or None to show a bar only on a terminal.
        out: Folder to save the circuit in; refused before anything is computed if it cannot.

    Returns:
        The circuit: nodes, edges, what is left out, and how well effects add up.

    Raises:
        DictionaryError: If a dictionary does not fit the model.
        GateError: If the thresholds keep no node.
        UnalignedPromptsError: If `aggregation="none"` meets prompts of several lengths.
        UnknownOptionError: If an option has a value it cannot have.

    Source: Marks et al., "Sparse feature circuits" (arXiv 2403.19647).

    Example:
        >>> import headwater as hw
        >>> model = hw.load("tiny")
        >>> found = hw.load_dictionaries(model)
        >>> circuit = hw.feature_circuit(model, hw.task("ioi")[:8], found, nodes=20)
        >>> len(circuit.nodes)
        20
    """
    _refuse_words(
        aggregation=aggregation, slope=slope, mask=mask, edge_slope=edge_slope, edges=edges
    )
    refuse_no_size(edge_threshold=edge_threshold)
    if node_threshold is None and nodes is None:
        node_threshold = 0.1
    rule = NodeRule(node_threshold, nodes, mask)
    refuse_arguments(model=model, task=task, reference=reference)
    if estimator is not None:
        refuse_arguments(estimator=estimator)
    if not isinstance(dictionaries, Dictionaries):
        raise UnknownOptionError(
            f"dictionaries: expected hw.Dictionaries, got {type(dictionaries).__name__}.\n"
            "Write hw.load_dictionaries(model, 'FOLDER')."
        )
    refuse_no_count(batch_size=batch_size)
    if type(seed) is not int:
        raise UnknownOptionError(f"seed={seed!r} is no whole number.")
    if isinstance(sites, str):
        raise UnknownOptionError(f"sites={sites!r} is one text.\nWrite sites=[{sites!r}].")
    refuse_modes()
    runner = model
    if dtype is not None or device is not None:
        runner = model.to(dtype=dtype, device=device)
    dictionaries = dictionaries.to(dtype=_wide(runner), device=runner.device)
    task = task if metric is None else task.with_metric(metric)
    asked = Asked(
        rule=rule,
        edge_threshold=edge_threshold,
        estimator=IntegratedGradients(steps=10) if estimator is None else estimator,
        reference=(Corrupted() if reference is None else reference).anew(),
        aggregation=aggregation,
        edge_rule=EdgeRule(
            slope, steepest, clean=edge_slope == "clean", subtract=edges == "subtracted"
        ),
        batch_size=batch_size,
        seed=seed,
        sites=None if sites is None else tuple(str(site) for site in sites),
    )
    if mask == "original" and not _is_fast(asked.estimator):
        raise UnknownOptionError(
            f'mask="original" needs effects at every position of every pair, which '
            f"{asked.estimator} does not give.\nUse hw.Gradient() or hw.IntegratedGradients()."
        )
    _refuse_stationary(task.metric, asked)
    if out is not None:
        folder.claim(Path(out), described(runner, task, dictionaries, asked))
    owner = None if runner is model else runner
    circuit = _found(runner, task, dictionaries, asked, progress, owner)
    if out is not None:
        circuit.save(out)
    return circuit


def _found(
    model: Model,
    task: Task,
    dictionaries: Dictionaries,
    asked: Asked,
    progress: bool | None,
    owner: Model | None,
) -> FeatureCircuit:
    started = time.perf_counter()
    nodes = node_sites(
        model.anatomy(), dictionaries, asked.sites, dtype=_wide(model), device=model.device
    )
    refuse_stationary(model, task.metric, nodes)
    fast = _is_fast(asked.estimator)
    with model.frozen(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(asked.seed)
        runs = Runs(
            model,
            task,
            nodes,
            asked.estimator if fast else Gradient(),
            asked.reference,
            asked.batch_size,
        )
        with progress_bar("feature circuit", runs.forwards, show=progress) as runs.cost.listener:
            effects = measure(runs, asked.aggregation)
        runs.cost.listener = None
        if not fast:
            effects = from_attribution(
                runs, effects, asked.estimator, asked.aggregation, seed=asked.seed,
                progress=progress,
            )  # fmt: skip
        kept = asked.rule.chosen(nodes, effects, asked.aggregation)
        edges = connect(runs, kept, asked.edge_rule)
        graph = collected(
            runs, kept, effects, edges, into_metric(runs, kept, edges), asked.edge_threshold
        )
    runs.cost.seconds = time.perf_counter() - started
    asked = replace(asked, reference=runs.reference)
    return FeatureCircuit(
        graph=graph,
        clean=runs.clean(),
        tokens=runs.tokens(),
        cost=runs.cost,
        provenance=described(model, task, dictionaries, asked),
        live=Live(weakref.ref(model), task, dictionaries, runs.reference, owner),
    )


def _refuse_stationary(metric: Metric, asked: Asked) -> None:
    """Refuse slopes of the divergence from the clean run, taken in the clean run."""
    clean = asked.edge_rule.clean or not isinstance(asked.estimator, IntegratedGradients)
    if isinstance(metric, kl) and (clean or not _is_fast(asked.estimator)):
        raise StationaryMetricError(
            "the metric is the KL divergence to the clean run, whose slope there is exactly 0, and "
            f"with {'edge_slope=' + repr('clean') if asked.edge_rule.clean else asked.estimator} "
            "the circuit takes it there.\nUse hw.IntegratedGradients(steps=10) with "
            'edge_slope="nodes" (both are the default), or another metric such as hw.logit_diff().'
        )


def _is_fast(estimator: Estimator) -> bool:
    """Whether node effects are slopes at sites: in the clean run, or along each site's own path."""
    if isinstance(estimator, IntegratedGradients):
        return estimator.path == "family" and estimator.tolerance is None
    return isinstance(estimator, Gradient) and estimator.at == "clean"


def _wide(model: Model) -> torch.dtype:
    return torch.promote_types(model.dtype, torch.float32)


def _refuse_words(**given: str) -> None:
    for name, value in given.items():
        if value not in _CHOICES[name]:
            raise UnknownOptionError(
                f"{name}={value!r} is unknown.{did_you_mean(value, _CHOICES[name])}\n"
                f"Write {' or '.join(f'{name}={word!r}' for word in _CHOICES[name])}."
            )
