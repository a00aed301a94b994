"""Seconds of one thread's work, and the most memory a process held."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def cpu_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The least CPU time of several runs: other programs on the machine only add to it."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def interleaved(works: dict[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """The least CPU time of each, run in turn so that a slow spell hits all alike."""
    best = dict.fromkeys(works, float("inf"))
    for work in works.values():
        work()
    for _ in range(repeats):
        for name, work in works.items():
            start = time.process_time()
            work()
            best[name] = min(best[name], time.process_time() - start)
    return best


def peak_mebibytes(what: str) -> dict[str, float]:
    """Run `benchmarks.memory WHAT` in its own process; its memory before and at the peak."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", what],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def resident_peak() -> float:
    """The most memory this process held, in MiB; getrusage would count its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
