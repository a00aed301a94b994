"""Find the user's line: the nearest frame that is neither ours nor a type checker's wrapper."""

from __future__ import annotations

import sys
from types import FrameType

_SKIPPED = frozenset({"headwater", "jaxtyping", "beartype"})


def user_frame() -> FrameType:
    """The frame of the user's code that called headwater.

    Returns:
        The nearest frame outside of headwater; the outermost one if there is none.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame):
        frame = frame.f_back
    return frame


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return name.partition(".")[0] in _SKIPPED or frame.f_code.co_filename.startswith("<@beartype")
