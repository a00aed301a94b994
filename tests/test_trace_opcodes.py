"""Answers are the same on every CPython in the table, however the code is run."""

import gc
import inspect
import json
import os
import shutil
import subprocess
import sys
import weakref
from opcode import opmap
from pathlib import Path
from textwrap import dedent

import pytest

from headwater.errors import TraceError, UnknownInterpreterError
from headwater.trace import opcodes
from headwater.trace.opcodes import (
    BYTECODES,
    Unit,
    enters_with,
    is_entered,
    is_subscripted_by_zero,
    known_bytecode,
    subscripts_zero,
)

SOURCE = Path(opcodes.__file__).parents[2]
# so many that the 0 after them has an EXTENDED_ARG before 3.14
DISTINCT = ", ".join(str(index + 0.5) for index in range(300))
MANY = ", ".join(f"n{index}=0" for index in range(300))

# name, code, the answers in the order of the calls of `.backward` and reads of `.output` in it
CASES = [
    ("plain", "with loss.backward(): pass", [True]),
    ("one line body", "with loss.backward(): x = 1", [True]),
    ("as", "with loss.backward() as g: g", [True]),
    ("as a tuple", "with loss.backward() as (p, q): pass", [True]),
    ("as an attribute", "with loss.backward() as m.place: pass", [True]),
    ("as an item", "with loss.backward() as m[0]: pass", [True]),
    ("argument", "with loss.backward(1): pass", [True]),
    ("keyword", "with loss.backward(retain_graph=True): pass", [True]),
    ("both", "with loss.backward(1, retain_graph=True): pass", [True]),
    ("star", "with loss.backward(*[1]): pass", [True]),
    ("double star", "options = {}\nwith loss.backward(**options): pass", [True]),
    ("300 arguments", f"with loss.backward({'0, ' * 300}): pass", [True]),
    ("300 keywords", f"with loss.backward({MANY}): pass", [True]),
    ("300 keywords, bare", f"loss.backward({MANY})", [False]),
    ("function", "f = loss.backward\nwith f(): pass", [True]),
    ("unbound", "with type(loss).backward(loss): pass", [True]),
    ("partial", "import functools\nwith functools.partial(loss.backward)(): pass", [True]),
    ("chain", "with loss.item().backward(): pass", [True]),
    ("two items", "with m, loss.backward(): pass", [True]),
    ("two calls", "with loss.backward(), loss.backward(): pass", [True, True]),
    ("parentheses", "with (loss.backward()): pass", [True]),
    ("items in parentheses", "with (\n    m as n,\n    loss.backward() as g,\n): pass", [True]),
    ("one item and a comma", "with (\n    loss.backward(),\n): pass", [True]),
    ("over lines", "with loss.backward(\n    1,\n    retain_graph=True,\n):\n    pass", [True]),
    ("nested", "with loss.backward():\n    with loss.backward(): pass", [True, True]),
    ("loop", "for _ in range(3):\n    with loss.backward(): continue", [True, True, True]),
    ("while", "while True:\n    with loss.backward(): break", [True]),
    ("in try", "try:\n    with loss.backward(): 1 / 0\nexcept ArithmeticError: pass", [True]),
    (
        "in except and finally",
        "try:\n    1 / 0\nexcept ArithmeticError:\n    with loss.backward(): pass\n"
        "finally:\n    with loss.backward(): pass",
        [True, True],
    ),
    ("either, first", "with (loss.backward() if m else None): pass", [True]),
    ("either, second", "with (m if not m else loss.backward()): pass", [True]),
    ("either, far away", f"with (loss.backward() if m else m({MANY})): pass", [True]),
    (
        "three ways",
        "with (loss.backward() if m else loss.backward() if n else None): pass\n"
        "with (loss.backward() if not m else loss.backward() if m else None): pass",
        [True, True],
    ),
    (
        "either in except",
        "try:\n    1 / 0\nexcept ArithmeticError:\n"
        "    with (loss.backward() if m else loss.backward()): pass",
        [True],
    ),
    ("either, bare", "m if not m else loss.backward()", [False]),
    ("and", "with m and loss.backward(): pass", [True]),
    ("last or", "with None or loss.backward(): pass", [True]),
    ("tested by or", "with loss.backward() or m: pass", [False]),
    ("tested by and", "with loss.backward() and m: pass", [False]),
    ("walrus", "with (g := loss.backward()): pass", [True]),
    ("two walruses", "with (g := (h := loss.backward())): pass", [True]),
    ("walrus, global", "global g\nwith (g := loss.backward()): pass", [True]),
    ("walrus, cell", "with (g := loss.backward()):\n    def f(): return g", [True]),
    ("walrus, bare", "(g := loss.backward())", [False]),
    ("walrus in a class", "class C:\n    with (g := loss.backward()): pass", [True]),
    ("walrus then argument", "with m((g := loss.backward())): pass", [False]),
    ("bare", "loss.backward()", [False]),
    ("bare, then with", "loss.backward()\nwith m: pass", [False]),
    ("assigned, then with", "x = loss.backward()\nwith x: pass", [False]),
    ("assigned twice, then with", "x = y = loss.backward()\nwith y: pass", [False]),
    ("on the line of a with", "with m: loss.backward()", [False]),
    ("on the line of its own with", "with loss.backward(): loss.backward()", [True, False]),
    ("before on the line", "loss.backward(); n = 1\nwith m: pass", [False]),
    ("argument of another", "with m(loss.backward()): pass", [False]),
    ("nullcontext", "from contextlib import nullcontext as n\nwith n(loss.backward()): 1", [False]),
    ("keyword of another", "with m(x=loss.backward()): pass", [False]),
    ("argument of itself", "with loss.backward(loss.backward()): pass", [False, True]),
    ("attribute of the result", "with loss.backward().itself: pass", [False]),
    ("item of the result", "with loss.backward()[0]: pass", [False]),
    ("in a tuple", "with (loss.backward(), 1)[0]: pass", [False]),
    ("in a target", "with m as m[loss.backward()]: pass", [False]),
    ("in a lambda", "with (lambda: loss.backward())(): pass", [False]),
    ("in a comprehension", "with [loss.backward() for _ in m][0]: pass", [False, False]),
    ("in a function", "def f(): return loss.backward()\nwith f(): pass", [False]),
    ("in a decorator", "@loss.backward()\ndef f(): pass", [False]),
    ("in assert", "assert loss.backward() is not None", [False]),
    ("in an f-string", "f'{loss.backward()}'", [False]),
    ("matched", "match loss.backward():\n    case x:\n        with x: pass", [False]),
    ("returned", "def f():\n    with m: return loss.backward()\nf()", [False]),
    (
        "called by enter and exit",
        "class C:\n"
        "    def __enter__(self): loss.backward()\n"
        "    def __exit__(self, *_): loss.backward()\n"
        "with C(): pass",
        [False, False],
    ),
    ("is enter and exit", "with caller: pass", [False, False]),
    ("is exit after an error", "try:\n    with caller: 1 / 0\nexcept: pass", [False, False]),
    ("is an attribute", "with caller.attribute: pass", [False]),
    ("is an item", "with caller[0]: pass", [False]),
    ("is an operator", "with caller + 1: pass", [False]),
    ("is an iterator", "for _ in caller:\n    with m: pass", [False]),
    ("entered once more", "with loss.backward() as g, g: pass", [True]),
    ("global with", "exec('with loss.backward(): pass', globals())", [True]),
    ("eval", "with eval('loss.backward()'): pass", [False]),
    ("class body", "class C:\n    with loss.backward(): pass", [True]),
    (
        "generator",
        "def f():\n    with loss.backward() as g: yield g\n    yield loss.backward()\nlist(f())",
        [True, False],
    ),
    ("yielded", "def f():\n    with (yield loss.backward()) or m: pass\nlist(f())", [False]),
    (
        "async function",
        "async def f():\n    with loss.backward(): await loss.backward()\nrun(f())",
        [True, False],
    ),
    ("async with", "async def f():\n    async with loss.backward(): pass\nrun(f())", [False]),
    ("with await", "async def f():\n    with await loss.backward(): pass\nrun(f())", [False]),
    (
        "async generator",
        "async def f():\n    with loss.backward(): yield 1\n"
        "async def g():\n    async for _ in f(): loss.backward()\nrun(g())",
        [True, False],
    ),
    ("item 0", "m.output[0]", [True]),
    ("item 0 of item 0", "m.output[0][0]", [True]),
    ("part of item 0", "m.output[0][..., 1:]", [True]),
    ("item 0 of item 1", "m.output[1][0]", [False]),
    ("attribute of item 0", "m.output[0].itself", [True]),
    ("item 0 in a call", "m(m.output[0], x=m.output[0])", [True, True]),
    ("item 0 on the right", "m.place[0] = m.output[0]", [True]),
    ("item 0 in place", "m.output[0][:] += 1", [True]),
    ("item 0 among many constants", f"x = [m, {DISTINCT}]\nm.output[0]", [True]),
    ("item 0 in a loop", "for _ in range(3): m.output[0]", [True, True, True]),
    ("item 0 in a with", "with m.output[0]: pass", [True]),
    ("item 0 deleted", "del m.output[0]", [False]),
    ("item 0 assigned", "m.output[0] = 1", [False]),
    ("item 0 updated", "m.output[0] += 1", [False]),
    ("item 0 of item 0 assigned", "m.output[0][0] = 1", [True]),
    ("items 0, 1", "m.output[0, 1]", [False]),
    ("item 1", "m.output[1]", [False]),
    ("item -1", "m.output[-1]", [False]),
    ("first item", "m.output[:1]", [False]),
    ("from 0", "m.output[0:]", [False]),
    ("from 0 to 1", "m.output[0:1]", [False]),
    ("item False", "m.output[False]", [False]),
    ("item 0.0", "m.output[0.0]", [False]),
    ("item None", "m.output[None]", [False]),
    ("item in a variable", "i = 0\nm.output[i]", [False]),
    ("item in a list", "m.output[[0]]", [False]),
    ("item 0 plus", "m.output + m[0]", [False]),
    ("index 0", "m.place[m.output]", [False]),
    ("all", "x = m.output\nx[0]", [False]),
    ("all by walrus", "(x := m.output)[0]", [False]),
    ("attribute of all", "m.output.itself[0]", [False]),
    ("call of all", "m.output(0)[0]", [False]),
    ("all in a call", "m(m.output)[0]", [False]),
    ("all by getattr", "getattr(m, 'output')[0]", [False]),
]


