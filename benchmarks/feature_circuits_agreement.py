"""How far headwater's numbers are from those feature-circuits found; prints JSON.

    python -m benchmarks.feature_circuits_agreement effects|edges FILE SUBJECT [field=value ...]

Headwater's are clean minus corrupted, feature-circuits' the negative of that.
"""

import json
import sys

import torch
from safetensors.torch import load_file
from torch import Tensor

import headwater as hw
from benchmarks import feature_circuits_subject as subjects
from benchmarks.feature_circuits_work import LEFT, Works, site_of
from headwater.feature_circuits.effects import measure

Found = dict[str, Tensor]


def effects(works: Works, theirs: Found) -> dict[str, float]:
    """The largest difference of node effects: from ten points, and from the clean end alone."""
    largest, off = 0.0, {"ten points": 0.0, "clean end": 0.0}
    for name, estimator in {"ten points": LEFT, "clean end": hw.Gradient()}.items():
        found = measure(works.runs(estimator), "sum")
        for place in works.subject.dictionaries:
            own = found[site_of(place)].mean[0]
            difference = (own + theirs[f"{place}.effects"].double()).abs().max()
            off[name] = max(off[name], float(difference))
            largest = max(largest, float(theirs[f"{place}.effects"].abs().max()))
    return {**off, "largest": largest}


def edges(works: Works, theirs: Found) -> dict[str, dict[str, float]]:
    """By kind of edge: the largest difference beside the largest weight, from features and errors.

    Between nodes that headwater keeps; `rows` counts nodes below that only one side keeps.
    """
    circuit, size = works.parity(), works.subject.features + 1
    names = {str(site_of(place)): place for place in works.subject.dictionaries}
    nodes = [
        (names[node.site], size - 1 if node.index is None else node.index)
        for node in circuit.nodes
    ]  # fmt: skip
    kept = {place: [i for name, i in nodes if name == place] for place in names.values()}
    ours = _blocks(circuit, nodes, size)
    found: dict[str, dict[str, float]] = {}
    for key in sorted(name.removesuffix(".rows") for name in theirs if name.endswith(".rows")):
        up, down = key.split(">")
        block = torch.zeros(size, size, dtype=torch.float64)
        block[theirs[f"{key}.rows"]] = -theirs[f"{key}.weights"].double()
        own = ours.get((up, down), torch.zeros_like(block))
        kind = found.setdefault(f"{up.split('_')[0]} -> {down.split('_')[0]}", {})
        _add(kind, "rows", len(set(theirs[f"{key}.rows"].tolist()) ^ set(kept[down])))
        for source, columns in (
            ("features", [i for i in kept[up] if i < size - 1]),
            ("errors", [i for i in kept[up] if i == size - 1]),
        ):
            a, b = own[kept[down]][:, columns], block[kept[down]][:, columns]
            _add(kind, f"{source}", int((a != 0).sum()))
            for name, values in (("off", a - b), ("ours", a), ("theirs", b)):
                most = float(values.abs().max()) if values.numel() else 0.0
                kind[f"{source} {name}"] = max(kind.get(f"{source} {name}", 0.0), most)
    return found


def _blocks(
    circuit: hw.FeatureCircuit, nodes: list[tuple[str, int]], size: int
) -> dict[tuple[str, str], Tensor]:
    """The circuit's edges as matrices [below, above], by the two sites."""
    found: dict[tuple[str, str], Tensor] = {}
    places, numbers = zip(*nodes, strict=True)
    number = torch.tensor(numbers)
    graph = circuit.graph
    inside = graph.targets < len(nodes)
    sources, targets, weights = (
        one[inside] for one in (graph.sources, graph.targets, graph.weights)
    )
    codes = {place: code for code, place in enumerate(dict.fromkeys(places))}
    site = torch.tensor([codes[place] for place in places])
    for up, above in codes.items():
        for down, below in codes.items():
            chosen = (site[sources] == above) & (site[targets] == below)
            if chosen.any():
                block = torch.zeros(size, size, dtype=torch.float64)
                block[number[targets[chosen]], number[sources[chosen]]] = weights[chosen]
                found[up, down] = block
    return found


def _add(kind: dict[str, float], name: str, count: int) -> None:
    kind[name] = kind.get(name, 0) + count


def main() -> None:
    torch.set_num_threads(1)
    what, path, *words = sys.argv[1:]
    works = Works(subjects.given(words))
    compare = {"effects": effects, "edges": edges}[what]
    print(json.dumps(compare(works, load_file(path))))


if __name__ == "__main__":
    main()
