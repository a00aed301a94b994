"""Biased classification tasks that the embedded models know the words of, drawn from a seed.

In the biased set a label and a spurious attribute go together, in the balanced set neither tells
the other; a classifier trained on the first can have learned either.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from headwater.errors import PromptError, UnknownTaskError, did_you_mean
from headwater.shifts.examples import Example, Examples
from headwater.zoo.words import (
    COUNTRIES,
    FEMALE_NAMES,
    MALE_NAMES,
    NAMES,
    NOUNS,
    OBJECTS,
    PLACES,
    VERBS,
)

_BOTH = (False, True)
_TRIES = 200
"""Draws of a text that is new before there are taken to be no more."""


@dataclass(frozen=True)
class BiasedTask:
    """What is to be told, what goes along with it, and how a text is made of both."""

    name: str
    sentence: str
    """What the label and the spurious attribute are, in words."""
    labels: tuple[str, str]
    attributes: tuple[str, str]
    """The one that goes with each label in the biased set."""
    build: Callable[[random.Random, bool, bool], str]
    """A text of the second label or the first, with the second attribute or the first."""


def biased(
    name: str, count: int = 400, seed: int = 0, *, bias: float = 1.0
) -> tuple[Examples, Examples]:
    """Draw a biased and a balanced set of texts for a classifier.

    Args:
        name: `gender-by-number`, `number-by-gender`, `subject-by-attractor` or
            `language-by-gender`: the label, and what goes along with it.
        count: Texts of each set.
        seed: Which texts.
        bias: How often the label and its attribute go together in the biased set, from 0.5 (as
            often as not) to 1 (always).

    Returns:
        The biased and the balanced set. Both classes are equally frequent in both, the four groups
        in the balanced one; no text occurs twice.

    Raises:
        UnknownTaskError: If there is no task of that name.
        PromptError: If `count` is not a multiple of 4, or more than there are texts, or `bias` has
            no meaning.

    Example:
        >>> from headwater.zoo.biased import biased
        >>> some, balanced = biased("gender-by-number", count=8)
        >>> sorted({row.group for row in some})
        [('female', 'plural'), ('male', 'singular')]
    """
    if name not in BIASED:
        raise UnknownTaskError(
            f"no biased task '{name}'.{did_you_mean(name, BIASED)}\n"
            f"Biased tasks: {', '.join(BIASED)}; files of your own: "
            "hw.Examples.read('biased.jsonl')."
        )
    if count < 4 or count % 4:
        raise PromptError(
            f"count={count}: the balanced set has as many texts of each of its four groups.\n"
            f"Type count={max(4, count - count % 4)}."
        )
    if not 0.5 <= bias <= 1:
        raise PromptError(
            f"bias={bias} is no share from 0.5 (label and attribute are independent) to 1.\n"
            "Type bias=1.0."
        )
    task, taken = BIASED[name], set[str]()
    rng = random.Random(f"{name} {seed}")
    balanced = [
        _row(task, rng, label, attribute, taken)
        for _ in range(count // 4)
        for label in _BOTH
        for attribute in _BOTH
    ]
    half = count // 2
    together = round(bias * half)
    rows = [
        _row(task, rng, label, label if place < together else not label, taken)
        for place in range(half)
        for label in _BOTH
    ]
    rng.shuffle(rows)
    source = f"embedded, seed {seed}"
    return (
        Examples(rows, name=name, source=f"{source}, bias {bias:g}"),
        Examples(balanced, name=f"{name}, balanced", source=source),
    )


def _row(
    task: BiasedTask, rng: random.Random, label: bool, attribute: bool, taken: set[str]
) -> Example:
    for _ in range(_TRIES):
        text = task.build(rng, label, attribute)
        if text not in taken:
            taken.add(text)
            return Example(text, task.labels[label], task.attributes[attribute])
    raise PromptError(
        f"biased task '{task.name}' has no more than {len(taken):,} texts or so.\n"
        "Ask for a smaller count."
    )


def _errand(rng: random.Random, is_woman: bool) -> str:
    name = rng.choice(FEMALE_NAMES if is_woman else MALE_NAMES)
    return f"{name} bought a {rng.choice(OBJECTS)} at the {rng.choice(PLACES)} ."


def _clause(rng: random.Random, many: bool, attracted_by_many: bool) -> str:
    subject, attractor = rng.sample(NOUNS, 2)
    verb = rng.choice(VERBS)[attracted_by_many]
    return f"The {subject[many]} that the {attractor[attracted_by_many]} {verb}"


def _number_by_gender(rng: random.Random, many: bool, is_woman: bool) -> str:
    return f"{_errand(rng, is_woman)} {_clause(rng, many, rng.random() < 0.5)}"


def _gender_by_number(rng: random.Random, is_woman: bool, many: bool) -> str:
    return _number_by_gender(rng, many, is_woman)


def _language_by_gender(rng: random.Random, romance: bool, is_woman: bool) -> str:
    name = rng.choice(FEMALE_NAMES if is_woman else MALE_NAMES)
    other = rng.choice([one for one in NAMES if one != name])
    spoken = ("French", "Spanish")
    country = rng.choice([one.name for one in COUNTRIES if (one.language in spoken) == romance])
    return f"{name} saw {other} near the {rng.choice(PLACES)} . People in {country}"


def _tasks() -> Iterator[BiasedTask]:
    number, gender = ("singular", "plural"), ("male", "female")
    yield BiasedTask(
        "gender-by-number",
        "whether a woman or a man is named first; beside it whether the last subject is plural",
        gender,
        number,
        _gender_by_number,
    )
    yield BiasedTask(
        "number-by-gender",
        "whether the last subject is plural; beside it whether a woman or a man is named first",
        number,
        gender,
        _number_by_gender,
    )
    yield BiasedTask(
        "subject-by-attractor",
        "whether a subject is plural; beside it whether the noun of its relative clause is",
        number,
        number,
        _clause,
    )
    yield BiasedTask(
        "language-by-gender",
        "whether French or Spanish is spoken; beside it whether a woman or a man is named first",
        ("other", "romance"),
        gender,
        _language_by_gender,
    )


BIASED = {task.name: task for task in _tasks()}