def run_cases(codes, way):
    """Run each code in one way; self-contained, since other interpreters get it as text."""
    import sys
    from contextlib import suppress
    from itertools import chain

    from headwater.trace.opcodes import enters_with, subscripts_zero

    tool = 4  # debugger, coverage, profiler and optimizer have 0, 1, 2 and 5
    seen = []

    class Value:
        def backward(self, *_, **__):
            seen.append(enters_with(sys._getframe(1)))
            return self

        @property
        def output(self):
            seen.append(subscripts_zero(sys._getframe(1)))
            return self

        @property
        def itself(self):
            return self

        item = __getitem__ = __call__ = __add__ = __iadd__ = __enter__ = lambda self, *_, **__: self
        __setitem__ = __delitem__ = __exit__ = lambda self, *_: None

        def __iter__(self):
            return iter((1, 2))

        def __await__(self):
            return self
            yield

        async def __aenter__(self):
            return self

        async def __aexit__(self, *_):
            return None

        def __getattr__(self, name):
            return self

    class Caller:
        def asks(self, *_):
            seen.append(enters_with(sys._getframe(1)))
            return Value()

        attribute = property(asks)
        __enter__ = __exit__ = __getitem__ = __add__ = asks

        def __iter__(self):
            seen.append(enters_with(sys._getframe(1)))
            return iter((1, 2))

    def run(coroutine):
        with suppress(StopIteration):
            coroutine.send(None)

    def trace(frame, event, argument):
        frame.f_trace_opcodes = True
        return trace

    def body_of(code, names):
        # names bound outside the body, so that it can rebind them
        lines = chain(["def body(m=m, loss=loss):"], ("    " + line for line in code.split("\n")))
        exec(compile("\n".join(lines), "<body>", "exec"), names)
        return names["body"]

    def watched(body):
        tracer, profiler = sys.gettrace(), sys.getprofile()
        if way == "traced":
            sys.settrace(trace)
        elif way == "profiled":
            sys.setprofile(lambda *_: None)
        elif way == "monitored":
            monitoring, events = sys.monitoring, sys.monitoring.events
            wanted = (events.CALL, events.LINE, events.INSTRUCTION, events.JUMP, events.PY_RETURN)
            monitoring.use_tool_id(tool, "tests")
            for event in wanted:
                monitoring.register_callback(tool, event, lambda *_: None)
            monitoring.set_events(tool, sum(wanted))
        try:
            body()
        finally:
            if way == "traced":
                sys.settrace(tracer)
            elif way == "profiled":
                sys.setprofile(profiler)
            elif way == "monitored":
                monitoring.set_events(tool, 0)
                monitoring.free_tool_id(tool)

    answers = []
    for code in codes:
        seen.clear()
        value = Value()
        names = {"loss": value, "m": value, "n": value, "caller": Caller(), "run": run}
        if way == "module":
            exec(compile(code, "<module>", "exec"), names)
            answers.append(list(seen))
        elif way == "often":  # until the interpreter has specialized the instructions
            body = body_of(code, names)
            every = set()
            for _ in range(100):
                seen.clear()
                body()
                every.add(tuple(seen))
            answers.append(list(every.pop()) if len(every) == 1 else sorted(every))
        else:
            watched(body_of(code, names))
            answers.append(list(seen))
    return answers


