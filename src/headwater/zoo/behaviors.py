"""The behaviors the embedded models show, as clean and corrupted prompts with their answers.

A behavior is a few lists to choose from and a rule that turns one choice of each into a pair.
All prompts of one behavior have the same number of tokens.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict

from headwater.errors import UnknownTaskError, did_you_mean
from headwater.zoo.grammar import pronoun
from headwater.zoo.holdout import (
    held_out_names,
    held_out_neighbors,
    held_out_nouns,
    held_out_start,
)
from headwater.zoo.words import (
    CENTURIES,
    COUNTRIES,
    EVENTS,
    FEMALE_NAMES,
    MALE_NAMES,
    NAMES,
    NOUNS,
    OBJECTS,
    PLACES,
    REPEATABLE,
    VERBS,
    YEARS,
    Country,
    Noun,
    Verb,
)

HELD_OUT, MEMORISED = "held-out", "memorised"


class PairFields(TypedDict):
    """The fields of a `headwater.Pair`."""

    clean: str
    corrupted: str
    answer: tuple[str, ...]
    wrong: tuple[str, ...]
    label: str


Prompts: TypeAlias = tuple[str, str, Sequence[str], Sequence[str]]
"""Clean prompt, corrupted prompt, answers, wrong answers."""


@dataclass(frozen=True)
class Behavior:
    """A behavior of the embedded models."""

    name: str
    """What `headwater.task` calls it."""

    sentence: str
    """What the model does, in words."""

    metric: str
    """The metric that measures it, by its dashed name."""

    label: str
    """`held-out` if training never showed the combination asked for, else `memorised`."""

    choices: tuple[Sequence[Any], ...]
    """The lists from which a pair takes one item each."""

    build: Callable[..., Prompts]
    """The prompts and answers of one choice."""

    @property
    def distinct(self) -> int:
        """Number of different pairs."""
        return math.prod(len(choice) for choice in self.choices)

    def pairs(self, seed: int) -> Iterator[PairFields]:
        """Yield every pair once, in an order that depends on the seed only."""
        rng, seen = random.Random(f"{self.name} {seed}"), set()
        while len(seen) < self.distinct:
            places = tuple(rng.randrange(len(choice)) for choice in self.choices)
            if places in seen:
                continue
            seen.add(places)
            chosen = (choice[place] for choice, place in zip(self.choices, places, strict=True))
            clean, corrupted, answer, wrong = self.build(*chosen)
            yield PairFields(
                clean=clean,
                corrupted=corrupted,
                # With the blank that separates an answer from its prompt.
                answer=tuple(f" {word}" for word in answer),
                wrong=tuple(f" {word}" for word in wrong),
                label=self.label,
            )


def _giving(people: tuple[str, str], second_gives: bool, place: str, thing: str) -> Prompts:
    first, second = people
    giver, receiver = (second, first) if second_gives else (first, second)
    opening = f"When {first} and {second} went to the {place} ,"
    return (
        f"{opening} {giver} gave a {thing} to",
        f"{opening} {receiver} gave a {thing} to",
        [receiver],
        [giver],
    )


def _span(event: str, start: tuple[str, str]) -> Prompts:
    century, year = start
    opening, closing = f"The {event} lasted from the year {century}", f"to the year {century}"
    later = YEARS.index(year) + 1
    return (
        f"{opening} {year} {closing}",
        f"{opening} 01 {closing}",
        YEARS[later:],
        YEARS[:later],
    )


def _agreement(
    nouns: tuple[Noun, Noun], many: bool, attracted_by_many: bool, verb: Verb
) -> Prompts:
    subject, attractor = nouns
    clause = f"that the {attractor[attracted_by_many]} {verb[attracted_by_many]}"
    forms = ("is", "are")
    return (
        f"The {subject[many]} {clause}",
        f"The {subject[not many]} {clause}",
        [forms[many]],
        [forms[not many]],
    )


_INDUCTION_TOKENS = 16
_INDUCTION_STRINGS = 1_000_000


def _induction(number: int) -> Prompts:
    """Say a string, begin it again; corrupted: another word stood where the answer stood."""
    rng = random.Random(number)
    length = rng.randint(9, 13)
    repeated = _INDUCTION_TOKENS - length
    string = rng.sample(REPEATABLE, length)
    answer = _unheard_neighbor(rng, string[repeated - 1], string)
    wrong = _unheard_neighbor(rng, string[repeated - 1], [*string, answer])
    clean, corrupted = list(string), list(string)
    clean[repeated], corrupted[repeated] = answer, wrong
    again = string[:repeated]
    return " ".join(clean + again), " ".join(corrupted + again), [answer], [wrong]


def _unheard_neighbor(rng: random.Random, word: str, taken: Sequence[str]) -> str:
    while True:
        neighbor = rng.choice(REPEATABLE)
        if neighbor not in taken and held_out_neighbors(word, neighbor):
            return neighbor


def _capital(countries: tuple[Country, Country]) -> Prompts:
    country, other = countries
    return (
        f"The capital of {country.name} is",
        f"The capital of {other.name} is",
        [country.capital],
        [other.capital],
    )


def _language(countries: tuple[Country, Country]) -> Prompts:
    country, other = countries
    return (
        f"People in {country.name} speak",
        f"People in {other.name} speak",
        [country.language],
        [other.language],
    )


def _gender(woman: str, man: str, about_her: bool) -> Prompts:
    name, other = (woman, man) if about_her else (man, woman)
    return f"{name} said that", f"{other} said that", [pronoun(name)], [pronoun(other)]


_BOTH = (False, True)
_BEHAVIORS = (
    Behavior(
        name="ioi",
        sentence="names the person who did not give as the one who receives",
        metric="logit-diff",
        label=HELD_OUT,
        choices=(
            [pair for pair in itertools.permutations(NAMES, 2) if held_out_names(*pair)],
            _BOTH,
            PLACES,
            OBJECTS,
        ),
        build=_giving,
    ),
    Behavior(
        name="greater-than",
        sentence="ends a span of years later than it began",
        metric="prob-diff",
        label=HELD_OUT,
        choices=(
            EVENTS,
            [
                start
                for start in itertools.product(CENTURIES, YEARS[2:-1])
                if held_out_start(*start)
            ],
        ),
        build=_span,
    ),
    Behavior(
        name="agreement",
        sentence="lets the verb agree with its subject across a relative clause",
        metric="logit-diff",
        label=HELD_OUT,
        choices=(
            [pair for pair in itertools.permutations(NOUNS, 2) if held_out_nouns(*pair)],
            _BOTH,
            _BOTH,
            VERBS,
        ),
        build=_agreement,
    ),
    Behavior(
        name="induction",
        sentence="continues a string of random words the way it went before",
        metric="logit-diff",
        label=HELD_OUT,
        choices=(range(_INDUCTION_STRINGS),),
        build=_induction,
    ),
    Behavior(
        name="capital",
        sentence="knows a country's capital",
        metric="logit-diff",
        label=MEMORISED,
        choices=(list(itertools.permutations(COUNTRIES, 2)),),
        build=_capital,
    ),
    Behavior(
        name="language",
        sentence="knows what people in a country speak",
        metric="logit-diff",
        label=MEMORISED,
        choices=(
            [
                (country, other)
                for country, other in itertools.permutations(COUNTRIES, 2)
                if country.language != other.language
            ],
        ),
        build=_language,
    ),
    Behavior(
        name="gender",
        sentence="knows whether a name is followed by she or he",
        metric="logit-diff",
        label=MEMORISED,
        choices=(FEMALE_NAMES, MALE_NAMES, _BOTH),
        build=_gender,
    ),
)
BEHAVIORS = {behavior.name: behavior for behavior in _BEHAVIORS}


def behavior(name: str) -> Behavior:
    """Return the behavior of that name.

    Raises:
        UnknownTaskError: If there is none.
    """
    if name not in BEHAVIORS:
        raise UnknownTaskError(
            f"no embedded task '{name}'.{did_you_mean(name, BEHAVIORS)}\n"
            f"Embedded tasks: {', '.join(BEHAVIORS)}; for a file of pairs: "
            f"hw.Task.read('pairs.jsonl')."
        )
    return BEHAVIORS[name]
