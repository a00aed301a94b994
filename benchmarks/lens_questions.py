"""What a corpus says of the embedded models' layers; writes lens_questions.md."""

import random
import time
from pathlib import Path

import torch

import headwater as hw
from headwater.zoo.grammar import window

WINDOWS, FEW = 400, 40


def texts() -> list[str]:
    """Windows of the grammar; the tokenizer adds the start token."""
    rng = random.Random(0)
    return [" ".join(window(rng, repeated=0.2)[1:]) for _ in range(WINDOWS)]


def main() -> None:
    torch.set_num_threads(1)
    lines = ["# Questions to the layers", "", time.strftime("%Y-%m-%d")]
    prompts = texts()
    for name in ("tiny", "tiny-gpt2"):
        start = time.process_time()
        found = hw.lens_dataset(hw.load(name), prompts, mixtures=True, progress=False)
        spent = time.process_time() - start
        lines += ["", f"## {name}, {WINDOWS} windows of its grammar, {spent:.0f} s of one core"]
        for one in (found, found.jumps(), found.close(), found.rarity()):
            lines += ["", "```", repr(one), "```"]
    few = hw.lens_dataset(hw.load("tiny"), prompts[:FEW], progress=False).rarity()
    lines += ["", f"## tiny, {FEW} windows", "", "```", repr(few), "```"]
    text = "\n".join([*lines, ""])
    (Path(__file__).parent / "lens_questions.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
