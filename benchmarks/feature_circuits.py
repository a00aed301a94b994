"""What a circuit of features costs, beside the original code; writes feature_circuits.md.

    python -m benchmarks.feature_circuits --checkout FOLDER --python ENV/bin/python

FOLDER holds saprmarks/feature-circuits at commit 1d87366, ENV an environment of its own with
`torch`, `nnsight==0.3.7`, `transformers==4.42.4` and `numpy<2`. HEADWATER_FEATURE_CIRCUITS and
HEADWATER_FEATURE_CIRCUITS_PYTHON say the same. Without them the original is left out.

Every figure is of a process of its own: CPU seconds of one thread, and memory at the peak of the
work beyond what the process held before; the least of several runs.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.feature_circuits_subject import SUBJECTS
from benchmarks.lens import run

HERE = Path(__file__).parent
REPEATS = 3
WORDS = {"f512": "512 features", "f2048": "2,048 features", "pythia": "32,768 features"}
GOALS = {("f512", "whole"): "3 s", ("f2048", "whole"): "8 s, 1.2 GiB"}
OURS = {
    "nodes": "headwater, nodes alone",
    "edges": "headwater, edges alone",
    "whole": "headwater, a whole circuit: the strongest {nodes:,} nodes",
    "as_peer": "headwater, a whole circuit with every choice as the original makes it",
}
THEIRS = {
    "nodes": "feature-circuits, nodes alone",
    "whole": "feature-circuits, a whole circuit",
}
ORIGINAL = (
    "The original is `get_circuit` of the saprmarks/feature-circuits checkout that was given, "
    "run with nnsight 0.3.7 and transformers 4.42.4 in an environment of its own. Both "
    "sides have the same weights, dictionaries and prompts."
)
LEFT_OUT = "The original was left out: no --checkout and --python were given."
Measure = dict[str, float]


class Peer:
    """The original code in an environment of its own, if it is there."""

    def __init__(self, checkout: str | None, python: str | None, folder: Path) -> None:
        self.there = bool(checkout and python)
        self.checkout = Path(checkout or "").absolute()
        self.python, self.folder = Path(python or "").absolute(), folder

    def __bool__(self) -> bool:
        return self.there

    def file(self, work: str, words: Sequence[str]) -> str:
        """Where the numbers of a work are."""
        return str(self.folder / f"{'-'.join([work, *words])}.safetensors")

    def measured(self, work: str, *words: str, repeats: int = 1) -> Measure:
        script = str(HERE / "peers" / "feature_circuits.py")
        call = [script, str(self.checkout), self.file(work, words), work, *words]
        return _least([run(str(self.python), call) for _ in range(repeats)])

    def agreement(self, what: str, work: str, *words: str) -> dict:
        """How far headwater's numbers are from those that a measured work has left."""
        script = ["-m", "benchmarks.feature_circuits_agreement", what, self.file(work, words)]
        return run(sys.executable, [*script, *words])


def ours(work: str, *words: str, repeats: int = REPEATS) -> Measure:
    call = ["-m", "benchmarks.feature_circuits_work", work, *words]
    return _least([run(sys.executable, call) for _ in range(repeats)])


def circuit(subject: str, peer: Peer) -> list[str]:
    """Whole circuits, and their parts."""
    rows = ours("rows", subject, repeats=1)
    lines = [
        f"## {WORDS[subject]} a dictionary",
        "",
        f"With the original's threshold {rows['distinct']:,} nodes are kept, each where its effect "
        f"on a pair and position exceeds it: {rows['triples']:,} triples.",
        "",
        "| what | CPU s | memory | goal |",
        "|---|---|---|---|",
        _row("one forward and backward of all pairs", ours("forward", subject)),
    ]
    for work, said in OURS.items():
        goal = GOALS.get((subject, work), "")
        said = said.format(nodes=SUBJECTS[subject].nodes)
        lines.append(_row(said, ours(work, subject), goal))
    for work, said in THEIRS.items() if peer else ():
        repeats = 1 if subject == "f2048" and work == "whole" else 2
        lines.append(_row(said, peer.measured(work, subject, repeats=repeats)))
    return [*lines, ""]