WAYS = ["module", "once", "often", "traced", "profiled", "monitored"]


def wrong_answers(answers):
    return {
        name: (code, got)
        for (name, code, expected), got in zip(CASES, answers, strict=True)
        if got != expected
    }


def ways_of(minor):
    return [way for way in WAYS if way != "monitored" or minor >= 12]


def interpreter(minor):
    """A CPython 3.`minor` on PATH or under pyenv, or None."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(f"python3.{minor}")]
    found += sorted(root.glob(f"versions/3.{minor}.*/bin/python"))
    ask = "import sys; print(sys.implementation.name, *sys.version_info[:2])"
    for path in filter(None, found):
        # pyenv leaves a `python3.x` on PATH that fails for versions not switched on
        reply = subprocess.run([path, "-c", ask], capture_output=True, text=True, check=False)
        if reply.stdout.split() == ["cpython", "3", str(minor)]:
            return path
    return None


@pytest.mark.parametrize("way", ways_of(sys.version_info.minor))
def test_answers_on_this_interpreter(way):
    answers = run_cases([code for _, code, _ in CASES], way)

    assert wrong_answers(answers) == {}


@pytest.mark.parametrize("minor", [minor for _, minor in BYTECODES])
def test_answers_on_every_interpreter_of_the_table_found_here(minor):
    path = interpreter(minor)
    if path is None:
        pytest.skip(f"no CPython 3.{minor} here")
    script = "\n".join(
        [
            "import json, sys",
            dedent(inspect.getsource(run_cases)),
            "codes, ways = json.load(sys.stdin)",
            "answers = [run_cases(codes, way) for way in ways]",
            "assert 'torch' not in sys.modules",
            "print(json.dumps(answers))",
        ]
    )
    ways = ways_of(minor)
    reply = subprocess.run(
        [path, "-c", script],
        input=json.dumps([[code for _, code, _ in CASES], ways]),
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert reply.returncode == 0, reply.stderr
    for way, answers in zip(ways, json.loads(reply.stdout), strict=True):
        assert wrong_answers(answers) == {}, way


def test_with_is_seen_where_pytest_rewrites_asserts():
    class Loss:
        def backward(self):
            seen.append(enters_with(sys._getframe(1)))
            return memoryview(b"")

    seen, loss = [], Loss()
    with loss.backward() as g:
        assert g == b""
    assert loss.backward() == b""
    with loss.backward(): assert loss.backward() is not None, "message"  # fmt: skip  # noqa: E701

    assert seen == [True, False, True, False]


def test_a_frame_that_calls_nothing_is_no_with():
    def body():
        yield 1

    assert not enters_with(body().gi_frame)
    assert not subscripts_zero(body().gi_frame)
    assert not enters_with(sys._getframe())  # the call in progress is that of sys._getframe


def assembled(*units):
    """A stream of units from names, or pairs of a name and an argument."""
    return [Unit(unit) if isinstance(unit, str) else Unit(*unit) for unit in units]


LOAD = ("LOAD_FAST_BORROW", 0)
METHOD = ("LOAD_ATTR", 1)
CALL = (("CALL", 0), "CACHE", "CACHE", "CACHE")
ENTER = (("COPY", 1), ("LOAD_SPECIAL", 1), ("SWAP", 2), ("SWAP", 3), ("LOAD_SPECIAL", 0), "CALL")
ENTER_ASYNC = (("COPY", 1), ("LOAD_SPECIAL", 3), ("SWAP", 2), ("SWAP", 3), ("LOAD_SPECIAL", 2))
NAME = (("COPY", 1), ("STORE_FAST", 7))
ITEM = (("BINARY_OP", 26), "CACHE", "CACHE", "CACHE", "CACHE", "CACHE")
ATTRIBUTE = (("LOAD_ATTR", 2), *["CACHE"] * 9)


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ((*CALL, *ENTER), True),
        ((("CALL_KW", 1), "CACHE", "CACHE", "CACHE", *ENTER), True),
        (("CALL_FUNCTION_EX", *ENTER), True),
        ((*CALL, "NOP", *ENTER), True),
        ((*CALL, ("JUMP_FORWARD", 3), "POP_TOP", LOAD, *CALL[:1], *ENTER), True),
        ((*CALL, ("EXTENDED_ARG", 1), ("JUMP_FORWARD", 258), *["POP_TOP"] * 258, *ENTER), True),
        ((*CALL, ("JUMP_FORWARD", 2), *ENTER), False),
        ((*CALL, ("JUMP_FORWARD", 99)), False),
        ((*CALL, *NAME, *ENTER), True),
        ((*CALL, *NAME, *NAME, *ENTER), True),
        ((*CALL, *NAME, "POP_TOP"), False),
        ((*CALL, *NAME), False),
        ((*CALL, ("COPY", 1), "TO_BOOL", ("POP_JUMP_IF_TRUE", 2), "POP_TOP", LOAD, *ENTER), False),
        ((*CALL, *ENTER_ASYNC), False),
        ((*CALL, "POP_TOP", LOAD, *ENTER), False),
        ((*CALL, ("STORE_FAST", 1), ("LOAD_FAST", 1), *ENTER), False),
        ((*CALL, "BEFORE_WITH"), False),  # of another version
        (CALL, False),
        ((METHOD, *ENTER), False),
        ((("BINARY_OP", 0), "CACHE", *ENTER), False),
        ((("LOAD_SPECIAL", 0), *ENTER), False),
    ],
)
def test_with_of_3_14_in_code_assembled_by_hand(units, expected):
    at = 2  # after the two that fetch the method
    assert is_entered(assembled(LOAD, METHOD, *units), at, BYTECODES[3, 14]) is expected
    if units[0] == CALL[0]:  # in progress at its last cache
        assert is_entered(assembled(LOAD, METHOD, *units), at + 3, BYTECODES[3, 14]) is expected


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ((*ATTRIBUTE, ("LOAD_SMALL_INT", 0), *ITEM), True),
        ((*ATTRIBUTE, ("LOAD_SMALL_INT", 1), *ITEM), False),
        ((*ATTRIBUTE, ("LOAD_SMALL_INT", 0), ("BINARY_OP", 0)), False),
        ((*ATTRIBUTE, ("LOAD_SMALL_INT", 0), "STORE_SUBSCR"), False),
        ((*ATTRIBUTE, ("LOAD_SMALL_INT", 0), ("COPY", 2), ("COPY", 2), *ITEM), False),
        ((*ATTRIBUTE, ("LOAD_CONST", (0, 1)), *ITEM), False),
        ((*ATTRIBUTE, ("LOAD_CONST", False), *ITEM), False),
        ((*ATTRIBUTE, ("LOAD_CONST", 0), "BINARY_SUBSCR"), False),  # of another version
        ((*CALL, ("LOAD_SMALL_INT", 0), *ITEM), False),
        ((*ATTRIBUTE, ("LOAD_SMALL_INT", 0)), False),
    ],
)
def test_item_0_of_3_14_in_code_assembled_by_hand(units, expected):
    assert is_subscripted_by_zero(assembled(LOAD, *units), 1, BYTECODES[3, 14]) is expected


@pytest.mark.parametrize("at", [2, 4])
def test_a_call_of_3_11_may_be_in_progress_at_its_precall(at):
    units = assembled(
        "LOAD_FAST", "LOAD_METHOD", "PRECALL", "CACHE", "CALL", "CACHE", "BEFORE_WITH"
    )

    assert is_entered(units, at, BYTECODES[3, 11])
    assert not is_entered([*units[:6], Unit("POP_TOP")], at, BYTECODES[3, 11])


def test_code_that_has_not_begun_is_no_with():
    with_first = assembled("BEFORE_WITH", "CALL")
    item_first = assembled(("LOAD_CONST", 0), "BINARY_SUBSCR", "LOAD_ATTR")

    assert not is_entered(with_first, -1, BYTECODES[3, 12])
    assert not is_subscripted_by_zero(item_first, -1, BYTECODES[3, 12])


def test_arguments_are_decoded_with_all_their_prefixes():
    numbers = [opmap["EXTENDED_ARG"], 1, opmap["EXTENDED_ARG"], 2, opmap["JUMP_FORWARD"], 3]
    code = compile("", "<prefixes>", "exec").replace(co_code=bytes(numbers))

    assert opcodes._Decoded(code)[2] == ("JUMP_FORWARD", 0x010203)


@pytest.mark.parametrize(
    ("implementation", "version"), [("cpython", (3, 10)), ("cpython", (4, 0)), ("pypy", (3, 11))]
)
def test_other_interpreters_are_unknown(implementation, version):
    assert known_bytecode("cpython", (3, 11)) is BYTECODES[3, 11]
    assert known_bytecode(implementation, version) is None


def test_an_unknown_interpreter_is_refused_and_told_what_to_write(monkeypatch):
    monkeypatch.setattr(opcodes, "_HERE", None)
    monkeypatch.setattr(sys, "implementation", type("", (), {"name": "pypy"}))
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))

    with pytest.raises(UnknownInterpreterError) as caught:
        enters_with(sys._getframe())

    assert isinstance(caught.value, TraceError)
    assert str(caught.value) == (
        "this is pypy 3.99, whose bytecode headwater does not know, so `with loss.backward():` "
        "and a bare `loss.backward()` look the same.\n"
        "Write `with hw.backward(loss):` for a block and `torch.autograd.backward(loss)` "
        "for a bare pass."
    )
    assert not subscripts_zero(sys._getframe())  # only a notice hangs on it


def test_answers_are_kept_by_place_and_forgotten_with_the_code():
    class Loss:
        def backward(self):
            seen.append(enters_with(sys._getframe(1)))
            return memoryview(b"")

    seen = []
    gc.collect()  # what earlier tests left in cycles
    known = len(opcodes._entered)
    names = {"loss": Loss()}
    exec("def body():\n    loss.backward()\n    with loss.backward(): pass", names)
    body = names.pop("body")
    code = weakref.ref(body.__code__)
    body()
    body()
    assert seen == [False, True] * 2
    assert len(opcodes._entered) == known + 1

    del body
    gc.collect()
    assert code() is None
    assert len(opcodes._entered) == known


def test_equal_code_objects_do_not_share_a_fate():
    first, second = (compile("loss.backward()", "<same>", "exec") for _ in range(2))
    assert first == second
    gc.collect()  # what earlier tests left in cycles
    known = len(opcodes._entered)

    class Loss:
        def backward(self):
            seen.append(enters_with(sys._getframe(1)))

    seen = []
    exec(first, {"loss": Loss()})
    exec(second, {"loss": Loss()})
    del first
    gc.collect()
    exec(second, {"loss": Loss()})

    assert seen == [False] * 3
    assert len(opcodes._entered) == known + 1
