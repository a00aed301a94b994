"""Cut the tasks of `tiny-python`: `python -m headwater.zoo.python_pairs DIR`.

Measures the model in DIR at every site of every behavior in the held-out files. Of the sites where
the answer is its first choice, 200 a task are written to `DIR/tasks`, and all figures to
`DIR/training.json`. The pairs ship with the model, so a task is the same whatever Python reads it.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from headwater.zoo.python_source import is_held_out, read_source, source_files, source_root
from headwater.zoo.python_tasks import PYTHON_BEHAVIORS, Names, PythonBehavior, PythonFile, Site

PAIRS = 200
"""The most pairs a task has."""

SEEN = 48
"""A prompt whose last bytes, this many, stand in a training file is not used."""


class Measured(NamedTuple):
    """What a model makes of one site."""

    clean: float
    """Logit of the answer minus mean logit of the wrong ones, after the clean prompt."""

    corrupted: float
    """The same after the corrupted prompt."""

    first_choice: bool
    """Whether no byte is more likely than the answer after the clean prompt."""


def main(arguments: list[str] | None = None) -> None:
    """Cut the tasks for the model in a folder.

    Args:
        arguments: Command line without the program's name; by default the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m headwater.zoo.python_pairs")
    parser.add_argument("folder", type=Path, help="folder of the trained model")
    torch.set_num_threads(1)
    write_pairs(parser.parse_args(arguments).folder, log=lambda line: print(line, flush=True))


def write_pairs(folder: Path, log: Callable[[str], None] | None = None) -> None:
    """Write the tasks of a trained model, and the figures of all sites, into its folder.

    Args:
        folder: Holds the model, its tokenizer and `training.json`; gets `tasks/NAME.jsonl`.
        log: Receives a line a task.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    files, train_text = held_out_files(source_root())
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    record["tasks"] = {}
    (folder / "tasks").mkdir(exist_ok=True)
    for behavior in PYTHON_BEHAVIORS.values():
        sites = all_sites(behavior, files)
        measured = dict(zip(sites, measure(model, tokenizer, sites), strict=True))
        right = [site for site in sites if measured[site].first_choice]
        chosen = choose(right, train_text, balanced=behavior.balanced)
        record["tasks"][behavior.name] = {
            "sites": _figures(measured, sites, behavior.balanced),
            "pairs": _figures(measured, chosen, behavior.balanced),
        }
        lines = "".join(json.dumps(_fields(site)) + "\n" for site in chosen)
        (folder / "tasks" / f"{behavior.name}.jsonl").write_text(lines, encoding="utf-8")
        if log:
            log(f"{behavior.name:>8}  {json.dumps(record['tasks'][behavior.name])}")
    text = json.dumps(record, indent=2) + "\n"
    (folder / "training.json").write_text(text, encoding="utf-8")


def held_out_files(root: Path) -> tuple[list[PythonFile], str]:
    """Return the files to cut tasks out of, and the text of all training files."""
    paths = source_files(root)
    train_texts = [read_source(root, path) for path in paths if not is_held_out(path)]
    names = Names(train_texts)
    files = [
        PythonFile.of(path, read_source(root, path), names) for path in paths if is_held_out(path)
    ]
    return files, "\n".join(train_texts)


def all_sites(behavior: PythonBehavior, files: Iterable[PythonFile]) -> list[Site]:
    """Return every site of a behavior; of sites with the same clean prompt, the first."""
    sites: dict[str, Site] = {}
    for site in chain.from_iterable(map(behavior.rule, files)):
        sites.setdefault(site.clean, site)
    return list(sites.values())


def measure(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, sites: Sequence[Site], *, batch: int = 64
) -> list[Measured]:
    """Run a model on both prompts of every site."""
    measured = []
    for start in range(0, len(sites), batch):
        some = sites[start : start + batch]
        clean = _last_logits(model, tokenizer, [site.clean for site in some])
        corrupted = _last_logits(model, tokenizer, [site.corrupted for site in some])
        measured += [
            Measured(
                _difference(clean[row], site),
                _difference(corrupted[row], site),
                int(clean[row].argmax()) == ord(site.answer),
            )
            for row, site in enumerate(some)
        ]
    return measured


def choose(right: Sequence[Site], train_text: str, *, balanced: bool) -> list[Site]:
    """Return the sites that become pairs: `PAIRS` of them, or as many as there are.

    Args:
        right: Sites whose answer is the model's first choice.
        train_text: What the model was trained on; prompts that end as a part of it are left out.
        balanced: Take the answers in turn, as long as there are sites of each.
    """
    shuffled = list(right)
    random.Random(0).shuffle(shuffled)
    groups: dict[str, list[Site]] = {}
    for site in shuffled:
        groups.setdefault(site.answer if balanced else "", []).append(site)
    unseen = (_unseen(groups[answer], train_text) for answer in sorted(groups))
    in_turn = (site for turn in zip_longest(*unseen) for site in turn if site is not None)
    return list(islice(in_turn, PAIRS))


def _unseen(sites: Iterable[Site], train_text: str) -> Iterator[Site]:
    return (site for site in sites if site.clean[-SEEN:] not in train_text)


def _last_logits(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> Float[Tensor, "batch vocab"]:
    tokens = tokenizer(list(prompts), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[:, -1]


def _difference(logits: Float[Tensor, " vocab"], site: Site) -> float:
    wrong = torch.stack([logits[ord(one)] for one in site.wrong]).mean()
    return (logits[ord(site.answer)] - wrong).item()


def _figures(
    measured: Mapping[Site, Measured], sites: Sequence[Site], by_answer: bool
) -> dict[str, Any]:
    """Return shares and means over some sites."""
    if not sites:
        return {"count": 0}
    results = [measured[site] for site in sites]
    figures: dict[str, Any] = {
        "count": len(sites),
        "accuracy": _mean(one.clean > 0 for one in results),
        "first_choice": _mean(one.first_choice for one in results),
        "turned_by_corruption": _mean(one.corrupted < 0 for one in results),
        "clean": _mean(one.clean for one in results),
        "corrupted": _mean(one.corrupted for one in results),
    }
    if by_answer:
        figures["by_answer"] = {
            answer: _figures(measured, [site for site in sites if site.answer == answer], False)
            for answer in sorted({site.answer for site in sites})
        }
    return figures


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return round(sum(listed) / len(listed), 4)


def _fields(site: Site) -> dict[str, Any]:
    return {
        "clean": site.clean,
        "corrupted": site.corrupted,
        "answer": site.answer,
        "wrong": list(site.wrong),
        "label": site.origin,
    }


if __name__ == "__main__":
    main()
