"""The tokens of a Python file with their places in the text, for cutting tasks out of it."""

from __future__ import annotations

import io
import keyword
import tokenize
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class PythonToken:
    """One token of Python's own tokenizer."""

    kind: int
    """`tokenize.NAME`, `tokenize.OP` and so on."""

    text: str
    """As it stands in the file."""

    start: int
    """Index of its first character in the file."""

    end: int
    """Index behind its last character."""

    @property
    def is_name(self) -> bool:
        """Whether it is an identifier, and no keyword."""
        return self.kind == tokenize.NAME and not keyword.iskeyword(self.text)


def code_tokens(source: str) -> list[PythonToken]:
    """Return the tokens of a file, without comments and line breaks inside a statement.

    Args:
        source: The text of the file, with a line feed alone at the end of each line.

    Raises:
        tokenize.TokenError: If the file is not Python.
        SyntaxError: If its lines are not indented as Python's are.
    """
    # Not splitlines(), which also breaks lines at form feeds.
    starts = list(accumulate((len(line) + 1 for line in source.split("\n")), initial=0))

    def index(place: tuple[int, int]) -> int:
        row, column = place
        # The end of the file stands in a line of its own behind the text.
        return min(starts[row - 1] + column, len(source))

    return [
        PythonToken(token.type, token.string, index(token.start), index(token.end))
        for token in tokenize.generate_tokens(io.StringIO(source, newline="\n").readline)
        if token.type not in (tokenize.COMMENT, tokenize.NL)
    ]
