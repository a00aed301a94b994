"""What can be gated: components, how they are chosen, and how they are named.

A *selection* (`heads() + mlps(layers=[0, 1])`) says which kinds of component to score;
`Selection.expand` turns it into a `ComponentTable` for one model. A table is a list of *groups*:
all components of one kind that live at one site, so that a site with 3,072 neurons is one entry
and one tensor operation.

Names follow the field (EAP-IG, MIB) so that scores can be exchanged: `input`, `a3`, `a3.h5`,
`a3.h5<q>`, `a3.kv1<k>`, `m3`; ours beyond: `m3.n128` (neuron), `r3` (residual after layer 3),
`mixer3` (Mamba mixer), `mixer3.c17` (its channel), `mixer3.h2` (its head, Mamba-2), `mixer3<ssm>`
and `mixer3<conv>` (what its scan and its convolution read), `m3.f77` and `m3.error` (a feature of
a dictionary, and what its features leave out), and the suffix `@7` for a position (`@-1`: the
last).
"""

from headwater.components.kinds import INSIDE, KINDS, Component, Kind
from headwater.components.names import parse_component
from headwater.components.nesting import refuse_nested
from headwater.components.selection import Choice, Positions, Selection
from headwater.components.selectors import (
    SELECTORS,
    attentions,
    channels,
    conv,
    features,
    heads,
    keys,
    mixers,
    mlps,
    neurons,
    nodes,
    queries,
    residual,
    ssm,
    ssm_heads,
    tokens,
    values,
)
from headwater.components.table import ComponentTable, Group

__all__ = [
    "INSIDE",
    "KINDS",
    "SELECTORS",
    "Choice",
    "Component",
    "ComponentTable",
    "Group",
    "Kind",
    "Positions",
    "Selection",
    "attentions",
    "channels",
    "conv",
    "features",
    "heads",
    "keys",
    "mixers",
    "mlps",
    "neurons",
    "nodes",
    "parse_component",
    "queries",
    "refuse_nested",
    "residual",
    "ssm",
    "ssm_heads",
    "tokens",
    "values",
]
