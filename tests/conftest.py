"""Tests never touch the network; those in a browser share its fixtures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import chromium

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Browser]:
    """One Chromium for the tests of a file."""
    with chromium.Browser() as running:
        yield running


@pytest.fixture
def opened(browser: chromium.Browser, tmp_path: Path) -> Iterator[Callable[..., chromium.Page]]:
    """Write a page and open it; afterwards nothing may have gone wrong or gone out."""
    tabs: list[chromium.Page] = []

    def open_page(write: Callable[[Any, Path], Path], data: Any, **how: Any) -> chromium.Page:
        tabs.append(browser.open(write(data, tmp_path / "page.html"), **how))
        return tabs[-1]

    yield open_page
    for tab in tabs:
        assert tab.errors == []
        assert tab.requests == [(tmp_path / "page.html").as_uri()]
        tab.close()