def agreement(peer: Peer) -> list[str]:
    """The two circuits' numbers beside each other, after `circuit` has run."""
    nodes, edges = (peer.agreement(what, "whole", "f512") for what in ("effects", "edges"))
    peer.measured("command", "f512")
    command = peer.agreement("effects", "command", "f512")
    peer.measured("swapped", "f512")
    swapped = peer.agreement("edges", "swapped", "f512").values()
    wide = peer.agreement("edges", "whole", "f2048").values()
    lines = [
        "## The same numbers?",
        "",
        f"512 features: node effects differ by at most {nodes['ten points']:.0e} (the largest is "
        f"{nodes['largest']:.2g}), and edges by",
        "",
        "| edges | from features | largest weight | largest difference | from errors | largest "
        "weight | the original's |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, one in edges.items():
        lines.append(
            f"| {kind} | {one['features']:,} | {one['features ours']:.2g} | "
            f"{one['features off']:.0e} | {one['errors']:,} | {one['errors ours']:.2g} | "
            f"{one['errors theirs']:.2g} |"
        )
    return [
        *lines,
        "",
        f"{sum(one['rows'] for one in edges.values())} nodes are kept by one side only. 2,048 "
        f"features: {sum(one['features'] for one in wide):,} edges from features differ by at most "
        f"{max(one['features off'] for one in wide):.0e}, "
        f"{sum(one['rows'] for one in wide)} nodes are kept by one side only.",
        "",
        "- Edges that leave an error node are all 0 in the original: it overwrites their gradient "
        "before it reads it. With those two lines swapped they differ by at most "
        f"{max(one['errors off'] for one in swapped):.0e} too.",
        "- The original's command reads its metric from `model.output.logits`, which nnsight 0.3.7 "
        "does not split between the points of integrated gradients: every point has the metric of "
        f"the first. Its effects are {command['ten points']:.2g} off then, and equal the gradient "
        f"at the clean end to {command['clean end']:.0e}. Here it reads the output of the "
        "unembedding, where ten points are ten points.",
        "",
    ]


def scaling(peer: Peer) -> list[str]:
    """With distinct features, with how often they are active, and with pairs."""
    lines = [
        "## What the cost grows with",
        "",
        "Edges of 2,048-feature dictionaries, by how many nodes are kept:",
        "",
        "| nodes | (pair, position, node) that differ | CPU s | memory |",
        "|---|---|---|---|",
    ]
    for nodes in (250, 500, 1000, 2000, 4000):
        found = ours("edges", "f2048", f"nodes={nodes}")
        lines.append(f"| {found['distinct']:,} | {found['triples']:,} {_cost(found)} |")
    lines += [
        "",
        "Edges between 676 nodes of 512-feature dictionaries, by how often features are active:",
        "",
        "| active | (pair, position, node) that differ | CPU s | memory |",
        "|---|---|---|---|",
    ]
    for active in (0.02, 0.05, 0.2, 0.5):
        found = ours("edges", "f512", f"active={active}")
        lines.append(f"| {active:.0%} | {found['triples']:,} {_cost(found)} |")
    theirs = " the original: triples | CPU s a pair | memory |" if peer else ""
    lines += [
        "",
        "A whole circuit of 512-feature dictionaries, by how many pairs there are:",
        "",
        f"| pairs | headwater: CPU s a pair | memory |{theirs}",
        "|---|---|---|" + "---|---|---|" * bool(peer),
    ]
    for pairs in (4, 8, 16, 32, 64):
        words = ("f512", f"pairs={pairs}")
        found = ours("whole", *words)
        line = f"| {pairs} {_cost(found, pairs)} |"
        if peer and pairs <= 16:
            triples = ours("rows", *words, repeats=1)["triples"]
            line += f" {triples:,} {_cost(peer.measured('whole', *words), pairs)} |"
        lines.append(line + "  |  |  |" * bool(peer and pairs > 16))
    return [*lines, ""]


def large() -> list[str]:
    """The size of pythia-70m."""
    subject = SUBJECTS["pythia"]
    lines = [
        "## The size of pythia-70m",
        "",
        f"{subject.layers} layers, d {subject.width}, {subject.features:,} features, "
        f"{subject.pairs} pairs of {subject.length} tokens, {subject.nodes} nodes (50 a site). "
        "The dictionaries hold 2.4 GiB before anything starts.",
        "",
        "| what | CPU s | memory |",
        "|---|---|---|",
    ]
    for work in ("forward", "nodes", "edges", "whole"):
        said = OURS.get(work, "one forward and backward of all pairs")
        found = ours(work, "pythia", repeats=2)
        lines.append(f"| {said.format(nodes=subject.nodes)} {_cost(found)} |")
    return [*lines, ""]


def audits() -> list[str]:
    """Exact interventions on a sample of edges."""
    lines = [
        "## What an audit costs",
        "",
        "| features a dictionary | edges checked | CPU s | an edge, in forwards and backwards |",
        "|---|---|---|---|",
    ]
    for subject in ("f512", "f2048"):
        found, forward = ours("audit", subject), ours("forward", subject)
        each = found["seconds"] / found["checked"]
        lines.append(
            f"| {SUBJECTS[subject].features:,} | {found['checked']} | {found['seconds']:.2f} | "
            f"{each / forward['seconds']:.1f} ({1000 * each:.0f} ms) |"
        )
    return [*lines, ""]


def _row(said: str, found: Measure, goal: str = "") -> str:
    return f"| {said} {_cost(found)} | {goal} |"


def _cost(found: Measure, share: int = 1) -> str:
    seconds = found["seconds"] / share
    digits = 0 if seconds > 100 else 1 if seconds > 10 else 2 if seconds > 0.1 else 3
    return f"| {seconds:.{digits}f} | {max(0, found['mebibytes']):,.0f} MiB"


def _least(found: list[Measure]) -> Measure:
    least = {name: min(one[name] for one in found) for name in ("seconds", "mebibytes")}
    return {**found[0], **least}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkout", default=os.environ.get("HEADWATER_FEATURE_CIRCUITS"))
    parser.add_argument("--python", default=os.environ.get("HEADWATER_FEATURE_CIRCUITS_PYTHON"))
    given = parser.parse_args()
    lines = [
        "# What a circuit of features costs",
        "",
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, one thread. GPT-NeoX of 4 layers, d 128, random weights and "
        "dictionaries at the embedding and every attention, MLP and residual; 16 pairs of 8 "
        "tokens. Integrated gradients of ten points. CPU seconds; memory beyond what the process "
        "held before. `python -m benchmarks.feature_circuits` writes this file.",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(given.checkout, given.python, Path(folder))
        lines += [ORIGINAL if peer else LEFT_OUT, ""]
        for section in (
            lambda: circuit("f512", peer),
            lambda: circuit("f2048", peer),
            lambda: agreement(peer) if peer else [],
            lambda: scaling(peer),
            large,
            audits,
        ):
            found = section()
            print("\n".join(found), flush=True)
            lines += found
    text = "\n".join(lines).rstrip() + "\n"
    (HERE / "feature_circuits.md").write_text(text)


if __name__ == "__main__":
    main()
