"""One piece of work in a process of its own; prints its peak memory as JSON."""

import json
import sys

import torch

from benchmarks import subject, works
from benchmarks.measure import resident_peak

torch.set_num_threads(1)
made = works.Works(subject.model(), subject.task())
made.forward(torch.no_grad)  # allocator and lazy buffers
before = resident_peak()
getattr(made, sys.argv[1])()
print(json.dumps({"before": before, "peak": resident_peak()}))
