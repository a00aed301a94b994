"""Metrics: one number a prompt, computed from the logits, rising when the behavior is present.

Every metric declares its sense, so that a positive score always means "supports". Divergences and
losses are negated for that: `kl` and `cross_entropy` are 0 at best and fall from there.

    logit_diff     mean logit of the answers - mean logit of the wrong ones
    prob_diff      probability of the answers, summed - that of the wrong ones
    prob           probability of the answers, summed
    logprob        log of that sum; also of one answer of several tokens, teacher-forced
    kl             -KL(clean run || this run)
    cross_entropy  -(mean next-token loss on the clean prompt)

Softmax and logarithm are computed in float32, or in the logits' own dtype if that is wider.
"""

from headwater.metrics.base import Metric as Metric
from headwater.metrics.builtin import METRICS as METRICS
from headwater.metrics.builtin import cross_entropy as cross_entropy
from headwater.metrics.builtin import kl as kl
from headwater.metrics.builtin import logit_diff as logit_diff
from headwater.metrics.builtin import logprob as logprob
from headwater.metrics.builtin import prob as prob
from headwater.metrics.builtin import prob_diff as prob_diff
from headwater.metrics.choice import resolve_metric as resolve_metric
from headwater.metrics.constant import refuse_constant as refuse_constant
from headwater.metrics.function import FunctionMetric as FunctionMetric
from headwater.metrics.function import metric as metric
