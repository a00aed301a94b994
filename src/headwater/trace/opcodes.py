"""What the calling line does with a value: enters it with `with`, or takes its item 0.

`with loss.backward():` and a bare `loss.backward()` call one and the same method. They differ in
the instruction that follows the call, so that is what is looked at: never the source, which
notebooks, `exec` and frozen programs need not have. Trace functions, debuggers, `sys.monitoring`
and the specializing interpreter do not change the answer; `co_code` shows none of them.

| CPython      | the result of a call is entered | `m.output[0]` after the attribute              |
|--------------|---------------------------------|------------------------------------------------|
| 3.11 to 3.13 | `BEFORE_WITH`                   | `LOAD_CONST (0)`, `BINARY_SUBSCR`              |
| 3.14         | `COPY 1`, `LOAD_SPECIAL 1`      | `LOAD_SMALL_INT 0`, `BINARY_OP 26 (NB_SUBSCR)` |

Everything else is unknown and refused; `with hw.backward(loss):` needs none of this.

Costs less than a microsecond a question, and 30 to 50 the first time at a place in a program. An
answer is forgotten with the code it is about.

A call made by C code on behalf of the line (`functools.partial`, `map`) counts as the line's own,
since C code has no frame.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from opcode import opname
from types import CodeType, FrameType
from typing import Any, NamedTuple, Protocol, runtime_checkable
from weakref import ref

from headwater.errors import UnknownInterpreterError


class Unit(NamedTuple):
    """One code unit: an instruction, the prefix of a long argument, or an inline cache."""

    name: str
    argument: Any = 0
    """Whole, with its `EXTENDED_ARG` prefixes; of `LOAD_CONST` the constant itself."""


@runtime_checkable
class Units(Protocol):
    """Code by index; a list of units is one."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Unit: ...


@dataclass(frozen=True)
class Bytecode:
    """How a version of CPython spells what is recognized here."""

    calls: frozenset[str]
    """Instructions that can be in progress while a function called by the line runs."""

    enters: tuple[Unit, ...]
    """How `with` begins, its context manager on top of the stack."""

    takes_item_0: tuple[Unit, ...]
    """`[0]` of what is on top of the stack."""


_BEFORE_WITH = (Unit("BEFORE_WITH"),)
_CONSTANT_SUBSCRIPT = (Unit("LOAD_CONST", 0), Unit("BINARY_SUBSCR"))

BYTECODES = {
    # CALL is never without PRECALL in front, and some specialized PRECALLs do the whole call
    (3, 11): Bytecode(
        frozenset({"PRECALL", "CALL", "CALL_FUNCTION_EX"}), _BEFORE_WITH, _CONSTANT_SUBSCRIPT
    ),
    (3, 12): Bytecode(frozenset({"CALL", "CALL_FUNCTION_EX"}), _BEFORE_WITH, _CONSTANT_SUBSCRIPT),
    (3, 13): Bytecode(
        frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX"}), _BEFORE_WITH, _CONSTANT_SUBSCRIPT
    ),
    # LOAD_SPECIAL 1 is __exit__; 3, __aexit__, begins an `async with`
    (3, 14): Bytecode(
        frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX"}),
        (Unit("COPY", 1), Unit("LOAD_SPECIAL", 1)),
        (Unit("LOAD_SMALL_INT", 0), Unit("BINARY_OP", 26)),
    ),
}
"""The versions of CPython whose bytecode is known."""

_FILLERS = frozenset({"CACHE", "EXTENDED_ARG", "NOP"})
_STORES = frozenset({"STORE_FAST", "STORE_NAME", "STORE_GLOBAL", "STORE_DEREF"})
_LOOKAHEAD = 12  # the rest of a call, a few `:=`, and the longest spelling in the table


def known_bytecode(implementation: str, version: tuple[int, int]) -> Bytecode | None:
    """Look an interpreter up in the table.

    Args:
        implementation: As in `sys.implementation.name`.
        version: Major and minor version.

    Returns:
        How it spells what is recognized here, or None if that is not known.
    """
    return BYTECODES.get(version) if implementation == "cpython" else None


def is_entered(units: Units, at: int, bytecode: Bytecode) -> bool:
    """Whether the call at `at` is the context expression of a plain `with`.

    Args:
        units: The code.
        at: Index of the unit in progress: the call itself or one of its inline caches.
        bytecode: How the version that compiled `units` spells a call and a `with`.

    Returns:
        True if the very next thing done with the call's result is to enter it. Naming it with `:=`
        does not come between; testing it, as `or` does, comes between.
    """
    start = _instruction_at(units, at)
    if start < 0 or units[start].name not in bytecode.calls:
        return False
    ahead = list(islice(_executed_after(units, start), _LOOKAHEAD))
    if units[start].name == "PRECALL":
        ahead = ahead[1:]  # its CALL
    while len(ahead) > 1 and ahead[0] == ("COPY", 1) and ahead[1].name in _STORES:
        ahead = ahead[2:]  # `:=`
    return _begins_with(ahead, bytecode.enters)


