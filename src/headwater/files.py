"""Files that are written whole or not at all: under a temporary name, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from headwater.errors import RunFolderError


def write_atomically(path: Path, writer: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in the same folder, then rename it.

    Args:
        path: The file.
        writer: Called with the temporary path; what it returns does not matter.

    Raises:
        RunFolderError: If the path is a folder.
    """
    if path.is_dir():
        raise RunFolderError(
            f"{path} is a folder, not a file.\nName a file in it: {path / 'NAME'}."
        )
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        writer(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write text under a temporary name, then rename it; line ends are those of the text."""
    write_atomically(path, lambda there: there.write_text(text, encoding="utf-8", newline="\n"))


def foreign(folder: Path, ours: Collection[str]) -> list[str]:
    """Return the names in a folder that are neither ours nor what a killed write left of ours."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in ours and not any(path.name.startswith(f".{one}.") for one in ours)
    )


def make_writable(folder: Path) -> None:
    """Make a folder, and see that files can be written there.

    Raises:
        RunFolderError: If they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be written: {error.strerror or error}.\nChoose another folder."
        ) from error
