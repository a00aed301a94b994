"""One subject through headwater's lens and through the obvious way; run by `benchmarks.lens`."""

import sys

import torch

import headwater as hw
from benchmarks import lens_subject

torch.set_num_threads(1)
MODULE = lens_subject.module(sys.argv[1])
MODEL = hw.wrap(MODULE)
IDS = lens_subject.ids()


@torch.no_grad()
def bare() -> torch.Tensor:
    """One forward with the logits of every position."""
    return MODULE(input_ids=IDS, use_cache=False).logits


def lens() -> hw.Lens:
    """Every statistic but those of mixtures."""
    return hw.lens(MODEL, IDS, mixtures=False, batch_size=lens_subject.BATCH, progress=False)


def base_rates() -> hw.Lens:
    """The same, and the ranks of 8 tokens of other positions at each."""
    return hw.lens(
        MODEL, IDS, mixtures=False, controls=8, batch_size=lens_subject.BATCH, progress=False
    )


def mixtures() -> hw.Lens:
    """Every statistic."""
    return hw.lens(MODEL, IDS, batch_size=lens_subject.BATCH, progress=False)


@torch.no_grad()
def naive() -> list[torch.Tensor]:
    """Log-probabilities of all rows at once; KL both ways against both ends, entropy, 2 ranks."""
    adapter = MODEL.anatomy()
    hidden: list[torch.Tensor] = []
    first = adapter.layers[0].register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    others = [
        one.register_forward_hook(
            lambda _, args, out: hidden.append(out[0] if isinstance(out, tuple) else out)
        )
        for one in adapter.layers
    ]
    MODULE(input_ids=IDS, use_cache=False)
    for handle in (first, *others):
        handle.remove()
    z = adapter.unembed(adapter.final_norm(torch.stack(hidden)))
    lp = z.log_softmax(-1)
    p = lp.exp()
    found = [(p * (lp - end)).sum(-1) for end in (lp[-1], lp[0])]
    found += [(end.exp() * (end - lp)).sum(-1) for end in (lp[-1], lp[0])]
    found.append(-(p * lp).sum(-1))
    order = z.argsort(-1, descending=True).argsort(-1)
    for target in (IDS, z[-1].argmax(-1)):
        found.append(order.gather(-1, target.expand(len(z), -1, -1)[..., None])[..., 0] + 1)
    found += list(z.topk(10))
    return found


WORKS = {"bare": bare, "lens": lens, "base_rates": base_rates, "mixtures": mixtures, "naive": naive}
if len(sys.argv) > 2:
    assert hw.lens  # imported before memory is looked at
    with torch.no_grad():  # lazy buffers
        MODULE(input_ids=IDS[:1, :2], use_cache=False)
lens_subject.measured(WORKS, repeats=2)
