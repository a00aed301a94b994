"""The decomposition: each row's share of the logit, with the final norm's scale frozen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headwater.directs.capture import Capture
from headwater.directs.linear import WIDE
from headwater.directs.metric import LogitMetric
from headwater.directs.parts import Plan, Write
from headwater.directs.readout import Readout, spread, tolerance
from headwater.endings import Ending
from headwater.errors import UnsupportedModelError
from headwater.sites import EMBED


@dataclass(frozen=True, eq=False)
class Direction:
    """What the number that is decomposed reads from the normed residual, for each row."""

    vector: Float[Tensor, "row d_model"]
    """With the logits' scale; of a difference the difference."""
    bias: Float[Tensor, " row"]
    """What the unembedding's own bias adds."""


def direction_of(
    readout: Readout, capture: Capture, metric: LogitMetric, ending: Ending
) -> Direction:
    """Return the direction of each row's logit, or difference of mean logits."""
    batch = capture.batch
    assert batch.answer is not None
    assert batch.answer_mask is not None
    ids, weights = [batch.answer], [_shares(batch.answer_mask)]
    if metric.against:
        assert batch.wrong is not None
        assert batch.wrong_mask is not None
        ids.append(batch.wrong)
        weights.append(-_shares(batch.wrong_mask))
    vector, bias = readout.directions(torch.cat(ids, 1), torch.cat(weights, 1) * ending.scale)
    return Direction(vector, bias)


def summed(
    plan: Plan, readout: Readout, capture: Capture, direction: Direction, value: Tensor
) -> Float[Tensor, "row part"]:
    """Return every row's share of `value`, the model's own number before a soft cap.

    Args:
        plan: Which rows there are.
        readout: The final norm.
        capture: What the model computed.
        direction: What is read from the normed residual.
        value: The model's own number, [row]; what rounding left of it is the last row.

    Raises:
        UnsupportedModelError: If a norm cannot be frozen, or the sum is not the logit.
    """
    pulled = readout.norm.frozen(capture.residual).pull(direction.vector)
    shares = [_dot(pulled, capture.values[EMBED])[:, None]]
    shares += [_of_write(write, capture, pulled) for write in plan.writes]
    named = {
        "norm bias": direction.vector @ readout.norm.bias,
        "head bias": direction.bias,
    }
    shares += [named[part.name][:, None] for part in plan.parts if part.name in named]
    found = torch.cat(shares, 1)
    rounding = value - found.sum(1)
    _refuse_other(readout, capture, rounding)
    return torch.cat([found, rounding[:, None]], 1)


def _of_write(
    write: Write, capture: Capture, pulled: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row part"]:
    """Return the shares of one sublayer's rows."""
    reads = pulled * write.adapter.write_scale
    group = write.split
    if group is None:
        return _dot(reads, capture.values[write.site])[:, None]
    inputs, projection = capture.values[group.site], write.projection()
    inner = reads
    bias = reads @ write.norm.bias
    if write.norm.module is not None:
        # the projection's output is normed before it is added: that scale is frozen too
        inner = write.norm.frozen(projection(inputs)).pull(reads)
    each = projection.pull(inner) * inputs
    shares = each.unflatten(1, (group.count, -1)).sum(-1)
    if not write.has_bias:
        return shares
    return torch.cat([shares, (inner @ projection.bias + bias)[:, None]], 1)


def _refuse_other(readout: Readout, capture: Capture, left: Float[Tensor, " row"]) -> None:
    model = readout.model
    allowed = tolerance(model.dtype) * spread(capture.logits.to(WIDE))
    worst = float(left.abs().max())
    if not worst <= allowed:
        raise UnsupportedModelError(
            f"{model.name}: the parts miss the model's own logit by {worst:.3g}; rounding in "
            f"{str(model.dtype).removeprefix('torch.')} explains {allowed:.2g}.\n"
            "Score what parts do instead: hw.attribute(model, task, components, hw.Exact(), "
            "reference=hw.Zero())."
        )


def _shares(real: Bool[Tensor, "row n"]) -> Float[Tensor, "row n"]:
    return real.to(WIDE) / real.sum(1, keepdim=True)


def _dot(left: Float[Tensor, "row d_model"], right: Float[Tensor, "row d_model"]) -> Tensor:
    return (left * right).sum(1)
