"""The text of `tiny-python`: the source of Python's standard library, as installed here.

Files are told apart by a hash of their path: an eighth of them is held out, so the model has never
seen a byte of the files that its tasks are cut from. The hash depends on the path only, so a file
is on the same side in every Python version.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable
from pathlib import Path

HELD_OUT_EVERY = 8
"""One file in this many is held out."""

_NOT_SOURCE = frozenset({"site-packages", "dist-packages", "__pycache__"})
_TESTS = frozenset({"test", "tests", "idle_test"})
# Generated tables of characters, and the manual as one long string: hardly Python.
_TABLES = frozenset({"encodings", "pydoc_data"})
_LEFT_OUT = _NOT_SOURCE | _TESTS | _TABLES
# Written anew on each machine.
_GENERATED = ("_sysconfigdata", "config-")


def source_root() -> Path:
    """Return the folder of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def source_files(root: Path) -> list[str]:
    """Return the library's own source files.

    Args:
        root: The library's folder.

    Returns:
        Paths below `root` with forward slashes, sorted. Tests, installed packages, generated
        tables and files made for one machine are left out.
    """
    paths = (file.relative_to(root) for file in root.rglob("*.py"))
    return sorted(path.as_posix() for path in paths if _is_source(path))


def is_held_out(path: str) -> bool:
    """Whether training never sees this file.

    Args:
        path: Path below the library's folder with forward slashes: `json/decoder.py`.
    """
    digest = hashlib.sha256(path.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_EVERY == 0


def read_source(root: Path, path: str) -> str:
    """Return the text of one file, with a line feed alone at the end of each line."""
    # Bytes first: text mode would also turn lone carriage returns into line ends.
    return (root / path).read_bytes().decode("utf-8").replace("\r\n", "\n")


def source_hash(texts: Iterable[str]) -> str:
    """Return a SHA-256 of the texts in their order, which tells Python versions apart."""
    total = hashlib.sha256()
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()


def _is_source(path: Path) -> bool:
    return not _LEFT_OUT.intersection(path.parts) and not any(
        part.startswith(_GENERATED) for part in path.parts
    )
