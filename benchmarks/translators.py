"""Every kind of translator of `tiny`, judged beside its controls; writes translators.md."""

import random
import time
from pathlib import Path
from typing import Any

import torch

import headwater as hw
from headwater.zoo.grammar import window

FITTED, JUDGED, JACOBIANS = 512, 256, 24
FITS: dict[str, dict[str, Any]] = {
    "least squares": {"method": "lstsq"},
    "trained shift": {"method": "bias"},
    "tuned lens": {"method": "kl"},
    "tuned lens, begun at least squares": {"method": "kl", "start": "lstsq"},
    f"mean Jacobian, {JACOBIANS} prompts": {"method": "jacobian", "limit": JACOBIANS},
}


def texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(window(rng, repeated=0.2)[1:]) for _ in range(count)]


def row(name: str, found: Any, lens: str, rows: tuple[str, ...], seconds: str) -> str:
    cells = [f"{found.kl(lens, one).mean:.3f} ± {found.kl(lens, one).error:.3f}" for one in rows]
    return f"| {name} | {' | '.join(cells)} | {seconds} |"


def jacobian_seconds(name: str, length: int, prompts: int = 4) -> str:
    """Seconds a prompt of so many tokens, for the mean Jacobian of a model."""
    model, corpus = hw.load(name), texts(prompts, 3)
    start = time.process_time()
    hw.fit_lens(model, corpus, "jacobian", length=length, progress=False)
    return f"{(time.process_time() - start) / prompts:.2f}"


def main() -> None:
    torch.set_num_threads(1)
    model, corpus, held_out = hw.load("tiny"), texts(FITTED, 1), texts(JUDGED, 2)
    lines: list[str] = []
    controls: list[str] = []
    for name, options in FITS.items():
        start = time.process_time()
        fitted = hw.fit_lens(model, corpus, progress=False, **options)
        spent = time.process_time() - start
        first = not lines
        judged = fitted.evaluate(
            model, held_out, controls_from=corpus, untrained_model=first, progress=False
        )
        rows = judged.rows[:-1]
        lines.append(row(name, judged, "translator", rows, f"{spent:.1f}"))
        if first:
            names = [one for one in judged.lenses if one not in ("translator", "bias only")]
            controls = [row(one, judged, one, rows, "-") for one in names]
    head = f"| KL(final \\|\\| row), nats | {' | '.join(rows)} | CPU s |"
    text = "\n".join(
        [
            "# Translators of `tiny`",
            "",
            f"{time.strftime('%Y-%m-%d')}; fitted to {FITTED} windows of its grammar, judged on "
            f"{JUDGED} others; mean and standard error over prompts.",
            "",
            head,
            "|---" * (len(rows) + 2) + "|",
            *lines,
            *controls,
            "",
            "Mean Jacobian, CPU seconds a prompt: "
            + "; ".join(
                f"`{name}`, {length} tokens: {jacobian_seconds(name, length)}"
                for name, length in (("tiny", 48), ("tiny-mamba", 12), ("tiny-mamba", 48))
            ),
            "",
        ]
    )
    (Path(__file__).parent / "translators.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
