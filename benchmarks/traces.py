"""What a trace costs beside plain hooks and NNsight, as ratios in one run; writes traces.md.

NNsight lives in an environment of its own: `--peer-python PATH` or HEADWATER_PEER_PYTHON names its
interpreter (torch, transformers and nnsight installed); without one its columns say so. Every
process runs the bare model and plain hooks beside its own library, in turn, and the processes take
turns too, so that a slow spell of the machine hits all alike. Ratios stay inside one process.
"""

import argparse
import copy
import functools
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.measure import resident_peak

ROOT = Path(__file__).parent.parent
SMALL = {"vocab_size": 256, "n_embd": 64, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
SIZES = {"toy": SMALL | {"n_layer": 2}, "deep": SMALL | {"n_layer": 12}, "gpt2-small": {}}
PROMPTS, LENGTH, PARTS = 8, 15, 64
# size, case, turns of each process, rounds a turn, goal
PLAN = [
    ("toy", "outputs", 8, 40, "1.10 x hooks"),
    ("toy", "gradients", 8, 20, "1.10 x hooks"),
    ("toy", "leaves", 8, 30, "1.35 x bare"),
    ("toy", "idle", 8, 40, "1.00 x bare"),
    ("deep", "outputs", 6, 12, ""),
    ("deep", "gradients", 6, 6, ""),
    ("deep", "leaves", 6, 8, ""),
    ("deep", "idle", 6, 12, "1.00 x bare"),
    ("gpt2-small", "outputs", 5, 2, "1.02 x hooks"),
    ("gpt2-small", "gradients", 5, 1, "1.02 x hooks"),
    ("chain", "reads", 8, 30, "15 us a read"),
]
CASES = {
    "outputs": "every block's output, no gradients",
    "gradients": "forward, backward, every block's gradient",
    "leaves": "every leaf module's output, no gradients",
    "idle": "a forward of the wrapped module, no trace",
}
INTRODUCTION = """\
# What traces cost

{date}, Python {python}, torch {torch}, transformers {transformers}, NNsight 0.8.1, one thread,
load {loads}. `python -m benchmarks.traces` writes this file.

toy: GPT-2 with 2 blocks of width 64; deep: 12 blocks of width 64; gpt2-small: that model's size.
Random frozen weights, 8 prompts of 15 tokens; where gradients are read, the embedding's output asks
for them. CPU seconds, medians of rounds in which the variants ran in random order, each on modules
of its own over the same weights; each library in processes of its own beside the bare model and
plain hooks, which its ratios refer to. Figures are the median over the processes, and their range.
"""
Works = dict[str, Callable[[], list[Tensor]]]


class Part(nn.Module):
    """A microsecond's work, with a tensor of its own to read."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Chain(nn.Module):
    """Parts that do next to nothing, so that only the reading costs."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Part() for _ in range(PARTS))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


class Plain:
    """The module itself, bare and with plain hooks."""

    def __init__(self, module: nn.Module, inputs: Tensor) -> None:
        self.module, self.inputs = module, inputs

    @torch.no_grad()
    def bare(self) -> list[Tensor]:
        self.module(self.inputs)
        return []

    def bare_gradients(self) -> list[Tensor]:
        embedded = self.module.transformer.wte(self.inputs).requires_grad_()
        self.module(inputs_embeds=embedded).logits[:, -1].sum().backward()
        return []

    def read(self, modules: Iterable[nn.Module]) -> list[Tensor]:
        values: list[Tensor] = []
        handles = [m.register_forward_hook(lambda _m, _a, out: values.append(out)) for m in modules]
        self.bare()
        for handle in handles:
            handle.remove()
        return values

    def gradients(self) -> list[Tensor]:
        gradients: list[Tensor] = []

        def watch(_module: nn.Module, _args: tuple, out: Tensor) -> None:
            out.register_hook(gradients.append)

        handles = [block.register_forward_hook(watch) for block in self.module.transformer.h]
        self.bare_gradients()
        for handle in handles:
            handle.remove()
        return gradients

    def leaves(self) -> list[str]:
        """The paths of the leaf modules that run, in the order they do."""
        paths = {m: path for path, m in self.module.named_modules() if not list(m.children())}
        called: list[str] = []
        for m, path in paths.items():
            m.register_forward_hook(lambda *_, path=path: called.append(path))
        self.bare()
        for m in paths:
            m._forward_hooks.clear()
        return called


class Headwater:
    def __init__(self, module: nn.Module, inputs: Tensor) -> None:
        import headwater as hw

        self.model, self.inputs = hw.wrap(module), inputs

    def read(self, places: Iterable) -> list[Tensor]:
        with torch.no_grad(), self.model.trace(self.inputs):
            return [place.output for place in places]

    def gradients(self) -> list[Tensor]:
        with self.model.trace(self.inputs):
            blocks = [block.output for block in self.model.transformer.h]
            loss = self.model.lm_head.output[:, -1].sum()
            with loss.backward():
                return [block.grad for block in reversed(blocks)]


class NNsight:
    """NNsight 0.8, whose bodies do not return."""

    def __init__(self, module: nn.Module, inputs: Tensor) -> None:
        import nnsight

        self.save = nnsight.save
        self.model, self.inputs = nnsight.NNsight(module), inputs

    def read(self, places: Iterable) -> list[Tensor]:
        with torch.no_grad(), self.model.trace(self.inputs):
            values = self.save([place.output for place in places])
        return values  # noqa: RET504 - see the class

    def gradients(self) -> list[Tensor]:
        gradients: list[Tensor] = []
        with self.model.trace(self.inputs):
            self.model.transformer.wte.output.requires_grad_()
            blocks = [block.output for block in self.model.transformer.h]
            loss = self.model.lm_head.output[:, -1].sum()
            with loss.backward():
                for block in reversed(blocks):
                    gradients.append(block.grad)
        return gradients


LIBRARIES = {"headwater": Headwater, "nnsight": NNsight}


def subject(size: str) -> tuple[nn.Module, nn.Module, nn.Module, Tensor]:
    """Three modules over the same frozen weights, and their input.

    One for the bare pass, one for plain hooks, one to be wrapped: each is used as often as the
    others, or what it is made of would be in the caches of one variant more than of the next.
    """
    torch.manual_seed(0)
    if size == "chain":
        module, inputs = Chain(), torch.zeros(1)
    else:
        config = transformers.GPT2Config(**SIZES[size])
        module = transformers.GPT2LMHeadModel(config)
        inputs = torch.randint(1, config.vocab_size, (PROMPTS, LENGTH))
    module.eval().requires_grad_(False)
    shared = {id(parameter): parameter for parameter in module.parameters()}
    copies = [copy.deepcopy(module, dict(shared)) for _ in range(2)]
    return module, *copies, inputs


def works(library: str, size: str, case: str) -> Works:
    """What one process runs in turn."""
    bare_module, module, wrapped, inputs = subject(size)
    plain = Plain(module, inputs)
    bare: Works = {"bare": Plain(bare_module, inputs).bare}
    if library == "none":
        return bare
    traced = LIBRARIES[library](wrapped, inputs)
    if case == "idle":
        return bare | {"idle": Plain(wrapped, inputs).bare}
    if case == "gradients":
        alone = Plain(bare_module, inputs)
        return {"bare": alone.bare_gradients, "hooks": plain.gradients, "trace": traced.gradients}
    if case == "reads":
        modules, places = list(module.parts), [traced.model.parts[i] for i in range(PARTS)]
        bare |= {"hooks, 1": functools.partial(plain.read, modules[:1])}
        bare |= {"trace, 1": functools.partial(traced.read, places[:1])}
    elif case == "leaves":
        paths = plain.leaves()
        modules, places = [module.get_submodule(p) for p in paths], [_at(traced, p) for p in paths]
    else:
        modules, places = module.transformer.h, traced.model.transformer.h
    return bare | {
        "hooks": functools.partial(plain.read, modules),
        "trace": functools.partial(traced.read, places),
    }


def _at(traced: Headwater | NNsight, path: str) -> object:
    """A library's own handle on the module at a dotted path."""
    place = traced.model
    for name in path.split("."):
        place = place[int(name)] if name.isdigit() else getattr(place, name)
    return place


def serve(library: str) -> None:
    """Answer each line [size, case, rounds] with the variants' CPU and wall seconds."""
    order = random.Random(0)
    made: dict[tuple[str, str], Works] = {}
    for line in sys.stdin:
        size, case, rounds = json.loads(line)
        if (size, case) not in made:
            made = {(size, case): works(library, size, case)}
            _refuse_differences(made[size, case])
        variants = made[size, case]
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for turn in range(rounds + 1):
            for name in order.sample(list(variants), len(variants)):
                wall, cpu = time.perf_counter(), time.process_time()
                variants[name]()
                spent = time.process_time() - cpu, time.perf_counter() - wall
                if turn or rounds < 3:  # the first warms what the other processes left cold
                    times[name].append(spent)
        print(json.dumps(times), flush=True)


def _refuse_differences(variants: Works) -> None:
    if "trace" in variants:
        expected, got = variants["hooks"](), variants["trace"]()
        if len(expected) != len(got) or not all(map(torch.allclose, expected, got)):
            sys.exit("the trace and the hooks read different values")


def memory(library: str, variant: str) -> None:
    """Print the MiB that reading one block of gpt2-small's size adds to the loaded model."""
    _, _, wrapped, inputs = subject("gpt2-small")
    plain = Plain(wrapped, inputs)
    work, used, blocks = plain.bare, plain, [wrapped.transformer.h[5]]
    if variant == "hooks":
        work = functools.partial(plain.read, blocks)
    elif variant == "trace":
        used = LIBRARIES[library](wrapped, inputs)
        work = functools.partial(used.read, [used.model.transformer.h[5]])
    used.inputs = inputs[:1, :2]
    work()  # lazy imports and buffers
    used.inputs = inputs
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was building the model
    before = resident_peak()
    work()
    resident = resident_peak() - before
    start, seen = _tensor_mebibytes(), []
    for watched in [*wrapped.transformer.h, wrapped.lm_head, wrapped]:
        watched.register_forward_hook(lambda *_: seen.append(_tensor_mebibytes() - start))
    kept = work()
    held = _tensor_mebibytes() - start
    del kept
    left = _tensor_mebibytes() - start
    print(json.dumps({"peak": max(seen), "held": held, "left": left, "resident": resident}))


def _tensor_mebibytes() -> float:
    """All storages that Python's tensors hold."""
    storages = [o.untyped_storage() for o in gc.get_objects() if issubclass(type(o), Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) / 2**20


def backward(library: str, state: str) -> None:
    """Print the CPU microseconds of a backward pass that is none of the library's business."""
    x = torch.ones(3, requires_grad=True)

    def print_median() -> None:
        times = []
        for _ in range(40):
            start = time.process_time()
            for _ in range(250):
                x.sum().backward()
            times.append((time.process_time() - start) / 250 * 1e6)
        print(statistics.median(times))

    if library == "none":
        print_median()
        return
    traced = LIBRARIES[library](*subject("toy")[2:])
    traced.gradients()
    if state == "idle":
        print_median()
        return
    with traced.model.trace(traced.inputs):
        print_median()


def measure(pythons: dict[str, str], processes: int, only: list[str]) -> dict:
    """Seconds by library and (size, case): one entry a process, CPU and wall by variant."""
    found: dict = {library: {} for library in pythons}
    for number in range(processes):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started = {
            library: subprocess.Popen(_command(python, "serve", library), **pipes, **_place())
            for library, python in pythons.items()
        }
        for size, case, turns, rounds, _goal in PLAN:
            if only and size not in only and case not in only:
                continue
            asked = [library for library in started if library != "none" or case == "idle"]
            for library in asked * turns:
                entries = found[library].setdefault((size, case), [])
                if len(entries) == number:
                    entries.append({})
                worker = started[library]
                worker.stdin.write(json.dumps([size, case, rounds]) + "\n")
                worker.stdin.flush()
                for name, seconds in json.loads(worker.stdout.readline()).items():
                    entries[number].setdefault(name, []).extend(seconds)
        for worker in started.values():
            worker.stdin.close()
            worker.wait()
    return found


def _command(python: str, *words: str) -> list[str]:
    return [python, "-m", "benchmarks.traces", "--role", *words]


def _place() -> dict:
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return {"cwd": ROOT, "env": os.environ | quiet}


def _once(python: str, *words: str) -> Any:
    """What one process printed as JSON."""
    command = _command(python, *words)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **_place())
    return json.loads(done.stdout.splitlines()[-1])


def _spread(figures: list[float], digits: int = 2) -> str:
    """The median, and the range over the processes."""
    if not figures:
        return "not measured"
    low, middle, high = min(figures), statistics.median(figures), max(figures)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _medians(found: dict, library: str, size: str, case: str, clock: int = 0) -> list[dict]:
    """One a process: the median seconds of each variant."""
    return [
        {name: statistics.median(pair[clock] for pair in pairs) for name, pairs in entry.items()}
        for entry in found.get(library, {}).get((size, case), [])
    ]


def passes(found: dict) -> Iterator[list[str]]:
    """Rows: passes of models, as ratios to the bare pass and to plain hooks."""
    for size, case, _, _, goal in PLAN:
        sides = [_medians(found, library, size, case) for library in LIBRARIES]
        if case == "reads" or not any(sides):
            continue
        either, name = sides[0] or sides[1], "idle" if case == "idle" else "trace"
        row = [size, CASES[case], _spread([m["bare"] * 1e3 for m in either])]
        row.append(_spread([m["hooks"] / m["bare"] for m in either]) if name == "trace" else "")
        for side in sides:
            row.append(_spread([m[name] / m["bare"] for m in side]))
            row.append(_spread([m[name] / m["hooks"] for m in side]) if name == "trace" else "")
        yield [*row, goal]


def reads(found: dict) -> Iterator[list[str]]:
    """Rows: microseconds of one more value read, and of a trace that reads one."""
    for clock, name in enumerate(("CPU", "wall")):
        sides = [_medians(found, library, "chain", "reads", clock) for library in LIBRARIES]
        kinds = [("hooks", sides[0] or sides[1]), ("trace", sides[0]), ("trace", sides[1])]
        more = [[(m[k] - m[f"{k}, 1"]) * 1e6 / (PARTS - 1) for m in side] for k, side in kinds]
        one = [[(m[f"{k}, 1"] - m["bare"]) * 1e6 for m in side] for k, side in kinds]
        yield [f"one more value read, us {name}", *(_spread(cell, 1) for cell in more), "15"]
        yield [f"a trace of one read, us {name}", *(_spread(cell, 0) for cell in one), ""]


def outside(found: dict, pythons: dict[str, str]) -> Iterator[list[str]]:
    """Rows: what work pays that is none of a library's business."""
    alone = _medians(found, "none", "toy", "idle")
    row = ["toy: a bare pass, to that of a process with neither", "1"]
    for library in LIBRARIES:
        pairs = zip(_medians(found, library, "toy", "idle"), alone, strict=False)
        row.append(_spread([here["bare"] / there["bare"] for here, there in pairs]))
    yield [*row, "1.00"]
    kinds = [("none", "idle"), ("headwater", "idle"), ("nnsight", "idle"), ("headwater", "open")]
    spent: dict = {kind: [] for kind in kinds}
    for _ in range(5):
        for library, state in kinds:
            if library in pythons:
                figure = _once(pythons[library], "backward", library, state)
                spent[library, state].append(figure)
    cells = [_spread(spent[kind], 1) for kind in kinds]
    yield ["`x.sum().backward()`, us CPU", *cells[:3], "the same"]
    yield ["the same inside an open trace", "", cells[3], "", ""]


def held(pythons: dict[str, str]) -> Iterator[list[str]]:
    """Rows: MiB beyond the loaded model."""
    for library, variant in (
        ("none", "bare"),
        ("none", "hooks"),
        *((n, "trace") for n in LIBRARIES),
    ):
        row = [variant if library == "none" else library]
        runs = [_once(pythons[library], "memory", library, variant) for _ in range(3)
                if library in pythons]  # fmt: skip
        yield row + [
            _spread([run[key] for run in runs], 1) for key in ("peak", "held", "left", "resident")
        ]


def _table(title: str, head: str, rows: Iterable[list[str]]) -> list[str]:
    heads = [name.strip() for name in head.split("|")]
    lines = [heads, ["---"] * len(heads), *rows]
    return ["", f"## {title}", "", *("| " + " | ".join(line) + " |" for line in lines)]


def report(pythons: dict[str, str], processes: int, only: list[str]) -> str:
    """All measurements as a page."""
    before = os.getloadavg()[1]
    found = measure(pythons, processes, only)
    ratios = "headwater / bare | headwater / hooks | NNsight / bare | NNsight / hooks"
    lines = _table(
        "Passes", f"model | what | bare, ms | hooks / bare | {ratios} | goal", passes(found)
    )
    if not only:
        three = "headwater | NNsight | goal"
        lines += _table("One read", f"what | hooks | {three}", reads(found))
        lines += _table("Outside traces", f"what | neither | {three}", outside(found, pythons))
        lines += _table(
            "Memory of one forward of gpt2-small that reads one block's output, MiB",
            "variant | tensors, peak | tensors, at the end | tensors, afterwards | resident, peak",
            held(pythons),
        )
    loads = f"{before:.1f} before, {os.getloadavg()[1]:.1f} after"
    return "\n".join(INTRODUCTION.format(loads=loads, **_versions()).splitlines() + lines) + "\n"


def _versions() -> dict[str, str]:
    names = {"torch": torch.__version__, "transformers": transformers.__version__}
    return names | {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default=os.environ.get("HEADWATER_PEER_PYTHON"))
    parser.add_argument("--processes", type=int, default=3, help="fresh processes of each library")
    parser.add_argument("--only", nargs="+", default=[], help="sizes or cases; writes no file")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        role, *words = options.role
        {"serve": serve, "memory": memory, "backward": backward}[role](*words)
        return
    pythons = {"none": sys.executable, "headwater": sys.executable}
    if options.peer_python:
        pythons["nnsight"] = options.peer_python
    page = report(pythons, options.processes, options.only)
    if not options.only:
        (ROOT / "benchmarks" / "traces.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
