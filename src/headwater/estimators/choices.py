"""Options that are one of a few words."""

from __future__ import annotations

from collections.abc import Mapping

from headwater.errors import UnknownOptionError, did_you_mean


def refuse_unknown(chosen: object, known: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse a word that an option does not know; the closest one is named.

    Args:
        chosen: What has the options as its attributes.
        known: The words of each option.

    Raises:
        UnknownOptionError: Naming the option, what was given, and the words it knows.
    """
    for option, words in known.items():
        given = getattr(chosen, option)
        if given not in words:
            raise UnknownOptionError(
                f"{option}={given!r} is unknown.{did_you_mean(str(given), words)}\n"
                f"Write one of {', '.join(map(repr, words))}."
            )
