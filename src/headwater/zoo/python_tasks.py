"""Where a file of Python asks what `tiny-python` has learned: five behaviors, cut out of sources.

A rule finds the sites of one behavior in a file: a prompt of `PROMPT` bytes that ends where the
next byte is decided, the byte that follows in the file, and a corrupted prompt of the same length
in which what decides it is replaced. Nothing is made up: clean prompts are verbatim text.
"""

from __future__ import annotations

import re
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from headwater.zoo.python_tokens import PythonToken, code_tokens

PROMPT = 96
"""Bytes in a prompt; with the start token one more."""


@dataclass(frozen=True)
class Site:
    """A place in a file where the next byte shows a behavior."""

    clean: str
    """The text before the place."""

    corrupted: str
    """The same with what decides the answer replaced."""

    answer: str
    """The byte that follows in the file."""

    wrong: tuple[str, ...]
    """The bytes it is compared with."""

    origin: str
    """File and line: `json/decoder.py, line 12`."""


class Names:
    """The identifiers of some files, most frequent first: what may stand in a name's place."""

    def __init__(self, texts: Iterable[str]) -> None:
        counts = Counter(word for text in texts for word in _NAME.findall(text))
        self._alike: dict[tuple[int, str], list[str]] = {}
        for word in sorted(counts, key=lambda word: (-counts[word], word)):
            self._alike.setdefault((len(word), word[:_SHOWN]), []).append(word)

    def instead_of(self, name: str) -> str | None:
        """Return the most frequent name that is as long, begins alike and then differs."""
        alike = self._alike.get((len(name), name[:_SHOWN]), [])
        return next((word for word in alike if word[_SHOWN] != name[_SHOWN]), None)


@dataclass(frozen=True)
class PythonFile:
    """A file to cut sites out of."""

    path: str
    """Path below the standard library's folder."""

    text: str
    """Its whole text."""

    tokens: Sequence[PythonToken]
    """Its code tokens."""

    names: Names
    """Names to put in the place of its own."""

    @classmethod
    def of(cls, path: str, text: str, names: Names) -> PythonFile:
        """Return the file with its tokens."""
        return cls(path, text, code_tokens(text), names)

    def site(self, end: int, changes: Mapping[int, str], wrong: Iterable[str]) -> Iterator[Site]:
        """Yield the site whose answer stands at `end`, if it can be one.

        Args:
            end: Index of the answer in the text.
            changes: What the corrupted prompt has at an index of the text.
            wrong: The wrong answers.

        Yields:
            The site, unless a change or the prompt itself begins before the file or the prompt
            does, or the prompt is not ASCII.
        """
        start = end - PROMPT
        if start < 0 or min(changes) < start:
            return
        clean = corrupted = self.text[start:end]
        for place, new in changes.items():
            before, behind = place - start, place - start + len(new)
            corrupted = corrupted[:before] + new + corrupted[behind:]
        if clean.isascii():
            line = self.text.count("\n", 0, end) + 1
            origin = f"{self.path}, line {line}"
            yield Site(clean, corrupted, self.text[end], tuple(wrong), origin)


Rule: TypeAlias = Callable[[PythonFile], Iterator[Site]]


@dataclass(frozen=True)
class PythonBehavior:
    """A behavior of `tiny-python`."""

    name: str
    """What `headwater.task` calls it."""

    sentence: str
    """What the model does, in words."""

    rule: Rule
    """Finds its sites in a file."""

    balanced: bool
    """Whether all answers get the same number of pairs, so that no habit answers most of them."""


def bracket_sites(file: PythonFile) -> Iterator[Site]:
    """Yield closing brackets; corrupted: what they close is a bracket of another type.

    A round bracket becomes a square one, any other a round one: the types that code has most of.
    """
    waiting: list[PythonToken] = []
    for token in file.tokens:
        if token.kind != tokenize.OP:
            continue
        if token.text in _CLOSING:
            waiting.append(token)
        elif token.text in _CLOSING.values():
            opening = waiting.pop()
            other = "[" if opening.text == "(" else "("
            if token.start - opening.end >= _CONTENT:
                yield from file.site(token.start, {opening.start: other}, _CLOSING[other])


def quote_sites(file: PythonFile) -> Iterator[Site]:
    """Yield ends of strings; corrupted: the string is opened by the other quote."""
    for token in file.tokens:
        match = _STRING.fullmatch(token.text) if token.kind == tokenize.STRING else None
        if match:
            other = "'" if match["quote"] == '"' else '"'
            opening = token.start + match.start("quote")
            yield from file.site(token.end - 1, {opening: other}, other)


