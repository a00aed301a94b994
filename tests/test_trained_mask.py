"""TrainedMask: planted subsets, target sparsity, resuming, and what it says of itself."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

import headwater as hw
from headwater import progress
from headwater.attribution import attribute
from headwater.errors import (
    GateError,
    NestedComponentsError,
    RunFolderError,
    UnknownOptionError,
)
from headwater.estimators import ESTIMATORS, mask_training
from headwater.estimators.hard_concrete import GATES, HardConcrete
from shape_checks import unchecked
from tiny_tasks import gated, model, task

NAMES = "abcdefgh"


def function(fn, names: str = NAMES, batch: int = 4) -> hw.GatedFunction:
    return hw.GatedFunction(fn, tuple(names), batch=batch, dtype=torch.float64)


WEIGHTS = torch.tensor([3.0, -1.0, 0.0, 0.5, 0.0, 0.0, 0.0, 2.0], dtype=torch.float64)


def linear(m: Tensor) -> Tensor:
    return (m * WEIGHTS).sum(-1)


def trained(f: hw.GatedFunction, **options) -> tuple[hw.Attribution, hw.TrainedCircuit]:
    found = attribute(f, estimator=hw.TrainedMask(**options))
    assert found.trained_circuit is not None
    return found, found.trained_circuit


# --- planted subsets ------------------------------------------------------------


def test_a_price_keeps_what_a_linear_function_uses():
    _, circuit = trained(function(linear), price=0.05)
    assert circuit.kept == ("a", "b", "d", "h")
    assert circuit.faithfulness == pytest.approx(1.0)
    assert circuit.sparsity == 0.5


def test_a_component_is_kept_if_closing_it_costs_more_than_its_price():
    # closing d costs (0.5 / 4.5)^2 = 0.0123 of the loss, b 0.05, h 0.2; one of eight, price / 8
    for price, kept in ((0.09, {"a", "b", "d", "h"}), (1.4, {"a", "h"})):
        _, circuit = trained(function(linear), price=price)
        assert set(circuit.kept) == kept


def test_of_a_conjunction_every_part_is_kept():
    f = function(lambda m: m[..., 1] * m[..., 4] * m[..., 6])
    assert trained(f, price=0.1)[1].kept == ("b", "e", "g")


def test_of_two_that_replace_each_other_one_is_kept():
    f = function(lambda m: m[..., 0] + m[..., 1] - m[..., 0] * m[..., 1], names="ab")
    assert attribute(f, estimator=hw.Exact()).scores[0].tolist() == [0.0, 0.0]
    _, circuit = trained(f, price=0.2)
    assert len(circuit.kept) == 1
    assert circuit.faithfulness == pytest.approx(1.0)


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_a_target_sparsity_is_hit_with_the_components_that_matter_most(sparsity):
    # all of one sign, so that the best subset of each size holds the largest weights
    weights = torch.tensor([0.4, 6.0, 1.5, 0.2, 3.0, 0.1, 0.8, 4.5], dtype=torch.float64)
    f = function(lambda m: (m * weights).sum(-1))
    found, circuit = trained(f, sparsity=sparsity)
    count = round(8 * (1 - sparsity))
    best = sorted(weights.argsort(descending=True)[:count].tolist())
    assert circuit.kept == tuple(NAMES[i] for i in best)
    assert circuit.sparsity == sparsity
    # not only after thresholding: the expected sparsity is there too, within half a gate
    assert 1 - float(found.scores[0].abs().mean()) == pytest.approx(sparsity, abs=1 / 16)
    assert found.parts.notes == ()


def test_sigmoid_gates_find_the_planted_subset_too():
    # all of one sign: else half-open gates make up for closed ones
    f = function(lambda m: (m * WEIGHTS.abs()).sum(-1))
    _, circuit = trained(f, gates="sigmoid", price=0.005)
    assert circuit.kept == ("a", "b", "d", "h")


def test_an_absolute_distance_weighs_errors_as_they_are():
    # closing d costs 0.5 / 4.5 = 0.111 of the loss instead of its square
    _, circuit = trained(function(linear), price=0.14, distance="absolute")
    assert circuit.kept == ("a", "b", "d", "h")


# --- what the numbers are ------------------------------------------------------------


def test_scores_are_probabilities_with_the_sign_of_the_slope_the_same_on_every_pair():
    found, _ = trained(function(linear), price=0.05)
    assert torch.equal(found.scores, found.scores[:1].expand(4, -1))
    a, b, c, d, _, _, _, h = found.scores[0].tolist()
    assert min(a, -b, d, h) > 0.95
    assert 0 < c < 0.05  # no slope at all counts as positive
    assert hw.TrainedMask().magnitudes


def test_a_fitted_mask_answers_for_its_scores_as_its_settings_do():
    settings = hw.TrainedMask(steps=2)
    fitted = settings.fitted([function(linear)])
    assert fitted.are_effects is settings.are_effects is False
    assert fitted.uses_slopes is settings.uses_slopes is False
    assert fitted.magnitudes is settings.magnitudes is True
    assert fitted.leaves_one_out is settings.leaves_one_out is False


def test_a_function_seen_from_the_corrupted_end_is_trained_as_from_the_clean_one():
    ends = [
        hw.GatedFunction(linear, tuple(NAMES), batch=4, dtype=torch.float64, end=end)
        for end in ("clean", "corrupted")
    ]
    clean, corrupted = (hw.TrainedMask(steps=30).fitted([f]) for f in ends)
    assert torch.equal(clean.mask, corrupted.mask)
    assert corrupted.circuit == clean.circuit
    assert corrupted.circuit.clean == 4.5
    assert corrupted.circuit.closed == 0.0


def test_the_circuit_is_run_exactly_and_faithfulness_is_of_means_over_pairs():
    scales = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    f = function(lambda m: linear(m) * scales + 10, batch=4)
    _, circuit = trained(f, sparsity=0.75)
    assert circuit.kept == ("a", "h")  # of all pairs the nearest to 4.5: 3 + 2
    assert circuit.clean == pytest.approx(10 + 4.5 * 3)
    assert circuit.closed == pytest.approx(10.0)
    assert circuit.value == pytest.approx(10 + 5 * 3)
    assert circuit.faithfulness == pytest.approx(5 / 4.5)
    assert hw.TrainedCircuit.from_dict(circuit.to_dict()) == circuit


def test_undecided_gates_and_a_missed_target_are_said():
    found, _ = trained(function(linear), sparsity=0.5, steps=40)
    undecided, missed, cut = found.parts.notes
    share = found.scores[0].abs()
    kept = torch.tensor([name in found.trained_circuit.kept for name in NAMES])
    dropped = int((~kept & (share > 0.5)).sum())
    assert dropped > 0
    assert cut.startswith(
        f"to keep exactly 4 components the circuit drops {dropped} that the mask left open"
    )
    open_between = int(((share > 0.1) & (share < 0.9)).sum())
    assert undecided.startswith(f"the mask left {open_between} of 8 gates undecided after 40 steps")
    assert missed.startswith("the mask's expected sparsity is 0.")
    assert "not 0.5 as asked for" in missed


@pytest.mark.parametrize("kind", list(GATES))
def test_the_price_is_for_what_is_open_and_a_location_is_found_for_it(kind):
    gates = GATES[kind]
    location = torch.tensor([gates.location(share) for share in (0.01, 0.5, 0.99)])
    assert_close(gates.open_share(location), torch.tensor([0.01, 0.5, 0.99]))


def test_hard_concrete_gates_are_open_as_often_as_their_price_says():
    gates, draws = HardConcrete(), 200_000
    location = torch.tensor([-3.0, -1.0, 0.0, 2.0])
    noise = torch.rand(draws, 4, generator=torch.Generator().manual_seed(0))
    drawn = gates.sample(location, noise.clamp(1e-6, 1 - 1e-6))
    often = (drawn > 0).double().mean(0)
    # binomial: 5 standard errors are at most 5 * 0.5 / sqrt(draws) = 0.0056
    assert_close(often, gates.open_share(location).double(), rtol=0, atol=0.0056)
    assert bool(((drawn == 0).any(0) & (drawn == 1).any(0)).all())


# --- how it is trained ------------------------------------------------------------


def test_a_seed_gives_the_same_bits_and_another_seed_others():
    first, again, other = (
        trained(function(linear), steps=60, seed=seed)[0].scores for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_stops_when_nothing_changes_any_more():
    _, circuit = trained(function(linear), price=0.05)
    assert circuit.settled
    assert circuit.steps < 400
    _, patient = trained(function(linear), price=0.05, steps=400, patience=None)
    assert not patient.settled
    assert patient.steps == 400


def test_a_target_is_not_settled_for_while_it_still_rises():
    _, circuit = trained(function(linear), sparsity=0.5, steps=1000)
    assert circuit.steps >= 500


def batches(*weights: list[float]) -> list[hw.GatedFunction]:
    """One batch a list, of as many pairs as it has weights: f = weight * a + b on each pair."""

    def fn(values: Tensor):
        return lambda m: m[..., 0] * values + m[..., 1]

    return [
        hw.GatedFunction(fn(torch.tensor(w).double()), "ab", batch=len(w), dtype=torch.float64)
        for w in weights
    ]


def test_one_mask_is_learned_for_all_batches():
    # a matters in the second batch alone, b in both
    fitted = hw.TrainedMask(price=0.05).fitted(batches([0.0, 0.0], [2.0, 2.0]))
    first, second = (fitted.scores(f) for f in batches([0.0, 0.0], [2.0, 2.0]))
    assert torch.equal(first, second)
    assert fitted.circuit.kept == ("a", "b")
    alone = hw.TrainedMask(price=0.05).fitted(batches([0.0, 0.0]))
    assert alone.circuit.kept == ("b",)


@pytest.mark.parametrize("kind", list(GATES))
def test_a_short_batch_weighs_as_its_pairs_do(kind):
    # a matters on the only pair of one batch, b on all seven pairs of the other. Over pairs closing
    # a costs 3^2 / 8, b 2^2 * 7 / 8, which is more; over batches a would cost 9 / 2, b 4 / 2
    few = hw.GatedFunction(lambda m: 3.0 * m[..., 0], "ab", batch=1, dtype=torch.float64)
    many = hw.GatedFunction(lambda m: 2.0 * m[..., 1], "ab", batch=7, dtype=torch.float64)
    fitted = hw.TrainedMask(gates=kind, sparsity=0.5).fitted([few, many])
    assert fitted.circuit.kept == ("b",)


def test_batches_that_are_too_many_to_hold_are_made_again(monkeypatch):
    made = []

    class Again:
        def __iter__(self):
            made.append(1)
            return iter(batches([1.0], [2.0], [3.0]))

    held = hw.TrainedMask(steps=30).fitted(Again())
    assert len(made) == 1
    monkeypatch.setattr(mask_training, "HELD", 2)
    again = hw.TrainedMask(steps=30).fitted(Again())
    assert len(made) > 10
    assert torch.equal(held.mask, again.mask)


def test_progress_says_loss_and_sparsity(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    with caplog.at_level(logging.INFO, logger="headwater"):
        hw.TrainedMask(steps=3).fitted([function(linear)], progress=True)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "training a mask over 8 components: 12 forwards to run"
    assert len(lines) == 4
    assert all("(loss " in line and line.endswith("% closed)") for line in lines[1:])


# --- resuming ------------------------------------------------------------

OPTIONS = [{"price": 0.05}, {"sparsity": 0.5}, {"gates": "sigmoid", "sparsity": 0.5}]


class StoppedError(Exception):
    """Stands for whatever ends a process."""


def failing(after: int) -> hw.GatedFunction:
    """The linear function, until it has been called `after` times."""
    calls = 0

    def fn(m: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > after:
            raise StoppedError
        return linear(m)

    return function(fn)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_interrupted_training_continues_with_exactly_the_same_numbers(tmp_path, options):
    options = {"steps": 150, "patience": None} | options
    whole = hw.TrainedMask(**options).fitted([function(linear)])
    kept = hw.TrainedMask(**options, checkpoints=tmp_path)
    for calls in (47, 90):  # two calls for the ends; steps between two checkpoints are lost
        with pytest.raises(StoppedError):
            kept.fitted([failing(calls)])
    resumed = kept.fitted([function(linear)])
    assert torch.equal(resumed.mask, whole.mask)
    assert resumed.circuit == whole.circuit
    assert [path.name for path in tmp_path.iterdir()] == ["mask.safetensors"]


def test_a_finished_training_is_read_back_without_a_step(tmp_path):
    estimator = hw.TrainedMask(price=0.05, checkpoints=tmp_path)
    first = estimator.fitted([function(linear)])
    assert first.circuit.settled
    # both ends, the circuit and the signs
    again = estimator.fitted([failing(4)])
    assert torch.equal(first.mask, again.mask)
    assert first.circuit == again.circuit


def test_the_batches_go_on_where_they_were(tmp_path):
    three = batches([1.0], [2.0], [-3.0])
    whole = hw.TrainedMask(steps=60, patience=None).fitted(three)
    for steps in (20, 40):
        stop = steps
        with pytest.MonkeyPatch.context() as patch:
            write = mask_training.Checkpoints.write

            def stopping(self, state, stop=stop, write=write):
                write(self, state)
                if state["numbers"][1] == stop:
                    raise StoppedError

            patch.setattr(mask_training.Checkpoints, "write", stopping)
            with pytest.raises(StoppedError):
                hw.TrainedMask(steps=60, patience=None, checkpoints=tmp_path).fitted(three)
    resumed = hw.TrainedMask(steps=60, patience=None, checkpoints=tmp_path).fitted(three)
    assert torch.equal(resumed.mask, whole.mask)


def test_a_checkpoint_of_other_settings_is_refused_with_both(tmp_path):
    hw.TrainedMask(price=0.05, steps=20, checkpoints=tmp_path).fitted([function(linear)])
    with pytest.raises(RunFolderError) as refused:
        hw.TrainedMask(price=0.1, steps=20, seed=3, checkpoints=tmp_path).fitted([function(linear)])
    assert str(refused.value) == (
        f"{tmp_path / 'mask.safetensors'} is of a training with other settings. They differ in\n"
        "  price: 0.05 there, 0.1 now\n"
        "  seed: 0 there, 3 now\n"
        "Choose another folder for checkpoints=, or delete the file."
    )


def test_a_checkpoint_of_another_function_is_refused(tmp_path):
    estimator = hw.TrainedMask(steps=20, checkpoints=tmp_path)
    estimator.fitted([function(linear)])
    with pytest.raises(RunFolderError) as refused:
        estimator.fitted([function(lambda m: 2 * linear(m))])
    assert "with all gates open the metric of pair 0 of the batches was 4.5 and is 9 now" in str(
        refused.value
    )
    with pytest.raises(RunFolderError, match="components: "):
        estimator.fitted([function(linear, names="ijklmnop")])


def test_a_broken_checkpoint_is_refused(tmp_path):
    (tmp_path / "mask.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(RunFolderError, match="is no checkpoint this release can read"):
        hw.TrainedMask(checkpoints=tmp_path).fitted([function(linear)])


@pytest.mark.parametrize(
    ("options", "change", "problem"),
    [
        ({"price": 0.05}, {"end.open": None}, "it lacks end.open"),
        (
            {"price": 0.05},
            {"location": None, "adam.0.step": None},
            "it lacks adam.0.step, location",
        ),
        ({"price": 0.05}, {"more": torch.zeros(1)}, "it holds the unknown more"),
        (
            {"sparsity": 0.5},
            {"adam.1.exp_avg": None, "adam.1.average": torch.zeros(2)},
            "it lacks adam.1.exp_avg and it holds the unknown adam.1.average",
        ),
    ],
    ids=str,
)
def test_a_checkpoint_with_other_tensors_is_refused_by_their_names(
    tmp_path, options, change, problem
):
    estimator = hw.TrainedMask(**options, steps=20, checkpoints=tmp_path)
    estimator.fitted([function(linear)])
    path = tmp_path / "mask.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()} | change  # noqa: SIM118
    whole = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(whole, path, metadata=metadata)
    with pytest.raises(RunFolderError) as refused:
        estimator.fitted([function(linear)])
    assert str(refused.value) == (
        f"{path} is no checkpoint this release can read: {problem}.\n"
        "Delete it to train from the start, or choose another folder."
    )


def test_an_interrupted_training_says_that_it_can_be_continued(tmp_path, caplog):
    def interrupted_after(calls: int) -> hw.GatedFunction:
        left = iter(range(calls))

        def fn(m: Tensor) -> Tensor:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return linear(m)

        return function(fn)

    kept = hw.TrainedMask(steps=1500, patience=None, checkpoints=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        kept.fitted([interrupted_after(2 + 19)])
    assert caplog.messages == []  # nothing was kept yet
    with pytest.raises(KeyboardInterrupt):
        kept.fitted([interrupted_after(2 + 47)])
    assert caplog.messages == [
        f"the mask after 40 of at most 1,500 steps is kept in {tmp_path / 'mask.safetensors'}: "
        "type the same again to go on from there."
    ]
    with pytest.raises(KeyboardInterrupt):
        hw.TrainedMask(steps=1500).fitted([interrupted_after(2 + 47)])
    assert len(caplog.messages) == 1  # no folder, nothing to go on from


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        hw.TrainedMask(checkpoints=tmp_path / "file").fitted([function(linear)])


# --- models ------------------------------------------------------------


def test_a_mask_of_a_model_keeps_its_metric_and_is_saved_with_the_scores(tmp_path: Path):
    tiny, pairs = hw.load("tiny"), hw.task("ioi")[:8]
    components = hw.heads() + hw.mlps()
    estimator = hw.TrainedMask(steps=200, checkpoints=tmp_path / "mask")
    scores = hw.attribute(tiny, pairs, components, estimator, batch_size=4)
    circuit = scores.trained_circuit
    assert circuit is not None
    assert circuit.faithfulness is not None
    assert abs(circuit.faithfulness - 1) < 0.1
    assert 3 <= len(circuit.kept) < 18
    f = gated(tiny, pairs, components)
    m = torch.tensor([float(name in circuit.kept) for name in f.names])
    with torch.no_grad():
        value = f(m.expand(1, 8, -1).clone())[0].mean()
    assert circuit.value == pytest.approx(float(value), rel=1e-4)
    assert "the mask keeps" in repr(scores)
    back = hw.Attribution.load(scores.save(tmp_path / "run"))
    assert back.trained_circuit == circuit
    assert "checkpoints" not in back.provenance.estimator


def test_a_model_trained_through_keeps_its_weights_and_flags():
    chosen = model("GPT-2")
    before = [(p.clone(), p.requires_grad) for p in chosen.module.parameters()]
    attribute(chosen, task(5, 5), hw.heads(), hw.TrainedMask(steps=3))
    for (value, flag), now in zip(before, chosen.module.parameters(), strict=True):
        assert torch.equal(value, now)
        assert now.requires_grad is flag
        assert now.grad is None


def test_kl_is_minimized_where_its_gradient_at_the_clean_end_is_zero():
    two = task(5, 5).with_metric(hw.kl)
    estimator = hw.TrainedMask(steps=150, sparsity=0.25, distance="absolute")
    scores = attribute(model("GPT-2"), two, hw.heads(), estimator)
    circuit = scores.trained_circuit
    assert circuit is not None
    assert circuit.clean == pytest.approx(0.0, abs=1e-9)
    assert circuit.closed < circuit.value <= 0
    assert len(circuit.kept) == 6


# --- what is refused ------------------------------------------------------------


def test_nested_components_cannot_be_learned_together():
    with pytest.raises(NestedComponentsError, match="lies inside"):
        attribute(model("GPT-2"), task(5), hw.attentions() + hw.heads(), hw.TrainedMask(steps=2))


def test_a_metric_that_no_gate_moves_is_refused():
    with pytest.raises(GateError) as refused:
        trained(function(lambda m: 0 * m.sum(-1)))
    assert str(refused.value).startswith(
        "closing all 8 components leaves the metric exactly as it is on all 4 pairs"
    )


def test_a_mask_is_not_put_on_other_components():
    fitted = hw.TrainedMask(steps=2).fitted([function(linear)])
    with pytest.raises(GateError, match="other components"):
        fitted.scores(function(linear, names="ijklmnop"))


@pytest.mark.parametrize("sparsity", [0.9, 0.1])
def test_a_sparsity_that_keeps_none_or_all_is_refused(sparsity):
    with pytest.raises(UnknownOptionError, match=r"of 2 components.\nType a share between 0.5"):
        hw.TrainedMask(sparsity=sparsity).fitted(batches([1.0]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gates": "soft"}, "gates='soft' is unknown."),
        ({"distance": "squares"}, "distance='squares' is unknown. Closest: 'squared'."),
        ({"price": 0.1, "sparsity": 0.5}, "both price=0.1 and sparsity=0.5 were given."),
        ({"price": -0.1}, "price=-0.1: a price is a finite number from 0 on. Type price=0.1."),
        ({"price": float("nan")}, "price=nan: a price is a finite number from 0 on."),
        ({"sparsity": 0.0}, "sparsity=0.0 is not between 0 and 1"),
        ({"sparsity": 1.0}, "sparsity=1.0 is not between 0 and 1"),
        ({"steps": 0}, "steps=0 is no whole number from 1 on.\nType steps=1000."),
        ({"steps": 20.5}, "steps=20.5 is no whole number from 1 on.\nType steps=1000."),
        ({"steps": "9"}, "steps='9' is no whole number from 1 on.\nType steps=1000."),
        ({"steps": True}, "steps=True is no whole number from 1 on.\nType steps=1000."),
        ({"patience": 0}, "patience=0 is no whole number from 1 on.\nType patience=5."),
        ({"patience": 2.5}, "patience=2.5 is no whole number from 1 on.\nType patience=5."),
        ({"seed": 1.5}, "seed=1.5 is no whole number from 0 on.\nType seed=0."),
        ({"seed": None}, "seed=None is no whole number from 0 on.\nType seed=0."),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is not above 0. Type learning_rate=0.1."),
    ],
)
def test_options_that_have_no_meaning_are_refused(options, said):
    with unchecked(), pytest.raises(UnknownOptionError) as refused:
        hw.TrainedMask(**options)
    assert str(refused.value).startswith(said)


def test_the_command_line_knows_it():
    assert ESTIMATORS["trained-mask"] is hw.TrainedMask
