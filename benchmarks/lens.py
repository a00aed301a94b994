"""What a lens costs beside a bare forward, the obvious way and other libraries; writes lens.md.

    python -m benchmarks.lens --peer transformer_lens=ENV/bin/python --peer tuned_lens=...

Peers run in environments of their own, which hold what `PEERS` says; each is compared with a bare
forward of its own process. CPU seconds of one thread, least of several runs.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.lens_subject import BATCH, LENGTH, SUBJECTS, WORDS

HERE = Path(__file__).parent
PEERS = {
    "transformer_lens": ("transformer-lens==4.3.0", "TransformerLens 4.3.0: `logit_lens` twice "
                         "(ranks and entropy, then top 10), no KL"),
    "tuned_lens": ("tuned-lens==0.2.0", "tuned-lens 0.2.0: forward KL, entropy, best probability, "
                   "rank; a sequence a call"),
}  # fmt: skip
OURS = {
    "lens": "headwater, every statistic but JS and TV",
    "base_rates": "headwater, the base rates of rarity too, without JS and TV",
    "mixtures": "headwater, JS and TV too",
    "naive": "all log-probabilities at once: 4 KL, entropy, 2 ranks, top 10",
}
GOALS = {("gpt2", "lens"): "9 x, 120 MiB", ("llama", "lens"): "12 x, 100 MiB"}


def run(python: str, script: Sequence[str]) -> object:
    """Run a script and return the JSON of its last line."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, *script], capture_output=True, text=True, env=settings, cwd=HERE.parent
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def rows(subject: str, peers: dict[str, str]) -> list[tuple[str, str, str, str]]:
    ours = ["-m", "benchmarks.lens_work", subject]
    times = run(sys.executable, ours)
    bare = run(sys.executable, [*ours, "bare"])
    found = [("one bare forward", f"1 ({times['bare']:.2f} s)", f"{bare:.0f} MiB", "")]
    for name, said in OURS.items():
        memory = run(sys.executable, [*ours, name])
        ratio = f"{times[name] / times['bare']:.1f}"
        found.append((said, ratio, f"{memory:.0f} MiB", GOALS.get((subject, name), "")))
    for name, python in peers.items():
        script = [str(HERE / "peers" / f"{name}_lens.py"), subject]
        times = run(python, script)
        memory = run(python, [*script, "peer"])
        ratio = f"{times['peer'] / times['bare']:.1f}"
        found.append((PEERS[name][1], ratio, f"{memory:.0f} MiB", ""))
    return found


CORPUS = """
import random, sys, time, resource, headwater as hw
from headwater.zoo.grammar import window
import torch
torch.set_num_threads(1)
model = hw.load("tiny")
def texts(count):
    rng = random.Random(0)
    for _ in range(count):
        yield " ".join(window(rng, repeated=0.2)[1:])
hw.lens_dataset(model, lambda: texts(16), progress=False)
start = time.process_time()
hw.lens_dataset(model, lambda: texts(int(sys.argv[1])), progress=False)
print([time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024])
"""


def corpus() -> list[str]:
    """Time and memory of corpora of growing length, through the embedded model."""
    lines = ["| prompts of 48 tokens | CPU s | s a thousand prompts | peak of the process |",
             "|---|---|---|---|"]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "corpus.py"
        script.write_text(CORPUS)
        for count in (250, 1000, 4000):
            seconds, memory = run(sys.executable, [str(script), str(count)])
            each = 1000 * seconds / count
            lines.append(f"| {count:,} | {seconds:.1f} | {each:.1f} | {memory:.0f} MiB |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    given = dict(one.split("=", 1) for one in parser.parse_args().peer)
    lines = [
        "# What a lens costs",
        "",
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, one thread, random weights, {BATCH} x {LENGTH} tokens, every layer "
        "and the input. Times in bare forwards of the same process; memory beyond what the "
        "process held before.",
    ]
    for subject in SUBJECTS:
        lines += ["", f"## {WORDS[subject]}", "", "| what | x forward | memory | goal |",
                  "|---|---|---|---|"]  # fmt: skip
        lines += [f"| {' | '.join(row)} |" for row in rows(subject, given)]
    lines += ["", "## A corpus, streamed", "", *corpus(), ""]
    text = "\n".join(lines)
    (HERE / "lens.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
