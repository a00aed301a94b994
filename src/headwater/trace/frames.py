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
    while (back := frame.f_back) is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in _SKIPPED and not frame.f_code.co_filename.startswith("<@beartype"):
            break
        frame = back
    return frame
