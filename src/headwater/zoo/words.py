"""The words the embedded models know, by what they can stand for.

Every word of every embedded task, and of every prompt in the documentation, is in `VOCABULARY`;
its order is the order of the token ids.
"""

from __future__ import annotations

from typing import NamedTuple

PADDING, UNKNOWN, START = "[PAD]", "[UNK]", "[BOS]"
SPECIAL = (PADDING, UNKNOWN, START)


class Country(NamedTuple):
    """A country with the two facts the models learn about it."""

    name: str
    capital: str
    language: str


class Noun(NamedTuple):
    """A person's role in both numbers."""

    singular: str
    plural: str


class Verb(NamedTuple):
    """A present-tense verb in both numbers of its subject."""

    singular: str
    plural: str


FEMALE_NAMES = (
    *("Mary", "Vera", "Alice", "Anna", "Clara", "Diana", "Ella", "Emma"),
    *("Grace", "Helen", "Julia", "Karen", "Laura", "Linda", "Lucy", "Nancy"),
    *("Nora", "Olivia", "Rachel", "Rose", "Ruth", "Sarah", "Sophie", "Susan"),
)
MALE_NAMES = (
    *("John", "Adam", "Alan", "Ben", "Carl", "Daniel", "David", "Frank"),
    *("George", "Henry", "Jack", "James", "Kevin", "Leo", "Luke", "Mark"),
    *("Martin", "Nick", "Paul", "Peter", "Robert", "Simon", "Thomas", "Walter"),
)
# Alternating, so that common and rare names (training draws early ones more often) are of both
# genders.
NAMES = tuple(name for both in zip(FEMALE_NAMES, MALE_NAMES, strict=True) for name in both)

OBJECTS = (
    *("ring", "drink", "book", "ball", "cup", "hat", "key", "lamp"),
    *("letter", "map", "pen", "phone", "ticket", "bag", "flower"),
)
PLACES = (
    *("store", "park", "school", "beach", "river", "market"),
    *("station", "library", "garden", "museum", "theater", "harbor"),
)
NOUNS = tuple(
    Noun(singular, singular + "s")
    for singular in (
        *("boy", "girl", "teacher", "doctor", "farmer", "baker", "singer", "driver"),
        *("writer", "painter", "lawyer", "nurse", "pilot", "sailor", "student", "king"),
    )
)
VERBS = tuple(Verb(plural + "s", plural) for plural in ("like", "know", "help", "admire"))
ADJECTIVES = ("happy", "tired", "young", "kind", "busy", "late")
EVENTS = ("war", "journey", "trial", "project", "strike", "siege", "voyage", "debate")
YEARS = tuple(f"{year:02d}" for year in range(100))
CENTURIES = YEARS[10:20]
COUNTRIES = (
    Country("France", "Paris", "French"),
    Country("Senegal", "Dakar", "French"),
    Country("Togo", "Lome", "French"),
    Country("Gabon", "Libreville", "French"),
    Country("Spain", "Madrid", "Spanish"),
    Country("Peru", "Lima", "Spanish"),
    Country("Chile", "Santiago", "Spanish"),
    Country("Cuba", "Havana", "Spanish"),
    Country("Colombia", "Bogota", "Spanish"),
    Country("Ecuador", "Quito", "Spanish"),
    Country("Venezuela", "Caracas", "Spanish"),
    Country("Germany", "Berlin", "German"),
    Country("Austria", "Vienna", "German"),
    Country("Italy", "Rome", "Italian"),
    Country("Portugal", "Lisbon", "Portuguese"),
    Country("Brazil", "Brasilia", "Portuguese"),
    Country("Angola", "Luanda", "Portuguese"),
    Country("Egypt", "Cairo", "Arabic"),
    Country("Morocco", "Rabat", "Arabic"),
    Country("Iraq", "Baghdad", "Arabic"),
    Country("Jordan", "Amman", "Arabic"),
    Country("Syria", "Damascus", "Arabic"),
    Country("Tunisia", "Tunis", "Arabic"),
    Country("Canada", "Ottawa", "English"),
    Country("Australia", "Canberra", "English"),
    Country("Ireland", "Dublin", "English"),
    Country("Jamaica", "Kingston", "English"),
    Country("Russia", "Moscow", "Russian"),
    Country("China", "Beijing", "Chinese"),
    Country("Japan", "Tokyo", "Japanese"),
    Country("Greece", "Athens", "Greek"),
    Country("Cyprus", "Nicosia", "Greek"),
    Country("Sweden", "Stockholm", "Swedish"),
    Country("Norway", "Oslo", "Norwegian"),
    Country("Denmark", "Copenhagen", "Danish"),
    Country("Poland", "Warsaw", "Polish"),
    Country("Turkey", "Ankara", "Turkish"),
    Country("Iran", "Tehran", "Persian"),
    Country("Kenya", "Nairobi", "Swahili"),
    Country("Tanzania", "Dodoma", "Swahili"),
)
LANGUAGES = tuple(dict.fromkeys(country.language for country in COUNTRIES))

PUNCTUATION = (",", ".")
FUNCTION_WORDS = (
    *("The", "the", "a", "and", "to", "of", "in", "at", "from", "that", "near"),
    *("When", "Then", "After", "People", "went", "gave", "saw", "bought", "met", "was", "is"),
    *("are", "said", "thinks", "she", "he", "capital", "speak", "lasted", "year"),
)


def _every_word() -> tuple[str, ...]:
    return (
        *PUNCTUATION,
        *FUNCTION_WORDS,
        *NAMES,
        *OBJECTS,
        *PLACES,
        *(form for noun in NOUNS for form in noun),
        *(form for verb in VERBS for form in verb),
        *ADJECTIVES,
        *EVENTS,
        *(country.name for country in COUNTRIES),
        *(country.capital for country in COUNTRIES),
        *LANGUAGES,
        *YEARS,
    )


WORDS = _every_word()
VOCABULARY = SPECIAL + WORDS
# What a repeated string is made of: a repeated comma would be ambiguous with sentences.
REPEATABLE = tuple(word for word in WORDS if word not in PUNCTUATION)
