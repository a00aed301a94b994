"""tuned-lens 0.2.0 on a subject, in an environment of its own: forward KL, entropy, max p, rank."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import lens_subject
from tuned_lens.nn.lenses import LogitLens
from tuned_lens.plotting import PredictionTrajectory

torch.set_num_threads(1)
MODULE = lens_subject.module(sys.argv[1])
IDS = lens_subject.ids()
LENS = LogitLens.from_model(MODULE)


@torch.no_grad()
def bare() -> torch.Tensor:
    return MODULE(input_ids=IDS, use_cache=False).logits


@torch.no_grad()
def peer() -> None:
    for row in IDS.tolist():  # one sequence a call
        found = PredictionTrajectory.from_lens_and_model(LENS, MODULE, row, targets=[*row[1:], 0])
        for name in ("forward_kl", "entropy", "max_probability"):
            getattr(found, name)()
        found.rank(show_ranks=True)


if len(sys.argv) > 2:
    with torch.no_grad():
        MODULE(input_ids=IDS[:1, :2], use_cache=False)
lens_subject.measured({"bare": bare, "peer": peer}, repeats=2)
