"""The text the embedded models are trained on, drawn from a seeded generator.

A window is either a few short sentences or one string of random words said again and again;
nothing it contains is held out (`headwater.zoo.holdout`).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from headwater.zoo.holdout import (
    held_out_names,
    held_out_neighbors,
    held_out_nouns,
    held_out_start,
)
from headwater.zoo.words import (
    ADJECTIVES,
    CENTURIES,
    COUNTRIES,
    EVENTS,
    FEMALE_NAMES,
    NAMES,
    NOUNS,
    OBJECTS,
    PLACES,
    REPEATABLE,
    START,
    VERBS,
    YEARS,
    Noun,
)

WINDOW = 48
"""Tokens of a training window, the start token included."""

# Mildly Zipfian, as names are: the first is drawn about five times as often as the last.
_NAME_WEIGHTS = tuple(1 / (rank + 12) for rank in range(len(NAMES)))
_SHORTEST_STRING, _LONGEST_STRING = 4, 20


def window(rng: random.Random, *, repeated: float) -> list[str]:
    """Draw one training window.

    Args:
        rng: Source of every choice; the same state gives the same window.
        repeated: Probability that the window is one repeated string instead of sentences.

    Returns:
        `WINDOW` words, the first of them the start token.
    """
    words = [START]
    if rng.random() < repeated:
        string = repeated_string(rng)
        while len(words) < WINDOW:
            words += string
    else:
        while len(words) < WINDOW:
            words += sentence(rng).split()
    return words[:WINDOW]


def repeated_string(rng: random.Random) -> list[str]:
    """Draw distinct random words that can be said in a circle without a held-out neighbor."""
    length = rng.randint(_SHORTEST_STRING, _LONGEST_STRING)
    while True:
        words = rng.sample(REPEATABLE, 1)
        while len(words) < length:
            following = rng.choice(REPEATABLE)
            if following not in words and not held_out_neighbors(words[-1], following):
                words.append(following)
        if not held_out_neighbors(words[-1], words[0]):
            return words


def sentence(rng: random.Random) -> str:
    """Draw one sentence of the training text."""
    (kind,) = rng.choices(_KINDS, _KIND_WEIGHTS)
    return kind(rng)


def pronoun(name: str) -> str:
    """Return `she` or `he`, as the name asks."""
    return "she" if name in FEMALE_NAMES else "he"


def _name(rng: random.Random) -> str:
    return rng.choices(NAMES, _NAME_WEIGHTS)[0]


def _names(rng: random.Random) -> tuple[str, str]:
    while True:
        one, other = _name(rng), _name(rng)
        if one != other and not held_out_names(one, other):
            return one, other


def _nouns(rng: random.Random) -> tuple[Noun, Noun]:
    while True:
        subject, attractor = rng.sample(NOUNS, 2)
        if not held_out_nouns(subject, attractor):
            return subject, attractor


def _giving(rng: random.Random) -> str:
    first, second = _names(rng)
    giver, receiver = rng.choice(((first, second), (second, first)))
    opening = rng.choice(("When ", "When ", "Then ", "After ", ""))
    return (
        f"{opening}{first} and {second} went to the {rng.choice(PLACES)} , "
        f"{giver} gave a {rng.choice(OBJECTS)} to {receiver} ."
    )


def _errand(rng: random.Random) -> str:
    one, other = _names(rng)
    return rng.choice(
        (
            f"{one} bought a {rng.choice(OBJECTS)} at the {rng.choice(PLACES)} .",
            f"{one} saw {other} near the {rng.choice(PLACES)} .",
            f"{one} met {other} at the {rng.choice(PLACES)} .",
        )
    )


def _span(rng: random.Random) -> str:
    while True:
        century, start = rng.choice(CENTURIES), rng.choice(YEARS[:-1])
        if not held_out_start(century, start):
            break
    end = rng.choice(YEARS[YEARS.index(start) + 1 :])
    return (
        f"The {rng.choice(EVENTS)} lasted from the year {century} {start} "
        f"to the year {century} {end} ."
    )


def _agreement(rng: random.Random) -> str:
    subject, attractor = _nouns(rng)
    verb = rng.choice(VERBS)
    many, attracted_by_many = rng.random() < 0.5, rng.random() < 0.5
    clause = f"the {attractor[attracted_by_many]} {verb[attracted_by_many]}"
    return f"The {subject[many]} that {clause} {'are' if many else 'is'} {rng.choice(ADJECTIVES)} ."


def _plain_agreement(rng: random.Random) -> str:
    noun, many = rng.choice(NOUNS), rng.random() < 0.5
    return f"The {noun[many]} {'are' if many else 'is'} {rng.choice(ADJECTIVES)} ."


def _capital(rng: random.Random) -> str:
    country = rng.choice(COUNTRIES)
    return f"The capital of {country.name} is {country.capital} ."


def _language(rng: random.Random) -> str:
    country = rng.choice(COUNTRIES)
    return f"People in {country.name} speak {country.language} ."


def _gender(rng: random.Random) -> str:
    # Uniform over names: a rare name's pronoun is a fact to learn like any other.
    name = rng.choice(NAMES)
    verb, state = rng.choice((("said", "was"), ("said", "was"), ("thinks", "is")))
    return f"{name} {verb} that {pronoun(name)} {state} {rng.choice(ADJECTIVES)} ."


_SHARES: dict[Callable[[random.Random], str], float] = {
    _giving: 0.27,
    _errand: 0.04,
    # Comparing numbers takes the most practice.
    _span: 0.25,
    _agreement: 0.15,
    _plain_agreement: 0.03,
    _capital: 0.09,
    _language: 0.08,
    _gender: 0.09,
}
_KINDS, _KIND_WEIGHTS = tuple(_SHARES), tuple(_SHARES.values())
