"""TransformerLens 4.3.0 on a subject, in its own environment: ranks, entropy, top 10; no KL."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import lens_subject
from transformer_lens.model_bridge.sources._bridge_builder import (
    build_bridge_from_module,
)
from transformer_lens.tools.analysis.logit_lens import logit_lens

torch.set_num_threads(1)
MODULE = lens_subject.module(sys.argv[1])
IDS = lens_subject.ids()


@torch.no_grad()
def bare() -> torch.Tensor:
    return PLAIN(input_ids=IDS, use_cache=False).logits


@torch.no_grad()
def peer() -> None:
    following = torch.cat([IDS[:, 1:], IDS[:, :1]], dim=1)
    # one selector a call: the targets' ranks (and entropy), then the best tokens
    logit_lens(BRIDGE, IDS, positions=None, targets=following)
    logit_lens(BRIDGE, IDS, positions=None, top_k=10)


PLAIN = lens_subject.module(sys.argv[1])  # the bridge changes the module it is given
BRIDGE = build_bridge_from_module(
    MODULE, type(MODULE).__name__, hf_config=MODULE.config, device="cpu"
)
if len(sys.argv) > 2:
    with torch.no_grad():
        logit_lens(BRIDGE, IDS[:1, :2], positions=None, top_k=1)
lens_subject.measured({"bare": bare, "peer": peer}, repeats=2)