def self_sites(file: PythonFile) -> Iterator[Site]:
    """Yield first parameters of methods; corrupted: empty lines instead of the indentation.

    The corrupted prompt so asks for the first parameter of a function at the module's own level.
    What follows there most often is `)`, the wrong answer.
    """
    for match in _METHOD.finditer(file.text):
        yield from file.site(match.end(), {match.start("depth"): "\n" * 4}, ")")


def indent_sites(file: PythonFile) -> Iterator[Site]:
    """Yield deeper lines after a colon; corrupted: a closing bracket instead of the colon.

    The prompt ends when the new line is as deep as the one with the colon. The wrong answers are
    the letters that most often open a line as deep as the line before it.
    """
    for colon, line_end in pairwise(file.tokens):
        if colon.text != ":" or line_end.kind != tokenize.NEWLINE:
            continue
        line_start = file.text.rfind("\n", 0, colon.start) + 1
        line = file.text[line_start : colon.start]
        depth = len(line) - len(line.lstrip(" "))
        new_line = line_end.start + 1
        if file.text[new_line:].startswith(" " * (depth + 1)):
            yield from file.site(new_line + depth, {colon.start: ")"}, "iser")


def name_sites(file: PythonFile) -> Iterator[Site]:
    """Yield names said a second time; corrupted: another name stood in the first place.

    The first place is the target of a `for` or a parameter of a function. The prompt ends after
    the first letter of the second; the other name begins with that letter too. No other word of
    the prompt begins as either name does.
    """
    for place in _introductions(file.tokens):
        first = file.tokens[place]
        other = file.names.instead_of(first.text)
        second = _again(file.tokens, place)
        if other is None or second is None:
            continue
        end = second.start + _SHOWN
        beginnings = {name[: _SHOWN + 1] for name in (first.text, other)}
        words = _WORD.findall(file.text[max(0, end - PROMPT) : end])
        if sum(word[: _SHOWN + 1] in beginnings for word in words) == 1:
            yield from file.site(end, {first.start: other}, other[_SHOWN])


def _introductions(tokens: Sequence[PythonToken]) -> Iterator[int]:
    """Yield the places of names that a `for` or a function's parameters introduce.

    Short names leave nothing to say again, and `self` needs no introduction.
    """
    depth, in_function = 0, False
    for place, (before, token) in enumerate(pairwise(tokens), start=1):
        if before.text == "def":
            depth, in_function = 0, True
        depth += (token.text in _CLOSING) - (token.text in _CLOSING.values())
        if token.text == ")" and depth == 0:
            in_function = False
        parameter = in_function and depth == 1 and before.text in ("(", ",", "*", "**")
        named = token.is_name and len(token.text) >= _LONG and token.text != "self"
        if named and (parameter or before.text == "for"):
            yield place


def _again(tokens: Sequence[PythonToken], place: int) -> PythonToken | None:
    """Return the next token with the same text, unless it is another object's attribute."""
    first = tokens[place]
    for before, token in pairwise(tokens[place:]):
        if token.start - first.start >= PROMPT:
            return None
        if token.text == first.text:
            return None if before.text == "." else token
    return None


_CLOSING = {"(": ")", "[": "]", "{": "}"}
# Between brackets or quotes there is something to look past.
_CONTENT = 2
_STRING = re.compile(r"""[a-zA-Z]*(?P<quote>['"])[^'"\\\n]{2,}(?P=quote)""")
_METHOD = re.compile(r"(?<=\n)(?P<depth>    )def \w+\((?=self\b)")
_NAME = re.compile(r"\b[a-zA-Z_]\w*")
_WORD = re.compile(r"\w+")
# Letters of a repeated name that the prompt shows, and the shortest name that counts.
_SHOWN, _LONG = 1, 4

_BEHAVIORS = (
    PythonBehavior("bracket", "closes the type of bracket that is open", bracket_sites, True),
    PythonBehavior("quote", "ends a string with the quote that opened it", quote_sites, True),
    PythonBehavior("self", "calls a method's first parameter self", self_sites, False),
    PythonBehavior("indent", "goes deeper after a colon", indent_sites, False),
    PythonBehavior("name", "says a loop's or function's name again", name_sites, False),
)
PYTHON_BEHAVIORS = {behavior.name: behavior for behavior in _BEHAVIORS}
