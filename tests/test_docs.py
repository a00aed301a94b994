"""Every Python block of the README and the docs runs, and prints what the page says it prints."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```(?:\s*\n```text\n(.*?)```)?", re.DOTALL)


def blocks():
    for page in PAGES:
        for number, match in enumerate(BLOCK.finditer(page.read_text())):
            yield pytest.param(match[1], match[2], id=f"{page.name}-{number}")


@pytest.mark.parametrize(("code", "printed"), list(blocks()))
def test_every_block_runs_and_prints_what_the_page_shows(code, printed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "block", "exec"), {"__name__": "__main__"})
    if printed is not None:
        assert _comparable(out.getvalue()) == _comparable(printed)


def _comparable(text):
    """Compare all but the seconds, which differ on every machine."""
    text = re.sub(r"\d+\.\d+ s\b", "SECONDS", text)
    return [line.rstrip() for line in text.strip().splitlines()]


def test_every_relative_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_make_target_the_pages_name_exists():
    makefile = (ROOT / "Makefile").read_text()
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"`make ([a-z-]+)`", page.read_text()):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"
