"""Tokens as a reader can see them: no token looks empty, moves other text or hides what it is."""

from __future__ import annotations

import re
import unicodedata

SPACE = "\u2423"
"""Stands for a space at either end of a token."""
_SIGNS = {"\r\n": "\u21b5", "\n": "\u21b5", "\r": "\u240d", "\t": "\u21e5"}
# What has no shape of its own: controls, marks of writing direction, separators, surrogates.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def visible(token: str) -> str:
    """Return a token's text with signs for what cannot be seen, and their codes where none exist.

    Spaces inside stay spaces. A token that begins with a combining mark gets a circle to carry it.
    """
    if not token:
        return "\u2205"
    text = re.sub("\r\n|[\r\n\t]", lambda match: _SIGNS[match[0]], token)
    text = _HIDDEN.sub(lambda match: f"\u27e8{ord(match[0]):02X}\u27e9", text)
    if not text.strip("\u200c\u200d"):
        text = "".join(f"\u27e8{ord(letter):02X}\u27e9" for letter in text)
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    after = len(text) - before - len(inner)
    if inner and unicodedata.category(inner[0]).startswith("M"):
        inner = "\u25cc" + inner
    return SPACE * before + inner + SPACE * after
