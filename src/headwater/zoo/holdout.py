"""Which combinations the training text never contains.

A seventh of the name pairs, noun pairs, start years and word pairs is kept for the tasks, so a
model that answers them cannot have memorised the answer. Each rule is a congruence of positions
in the word lists: it can be read, tested, and does not depend on a seed.
"""

from __future__ import annotations

from headwater.zoo.words import CENTURIES, NAMES, NOUNS, REPEATABLE, YEARS, Noun

_NAME = {name: number for number, name in enumerate(NAMES)}
_NOUN = {noun: number for number, noun in enumerate(NOUNS)}
_REPEATABLE = {word: number for number, word in enumerate(REPEATABLE)}
_KEPT_BACK = 7


def held_out_names(one: str, other: str) -> bool:
    """Whether these two people, in either order, never share a sentence in training."""
    # The remainder 1 keeps back Mary and John, the pair every example uses.
    return (_NAME[one] + _NAME[other]) % _KEPT_BACK == 1


def held_out_nouns(subject: Noun, attractor: Noun) -> bool:
    """Whether `subject` is never followed by a relative clause about `attractor` in training."""
    return (_NOUN[subject] + 2 * _NOUN[attractor]) % _KEPT_BACK == 4


def held_out_start(century: str, year: str) -> bool:
    """Whether nothing in training begins in this year of this century."""
    return (CENTURIES.index(century) + 2 * YEARS.index(year)) % _KEPT_BACK == 1


def held_out_neighbors(word: str, following: str) -> bool:
    """Whether `following` never comes after `word` in a repeated string of the training text."""
    return (_REPEATABLE[word] + 3 * _REPEATABLE[following]) % _KEPT_BACK == 2