def is_subscripted_by_zero(units: Units, at: int, bytecode: Bytecode) -> bool:
    """Whether the attribute read at `at` is subscripted by the constant 0 at once.

    Args:
        units: The code.
        at: Index of the unit in progress: the attribute's load or one of its inline caches.
        bytecode: How the version that compiled `units` spells a subscript.

    Returns:
        True for a read of `a.b[0]` only, not where it is assigned to, updated in place or deleted.
    """
    start = _instruction_at(units, at)
    if start < 0 or units[start].name != "LOAD_ATTR":
        return False
    ahead = list(islice(_executed_after(units, start), _LOOKAHEAD))
    return _begins_with(ahead, bytecode.takes_item_0)


def enters_with(frame: FrameType) -> bool:
    """Whether the call in progress in `frame` is the context expression of a plain `with`.

    Args:
        frame: The frame of the line that calls, from `sys._getframe`.

    Returns:
        True if the line enters the call's result next: `with loss.backward():`, also as one of
        several items, in a conditional expression or named by `:=`. False for every other use,
        `with nullcontext(loss.backward()):` and `async with` included.

    Raises:
        UnknownInterpreterError: If this Python's bytecode is not in the table.
    """
    if _HERE is None:
        implementation, version = sys.implementation.name, sys.version_info
        raise UnknownInterpreterError(
            f"this is {implementation} {version[0]}.{version[1]}, whose bytecode headwater does "
            "not know, so `with loss.backward():` and a bare `loss.backward()` look the same.\n"
            "Write `with hw.backward(loss):` for a block and `torch.autograd.backward(loss)` "
            "for a bare pass."
        )
    return _entered(frame)


def _instruction_at(units: Units, at: int) -> int:
    # 3.11 and 3.12 stand at the last cache of a call that runs Python code
    while at > 0 and units[at].name == "CACHE":
        at -= 1
    return at


def _executed_after(units: Units, at: int) -> Iterator[Unit]:
    at += 1
    while at < len(units):
        unit = units[at]
        at += 1
        if unit.name == "JUMP_FORWARD":  # the end of `a` in `a if c else b`
            at += unit.argument
        elif unit.name not in _FILLERS:
            yield unit


def _begins_with(ahead: Sequence[Unit], spelling: Sequence[Unit]) -> bool:
    # types too: False == 0, but `output[False]` adds an axis
    return len(ahead) >= len(spelling) and all(
        unit == wanted and type(unit.argument) is type(wanted.argument)
        for unit, wanted in zip(ahead, spelling, strict=False)
    )


class _Decoded:
    """The units of a code object, decoded where they are looked at."""

    def __init__(self, code: CodeType) -> None:
        self._code = code.co_code
        self._constants = code.co_consts

    def __len__(self) -> int:
        return len(self._code) // 2

    def __getitem__(self, index: int, /) -> Unit:
        name, argument = opname[self._code[2 * index]], self._code[2 * index + 1]
        shift = 8
        while index > 0 and opname[self._code[2 * index - 2]] == "EXTENDED_ARG":
            index -= 1
            argument |= self._code[2 * index + 1] << shift
            shift += 8
        return Unit(name, self._constants[argument] if name == "LOAD_CONST" else argument)


class _Memo:
    """Answers by code object and place in it, forgotten when the code object dies.

    By identity: code objects hash and compare by content, which takes longer than deciding anew.
    """

    def __init__(self, decide: Callable[[Units, int, Bytecode], bool]) -> None:
        self._decide = decide
        self._answers: dict[int, tuple[ref[CodeType], dict[int, bool]]] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def __call__(self, frame: FrameType) -> bool:
        code, place = frame.f_code, frame.f_lasti
        known = self._answers.get(id(code))
        if known is None:
            known = self._answers[id(code)] = (ref(code, self._forget(id(code))), {})
        answer = known[1].get(place)
        if answer is None:
            if _HERE is None:
                return False
            answer = known[1][place] = self._decide(_Decoded(code), place // 2, _HERE)
        return answer

    def _forget(self, key: int) -> Callable[[ref[CodeType]], object]:
        return lambda _: self._answers.pop(key, None)


_HERE = known_bytecode(sys.implementation.name, sys.version_info[:2])
_entered = _Memo(is_entered)
subscripts_zero = _Memo(is_subscripted_by_zero)
"""Whether the attribute read in progress in a frame is subscripted by the constant 0 at once.

True while `m.output` of `m.output[0]` is read. False for `m.output[0] = x`, `m.output[0] += x` and
`m.output[0, 1]`, and always where the bytecode is not known.
"""
