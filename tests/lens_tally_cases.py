"""What a batch of a lens says, made from logits by the formulas, in float64 and all at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headwater.lenses.measure import Measured, Plan, control_tokens
from headwater.lenses.rows import Row
from headwater.sites import Site

CONTROLS = 8


def plan(layers: int, *, writes: bool = False, seed: int = 0, controls: int = CONTROLS) -> Plan:
    """A plan that reads the input and after every layer."""
    rows = [Row("input", "input", Site(0, "resid_pre"))]
    for layer in range(layers):
        if writes:
            rows.append(Row(f"m{layer}", "write", Site(layer, "mlp.out")))
        rows.append(Row(f"r{layer}", "residual", Site(layer, "resid_post")))
    return Plan(tuple(rows), best=2, controls=controls, seed=seed)


def measured(
    logits: Tensor, prompts: Sequence[Sequence[int]], *, first: int = 0, seed: int = 0
) -> Measured:
    """What is measured of logits `[position, row, vocab]` of prompts that stand in a row."""
    tokens = torch.tensor([token for prompt in prompts for token in prompt])
    following = torch.tensor([token for prompt in prompts for token in (*prompt[1:], -1)])
    number = [first + i for i, prompt in enumerate(prompts) for _ in prompt]
    place = [i for prompt in prompts for i in range(len(prompt))]
    logits = logits.double()
    lp = logits.log_softmax(-1)
    p = lp.exp()
    controls = control_tokens(tokens, CONTROLS, seed)
    targets = torch.stack([tokens, following, logits[:, -1].argmax(-1), *controls], dim=1)
    index = targets.clamp(min=0)[:, None].expand(-1, logits.shape[1], -1)
    wanted = logits.gather(-1, index)
    above = (logits[..., None] > wanted[..., None, :]).sum(-2)
    level = (logits[..., None] == wanted[..., None, :]).sum(-2)
    top = logits.topk(2, dim=-1)
    none = torch.zeros(len(tokens), 0, dtype=torch.long)
    return Measured(
        prompt=torch.tensor(number),
        place=torch.tensor(place),
        targets=targets,
        rms=logits.square().mean(-1).sqrt(),
        log_norm=logits.logsumexp(-1),
        mean_logit=logits.mean(-1),
        entropy=-(p * lp).sum(-1),
        kl=(p[:, :, None] * (lp[:, :, None] - lp[:, None])).sum(-1),
        logits=wanted,
        strict=(above + 1).double(),
        ties=(level - 1).double(),
        top=top.indices,
        top_logits=top.values,
        js=None,
        tv=None,
        followed=none,
        followed_logits=torch.zeros(len(tokens), logits.shape[1], 0, dtype=torch.float64),
    )
