"""What a gradient check costs: over the runs it is made of, one by one, and on a small model."""

import torch

import headwater as hw
from benchmarks.measure import cpu_seconds, interleaved
from headwater.sites import Site
from headwater.suffix import float64_suffix
from headwater.taps import keeper

STEPS = 24
PROMPT = "Mary and John went to the store , John gave a drink to"


def rows(model: hw.Model, task: hw.Task) -> list[tuple[str, str, str]]:
    pair, layer = task.pairs[0], model.anatomy().n_layers // 2
    metric = hw.prob(pair.answer[0])
    (batch,) = hw.Task([pair], metric).batches(model.tokenizer)
    kept: dict[str, torch.Tensor] = {}
    model.forward(batch.clean, taps={Site(layer, "resid_pre"): keeper(kept, "residual")})
    suffix, residual = float64_suffix(model, layer), kept["residual"].double()
    direction = torch.randn(model.anatomy().d_mlp, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def forward(rows: int) -> None:
        ids, start = batch.clean.repeat(rows, 1), (layer, residual.repeat(rows, 1, 1))
        suffix.forward(ids, start=start, read=1)

    def check() -> None:
        site = f"layers.{layer}.mlp.post"
        report = hw.gradcheck(
            model, pair.clean, site=site, metric=metric, directions=direction, steps=STEPS
        )
        assert report.passed

    runs = 2 * STEPS + 1
    times = interleaved(
        {"one": lambda: forward(1), "stacked": lambda: forward(runs), "check": check}, repeats=3
    )
    tiny = hw.load("tiny")
    entries = cpu_seconds(
        lambda: hw.gradcheck(
            tiny, PROMPT, site="layers.1.resid_post", metric=hw.prob("Mary"), coordinates=16
        ),
        repeats=3,
    )
    return [
        (f"gradient check of one direction, {runs} points, over {runs} float64 forwards from its "
         f"layer ({layer})", f"{times['check'] / (runs * times['one']):.2f} x", "1.2 x"),
        (f"the same over one forward with {runs} rows; copy, gradient, forward mode and precision "
         "included", f"{times['check'] / times['stacked']:.2f} x", ""),
        ("gradient check of 32 entries and 5 directions on `tiny`", f"{entries:.2f} s CPU", "3 s"),
    ]  # fmt: skip
