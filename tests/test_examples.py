"""The example scripts run, and their numbers are those of slow obvious twins."""

import importlib.util
import random
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import headwater as hw

EXAMPLES = Path(__file__).parents[1] / "examples"


def _script(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


tuning = _script("lens_finetuning")


@pytest.fixture(scope="module")
def model():
    return hw.load("tiny")


@pytest.fixture(scope="module")
def ids(model):
    return tuning.windows(model.tokenizer, random.Random(5), 3)


def _rows(module, ids):
    """Log-probabilities [row, batch, pos, vocab] in float64, from plain hooks, norm, head."""
    seen, handles = [], []
    layers = module.model.layers
    handles.append(layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0])))
    for layer in layers:
        handles.append(
            layer.register_forward_hook(
                lambda _, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
            )
        )
    try:
        with torch.no_grad():
            module(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    norm, head = module.model.norm, module.lm_head.weight.detach().double()
    rows = []
    for residual in seen:
        x = residual.double()
        size = (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
        logits = (x / size * norm.weight.detach().double()) @ head.T
        rows.append(logits - logits.exp().sum(-1, keepdim=True).log())
    return torch.stack(rows)


def _losses(rows, ids):
    """Mean over windows and positions of minus the next token's log-probability."""
    losses = []
    for row in rows:
        own = [
            -row[window, place, ids[window, place + 1]].item()
            for window in range(len(ids))
            for place in range(ids.shape[1] - 1)
        ]
        losses.append(sum(own) / len(own))
    return losses


def test_windows_are_the_grammars_and_depend_on_the_seed_alone(model):
    drawn = [tuning.windows(model.tokenizer, random.Random(seed), 2) for seed in (1, 1, 2)]
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()
    words = model.tokenizer.convert_ids_to_tokens(drawn[0][1].tolist())
    rng = random.Random(1)
    tuning.window(rng, repeated=tuning.REPEATED)
    assert words == tuning.window(rng, repeated=tuning.REPEATED)


def test_the_objective_is_the_models_own_loss_and_the_mean_of_the_lenss(model, ids):
    losses = _losses(_rows(model.module, ids), ids)
    for weight in (0.0, 0.5, 2.0):
        loss = tuning.objective(model.module, ids, weight).item()
        assert loss == pytest.approx(losses[-1] + weight * sum(losses) / len(losses), rel=1e-5)


def test_without_a_weight_the_objective_is_transformers_loss(model, ids):
    own = model.module(input_ids=ids, labels=ids, use_cache=False).loss.item()
    assert tuning.objective(model.module, ids, 0.0).item() == pytest.approx(own, rel=1e-5)


def test_fine_tuning_repeats_itself_and_lowers_its_own_objective(model, ids):
    setup = tuning.Setup(steps=3, batch=2, warmup=1)
    one, again = (tuning.finetuned(0, 1.0, setup) for _ in range(2))
    weights = zip(one.module.parameters(), again.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    assert not any(parameter.requires_grad for parameter in one.module.parameters())
    before = tuning.objective(model.module, ids, 1.0)
    assert tuning.objective(one.module, ids, 1.0) < before


def test_what_the_lens_says_is_what_logits_written_out_say(model, ids):
    found = tuning.lens_figures(tuning.read(model, ids))
    rows = _rows(model.module, ids)

    def kl(p, q):
        return (p.exp() * (p - q)).sum(-1).mean().item()

    def rank(tokens, row):
        own = row.gather(-1, tokens[..., None])
        above, level = (row > own).sum(-1), (row == own).sum(-1) - 1
        return (above + 1 + level / 2).double()

    def median(values):
        return values.flatten().median().item()

    best = rows[-1].argmax(-1)
    agrees = torch.stack([row.argmax(-1) == best for row in rows])
    log_ranks = [rank(best, row).log().mean().item() for row in rows]
    to_final = [kl(rows[-1], row) for row in rows]
    expected = {
        "cross-entropy": _losses(rows, ids),
        "kl(final||row)": to_final,
        "kl(row||final)": [kl(row, rows[-1]) for row in rows],
        "kl(input||row)": [kl(rows[0], row) for row in rows],
        "rank(next)": [median(rank(ids[:, 1:], row[:, :-1])) for row in rows],
        "rank(input)": [median(rank(ids, row)) for row in rows],
        "decided": [agrees[row:].all(0).double().mean().item() for row in range(len(rows))],
    }
    for key, values in expected.items():
        assert list(found[key]) == ["input", "r0", "r1", "r2", "r3"]
        assert list(found[key].values()) == pytest.approx(values, rel=1e-4, abs=1e-5), key
    for title, curve in (("KL(final||layer)", to_final), ("log rank(final)", log_ranks)):
        steps = [abs(b - a) for a, b in pairwise(curve)]
        assert found["jumps"][title] == pytest.approx(max(steps) / sum(steps), rel=1e-4)
        assert found["jumps at"][title] == steps.index(max(steps))


def test_answers_are_read_where_they_are_predicted(model):
    task = hw.task("ioi", count=4)
    found = tuning.answer_figures(model, task)
    tokenizer = model.tokenizer
    rows = _rows(
        model.module, tokenizer([pair.clean for pair in task.pairs], return_tensors="pt").input_ids
    )
    answers = [tokenizer.convert_tokens_to_ids(pair.answer[0].strip()) for pair in task.pairs]
    for name, row in zip(found, rows, strict=True):
        own = [-row[number, -1, answer].item() for number, answer in enumerate(answers)]
        assert found[name] == pytest.approx(sum(own) / len(own), rel=1e-4, abs=1e-5)


def test_effects_are_what_the_metric_loses_when_a_part_writes_what_it_wrote_elsewhere(model):
    task = hw.task("ioi", count=3)
    found = tuning.effect_figures(model, task)
    module, tokenizer = model.module, model.tokenizer
    clean, corrupted = (
        tokenizer([getattr(pair, side) for pair in task.pairs], return_tensors="pt").input_ids
        for side in ("clean", "corrupted")
    )
    answers, wrong = (
        torch.tensor(
            [tokenizer.convert_tokens_to_ids(getattr(pair, side)[0].strip()) for pair in task.pairs]
        )
        for side in ("answer", "wrong")
    )

    def metric(part, written):
        def replaced(_, args, out):
            if written is None:
                return out
            return (written, *out[1:]) if isinstance(out, tuple) else written

        handle = part.register_forward_hook(replaced)
        with torch.no_grad():
            last = module(input_ids=clean, use_cache=False).logits[:, -1]
        handle.remove()
        index = torch.arange(len(last))
        return (last[index, answers] - last[index, wrong]).mean().item()

    def elsewhere(part):
        seen = []
        handle = part.register_forward_hook(lambda _, args, out: seen.append(out))
        with torch.no_grad():
            module(input_ids=corrupted, use_cache=False)
        handle.remove()
        return seen[0][0] if isinstance(seen[0], tuple) else seen[0]

    effects = {}
    for number, layer in enumerate(module.model.layers):
        for letter, part in (("a", layer.self_attn), ("m", layer.mlp)):
            effects[f"{letter}{number}"] = metric(part, None) - metric(part, elsewhere(part))
    assert found["effects"] == pytest.approx(effects, rel=1e-4, abs=1e-4)
    total = sum(map(abs, effects.values()))
    sizes = [abs(effects[f"a{n}"]) + abs(effects[f"m{n}"]) for n in range(4)]
    shares = {f"layer {n}": size / total for n, size in enumerate(sizes)}
    assert found["effect shares"] == pytest.approx(shares, rel=1e-4)


def _toy(*lens):
    one = {"t": {"x|y": 1.0}}
    plain = [{"t": {"x|y": value}} for value in (2.0, 4.0)][: max(1, len(lens))]
    return tuning.Conditions(one, plain, [{"t": {"x|y": value}} for value in lens])


def _line(found, claimed=None):
    return found.line("x|y", lambda one: one["t"]["x|y"], claimed)


def test_a_line_says_mean_range_and_whether_the_ranges_are_apart():
    start = r"| x\|y | 1 | 3 (2 to 4) |"
    assert _line(_toy(5.0, 7.0)) == f"{start} 6 (5 to 7) | higher |"
    assert _line(_toy(0.5, 1.5)) == f"{start} 1 (0.5 to 1.5) | lower |"
    assert _line(_toy(4.0, 6.0)) == f"{start} 5 (4 to 6) | overlap |"
    assert _line(_toy(9.0)) == r"| x\|y | 1 | 2 | 9 | one seed |"


def test_a_claim_is_answered_only_where_the_ranges_are_apart():
    assert _line(_toy(5.0, 7.0), "higher").endswith("| yes |")
    assert _line(_toy(5.0, 7.0), "lower").endswith("| no, the opposite |")
    assert _line(_toy(3.0, 7.0), "lower").endswith("| overlap |")
    assert _line(_toy(9.0), "lower").endswith("| one seed |")


def test_the_claims_are_about_the_numbers_they_name():
    def by_row(*values):
        return dict(zip(("input", "r0", "r1", "r2"), values, strict=True))

    figures = {
        "cross-entropy": by_row(6.0, 4.0, 2.0, 1.0),
        "decided": by_row(0.0, 0.2, 0.7, 1.0),
        "kl(input||row)": by_row(0.0, 3.0, 4.0, 5.0),
        "answer": by_row(8.0, 5.0, 2.0, 0.5),
        "jumps": {"KL(final||layer)": 0.7, "log rank(final)": 0.6},
        "effect shares": {"layer 0": 0.4, "layer 1": 0.3, "layer 2": 0.2, "layer 3": 0.1},
        "accuracy": {"ioi": 1.0, "gender": 0.5},
        "metric": {"ioi": 5.0, "gender": 3.0},
    }
    found = [claim.of(figures) for claim in tuning.CLAIMS]
    assert found == pytest.approx([3.0, 0.3, 0.7, 0.6, 4.0, 3.5, 2.0, 0.3, 1.0, 0.75, 4.0])


def test_the_fine_tuning_script_runs_and_writes_what_it_measured(tmp_path, model):
    threads = torch.get_num_threads()
    page = tmp_path / "page.md"
    few = {"seeds": 1, "steps": 2, "batch": 2, "warmup": 1, "windows": 4, "pairs": 3}
    options = [text for name, number in few.items() for text in (f"--{name}", str(number))]
    try:
        found = tuning.main([*options, "--out", str(page)])
    finally:
        torch.set_num_threads(threads)
    ids = tuning.windows(model.tokenizer, random.Random("fresh windows"), 4)
    before = _losses(_rows(model.module, ids), ids)
    assert list(found.before["cross-entropy"].values()) == pytest.approx(before, rel=1e-4)
    written = page.read_text()
    for name, value in found.before["cross-entropy"].items():
        after = [one[0]["cross-entropy"][name] for one in (found.plain, found.lens)]
        cells = " | ".join(f"{one:.3g}" for one in (value, *after))
        assert f"| {name} | {cells} | one seed |" in written
    assert set(tuning.TABLES) == set(found.before)
    assert all(f"## {heading}\n" in written for heading in tuning.TABLES.values())


def test_no_seeds_are_refused(capsys):
    with pytest.raises(SystemExit):
        tuning.main(["--seeds", "0"])
    assert "--seeds 0: at least one order of the text is needed" in capsys.readouterr().err


def test_the_written_page_is_the_scripts():
    written = (EXAMPLES / "lens_finetuning.md").read_text()
    assert written.startswith(tuning.INTRODUCTION)
    assert tuning.LIMITS in written
    for claim in tuning.CLAIMS:
        assert "| {} |".format(claim.words.replace("|", "\\|")) in written


def test_the_list_of_examples_names_every_script():
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"({script.name})" in listed for script in EXAMPLES.glob("*.py"))
