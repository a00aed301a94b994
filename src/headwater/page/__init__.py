"""The page: one self-contained HTML file that shows an attribution and its audit.

Renders plain dicts (`schema.py` says which) and knows no model. The written file asks the network
for nothing, runs only the one script it was written with, and opens from disk.
"""

from __future__ import annotations

from headwater.page.curve import figure, readings
from headwater.page.document import render, write, write_curve
from headwater.page.notebook import fragment
from headwater.page.schema import ComponentRow, CurveData, PageData, PairRow, StatisticRow

__all__ = [
    "ComponentRow",
    "CurveData",
    "PageData",
    "PairRow",
    "StatisticRow",
    "figure",
    "fragment",
    "readings",
    "render",
    "write",
    "write_curve",
]
