"""Ctrl-C at any moment of a run: the model and the process are as they were."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.utils.hooks import RemovableHandle

import headwater
import tiny_models
from headwater.architectures.adapter import resolve
from headwater.interrupts import Held
from headwater.models import Model
from headwater.sites import Site
from test_taps import BATCH, POSITIONS, state_of

OURS = str(Path(headwater.__file__).parent)
TAPS = {Site(1, name): torch.clone for name in ("attn.q", "attn.z", "mlp.out")}


@pytest.fixture
def model() -> Model:
    module = tiny_models.build("Llama", dtype=torch.float64)
    return Model(module, adapter=resolve(module))


@torch.no_grad()
def whole_run(model: Model, taps=TAPS):
    residual = torch.zeros(BATCH, POSITIONS, 24, dtype=model.dtype)
    return model.forward(tiny_models.tokens(), taps=taps, start=(1, residual), read=1)


def interrupted(model: Model, run) -> None:
    """Run, expect KeyboardInterrupt, and nothing left behind."""
    before, handler = state_of(model.module), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert state_of(model.module) == before
    assert signal.getsignal(signal.SIGINT) is handler
    assert not torch.overrides._get_current_function_mode_stack()
    assert free(model.lock)


def free(lock) -> bool:
    found = []

    def take():
        found.append(lock.acquire(blocking=False))
        if found[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return found[0]


def ctrl_c(*_) -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("where", ["register_forward_hook", "register_forward_pre_hook"])
def test_an_interrupt_while_hooks_are_installed(model, monkeypatch, where):
    plain = getattr(torch.nn.Module, where)

    def install(*args, **kwargs):
        handle = plain(*args, **kwargs)
        ctrl_c()
        return handle

    monkeypatch.setattr(torch.nn.Module, where, install)
    called = []
    interrupted(model, lambda: whole_run(model, {Site(1, "mlp.out"): called.append}))
    assert not called  # it comes before the model runs


def test_an_interrupt_in_the_middle_of_the_run(model):
    interrupted(model, lambda: whole_run(model, {Site(1, "mlp.out"): ctrl_c}))


def test_an_interrupt_while_hooks_are_removed(model, monkeypatch):
    plain = RemovableHandle.remove

    def remove(handle):
        ctrl_c()
        plain(handle)

    monkeypatch.setattr(RemovableHandle, "remove", remove)
    interrupted(model, lambda: whole_run(model))


@pytest.mark.slow
def test_an_interrupt_at_any_line_of_a_run():
    # float32: in float64 each torch call runs a few lines of ours, all of them in the forward pass
    module = tiny_models.build("Llama")
    model = Model(module, adapter=resolve(module))
    count = lines_of(lambda: whole_run(model))
    assert count > 200
    for line in range(count):
        interrupted(model, lambda line=line: lines_of(lambda: whole_run(model), stop=line))


def lines_of(run, stop: int | None = None) -> int:
    """Count the lines a run executes in headwater and its context managers; Ctrl-C at one."""
    count = 0

    def of_ours(frame) -> bool:
        while frame.f_code.co_filename == contextlib.__file__:
            frame = frame.f_back
        return frame.f_code.co_filename.startswith(OURS)

    def trace(frame, event, _):
        nonlocal count
        if not of_ours(frame):
            return None
        if event == "line":
            count += 1
            if count - 1 == stop:
                ctrl_c()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def test_another_thread_runs_without_touching_signals(model):
    handler, found = signal.getsignal(signal.SIGINT), []
    expected = whole_run(model)
    thread = threading.Thread(target=lambda: found.append(whole_run(model)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], expected)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.fixture
def counting():
    received = []
    before = signal.signal(signal.SIGINT, lambda *call: received.append(call))
    yield received
    signal.signal(signal.SIGINT, before)


def test_a_handler_of_the_user_gets_what_was_held_back(counting):
    with Held() as interrupts:
        ctrl_c()
        assert not counting
        with interrupts.delivered():
            assert len(counting) == 1
            ctrl_c()
            ctrl_c()
            assert len(counting) == 3
        ctrl_c()
        assert len(counting) == 3
    assert len(counting) == 4


def test_a_held_block_may_lie_inside_another(counting):
    with Held() as outer:
        with outer.delivered(), Held():
            ctrl_c()
            assert not counting
        assert len(counting) == 1


def test_a_handler_set_inside_the_block_stays(counting):
    def theirs(*_):
        pass

    with Held() as interrupts, interrupts.delivered():
        signal.signal(signal.SIGINT, theirs)
    assert signal.getsignal(signal.SIGINT) is theirs


def test_an_ignored_interrupt_stays_ignored(counting):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Held():
        ctrl_c()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
