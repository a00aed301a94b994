"""Refuses a metric that is the same number whatever the logits are."""

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.errors import ConstantMetricError
from headwater.metrics.base import Metric, wide
from headwater.prompts.batches import Batch

ROWS = 4
"""Rows that are tried: a constant metric is constant in each."""

DRAWS = 3
"""Random logits that are tried beside the given ones."""


def refuse_constant(
    metric: Metric, logits: Float[Tensor, "rows read vocab"], batch: Batch, *, seed: int = 0
) -> None:
    """Raise if the metric is the same number whatever the logits are.

    Costs no model run: the metric is evaluated at `logits` and at random ones of the same spread.

    Args:
        metric: The metric.
        logits: What it is given in the clean run.
        batch: The same rows.
        seed: For the random logits.

    Raises:
        ConstantMetricError: If all values agree to rounding in every row tried.
    """
    batch, given = batch.rows(0, ROWS), wide(logits[:ROWS].detach())
    generator = torch.Generator().manual_seed(seed)
    # Small logits hardly move a softmax, so saturated and near-zero models are spread out to 1.
    spread = max(1.0, float(given.std()) if given.numel() > 1 else 1.0)
    with torch.no_grad():
        tried = [metric(given, batch)]
        for _ in range(DRAWS):
            draw = torch.randn(given.shape, generator=generator, dtype=given.dtype)
            tried.append(metric(spread * draw.to(given.device), batch))
    values = torch.stack(tried).double()
    moved = values.amax(dim=0) - values.amin(dim=0)
    rounding = torch.finfo(given.dtype).eps ** 0.5 * values.abs().amax(dim=0)
    if bool((moved <= rounding).all()):
        raise ConstantMetricError(
            f"the metric {metric.name} is {float(values[0, 0]):.6g} for pair {batch.pairs[0]} "
            f"whatever the logits are ({DRAWS + 1} different ones tried), so its gradient is 0. "
            "A softmax summed over the whole vocabulary is such a metric.\n"
            'Choose a token: metric=hw.prob(" Paris").'
        )
