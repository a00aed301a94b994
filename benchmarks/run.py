"""Speed and memory as ratios in one run; prints a table and writes benchmarks/results.md."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks import gradients, subject
from benchmarks.measure import cpu_seconds, interleaved, peak_mebibytes
from benchmarks.works import IG_POINTS, Works


def rows() -> list[tuple[str, str, str]]:
    torch.set_num_threads(1)
    works = Works(subject.model(), subject.task())
    heads = works.exact().scores.shape[1]
    times = interleaved(
        {"forward": works.forward, "bare": works.bare, "gradient": works.gradient,
         "gradient_heads": works.gradient_heads}
    )  # fmt: skip
    stars = interleaved(
        {"forward": works.forward, "both": works.forward_backward,
         "gradient": works.gradient_attention, "star": works.star, "drop": works.star_drop,
         "inputs": works.along_inputs},
        repeats=3,
    )  # fmt: skip
    layers = works.model.anatomy().n_layers
    backward = stars["both"] - stars["forward"]
    dropping = 2 * stars["forward"] + (1 + layers / 2) * backward
    exact = cpu_seconds(works.exact, repeats=2)
    forward = cpu_seconds(works.forward)
    bare, ours = peak_mebibytes("bare"), peak_mebibytes("gradient")
    return [
        ("one bare forward", f"{forward:.3f} s", ""),
        ("gradient, heads + MLPs + neurons, over forward + forward-backward",
         f"{times['gradient'] / times['bare']:.2f} x", "1.25 x"),
        ("gradient, heads + MLPs, over forward + forward-backward",
         f"{times['gradient_heads'] / times['bare']:.2f} x", ""),
        (f"exact, {heads} heads, over {heads} bare forwards",
         f"{exact / (heads * forward):.2f} x", "0.42 x"),
        ("AtP* without GradDrop over gradient; queries, keys, heads, MLPs",
         f"{stars['star'] / stars['gradient']:.2f} x", "1.5 x"),
        (f"AtP* with GradDrop over 2 forwards + {1 + layers / 2:.0f} backwards",
         f"{stars['drop'] / dropping:.2f} x", "1.2 x"),
        (f"integrated gradients along the inputs, {IG_POINTS} points, over {IG_POINTS} "
         "forward-backwards", f"{stars['inputs'] / (IG_POINTS * stars['both']):.2f} x", "1.1 x"),
        ("peak memory, gradient over forward + forward-backward (whole process)",
         f"{ours['peak'] / bare['peak']:.2f} x", "1.20 x"),
        ("the same, beyond the loaded model",
         f"{ours['peak'] - ours['before']:.0f} MiB against {bare['peak'] - bare['before']:.0f} MiB",
         ""),
        *gradients.rows(works.model, works.task),
        ("import headwater", f"{_import_seconds('headwater'):.3f} s CPU", "0.05 s"),
        ("headwater --help", f"{_command_seconds('--help'):.2f} s CPU", "0.4 s"),
        ("importing torch, transformers and one model class, without headwater",
         f"{_import_seconds('torch, transformers.models.llama.modeling_llama'):.2f} s CPU", ""),
        ("headwater demo", f"{_command_seconds('demo', '--out', '/tmp/headwater-demo'):.2f} s CPU",
         "10 s"),
    ]  # fmt: skip


def _import_seconds(name: str) -> float:
    code = f"import time; t = time.process_time(); import {name}; print(time.process_time() - t)"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
        for _ in range(5)
    ]
    return min(runs)


def _command_seconds(*words: str) -> float:
    command = [str(Path(sys.executable).with_name("headwater")), *words]
    times = []
    for _ in range(3):
        before = os.times()
        subprocess.run(command, capture_output=True, check=True)
        after = os.times()
        spent = after.children_user + after.children_system
        times.append(spent - before.children_user - before.children_system)
    return min(times)


def main() -> None:
    table = rows()
    lines = [
        "# Measured",
        "",
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, one thread. GPT-2 small's size, random weights, "
        f"{subject.PAIRS} pairs x {subject.LENGTH} tokens. CPU seconds, least of several runs.",
        "",
        "| what | measured | goal |",
        "|---|---|---|",
        *(f"| {what} | {measured} | {goal} |" for what, measured, goal in table),
        "",
    ]
    text = "\n".join(lines)
    (Path(__file__).parent / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
