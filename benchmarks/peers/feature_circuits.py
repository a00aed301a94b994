"""feature-circuits on a subject, by its own code, in an environment of its own.

    python peers/feature_circuits.py CHECKOUT OUT WORK SUBJECT [field=value ...]

CHECKOUT is saprmarks/feature-circuits at commit 1d87366; OUT a file for what it finds; WORK
`nodes`, `whole`, `command` (nodes, with the metric as its command reads it) or `swapped` (whole,
with two lines of `attribution.jvp` in the other order, so that edges from errors are read before
they are overwritten).

Only what `circuit.get_circuit` needs has to be in the checkout: modules that draw, load published
data or published dictionaries are replaced by empty ones where they cannot be imported.
"""

import sys
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, sys.argv[1])
import feature_circuits_subject as subjects
import torch
from safetensors.torch import save_file

UNUSED = {
    "circuit_plotting": ("plot_circuit", "plot_circuit_posaligned"),
    "data_loading_utils": ("load_examples", "load_examples_nopair"),
    "dictionary_loading_utils": ("load_saes_and_submodules",),
    "dictionary_learning": ("AutoEncoder", "JumpReluAutoEncoder"),
    "dictionary_learning.dictionary": ("Dictionary", "IdentityDict"),
    "torchtyping": ("TensorType",),
}


def replace_unused() -> None:
    """Put empty modules where the checkout imports what `get_circuit` does not use."""
    for name, members in UNUSED.items():
        try:
            __import__(name)
        except ImportError:
            sys.modules[name] = ModuleType(name)
            for member in members:
                setattr(sys.modules[name], member, None)


def swap_lines() -> None:
    """Load `attribution` with the gradient of the error overwritten after it is read."""
    lines = Path(sys.argv[1], "attribution.py").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip().startswith("x_res.grad ="))
    overwrite = lines.pop(first)
    read = next(i for i in range(first, len(lines)) if lines[i].strip().startswith("vjv ="))
    lines.insert(read + 1, overwrite)
    module = sys.modules["attribution"] = ModuleType("attribution")
    exec("\n".join(lines), module.__dict__)


class Coder:
    """A dictionary as `get_circuit` calls one."""

    def __init__(self, encoder, bias, decoder) -> None:
        self.encoder, self.bias, self.decoder = encoder, bias, decoder

    def encode(self, x):
        return torch.relu(x @ self.encoder + self.bias)

    def decode(self, f):
        return f @ self.decoder

    def hacked_forward_for_sfc(self, x):
        f = self.encode(x)
        return self.decode(f), f


def prepared(subject, *, command: bool):
    """The arguments of `get_circuit` for a subject.

    Its command reads `model.output.logits`, which nnsight 0.3.7 does not split between the points
    of integrated gradients: the metric of every point is that of the first. The output of the
    unembedding is split.
    """
    from attribution import Submodule
    from nnsight import LanguageModel

    model = LanguageModel(subject.module, tokenizer=subject.tokenizer)
    inner = model.gpt_neox
    embed = Submodule("embed", inner.embed_in)
    attns, mlps, resids = [], [], []
    for layer, block in enumerate(inner.layers):
        attns.append(Submodule(f"attn_{layer}", block.attention, is_tuple=True))
        mlps.append(Submodule(f"mlp_{layer}", block.mlp))
        resids.append(Submodule(f"resid_{layer}", block, is_tuple=True))
    coders = {
        place: Coder(*subject.dictionaries[place.name]) for place in (embed, *attns, *mlps, *resids)
    }
    right, wrong = (answer[:, None] for answer in subject.answers)

    def metric(model):
        logits = model.output.logits if command else model.embed_out.output
        last = logits[:, -1, :]
        return (torch.gather(last, 1, right) - torch.gather(last, 1, wrong)).squeeze(-1)

    clean, corrupted = subject.ids
    return clean, corrupted, model, embed, attns, mlps, resids, coders, metric


def kept(nodes, edges, path: str) -> dict:
    """Write node effects, and the rows of every block that are not empty."""
    found = {}
    for name, effects in nodes.items():
        if name != "y":
            found[f"{name}.effects"] = torch.cat([effects.act, effects.resc]).detach()
    for up, blocks in (edges or {}).items():
        for down, block in blocks.items():
            if down != "y":
                whole = block.coalesce()
                found[f"{up}>{down}.rows"] = whole.indices()[0].contiguous()
                found[f"{up}>{down}.weights"] = whole.values().detach().contiguous()
    save_file(found, path)
    return {}


def main() -> None:
    torch.set_num_threads(1)
    out, work, words = sys.argv[2], sys.argv[3], sys.argv[4:]
    replace_unused()
    if work == "swapped":
        swap_lines()
    from circuit import get_circuit

    subject = subjects.given(words)
    ready = prepared(subject, command=work == "command")
    small = prepared(subjects.given([*words, "pairs=1"]), command=False)

    def run(args, *, edges: bool):
        return get_circuit(
            *args, node_threshold=subject.threshold, parallel_attn=True, nodes_only=not edges
        )

    subjects.measured(
        lambda: run(small, edges=False),
        lambda: kept(*run(ready, edges=work in ("whole", "swapped")), out),
    )


if __name__ == "__main__":
    main()
