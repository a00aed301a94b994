"""A headless Chromium driven through its debugging pipe: no port, no dependency.

`Browser()` starts one; `browser.open(path)` gives a `Page` that runs JavaScript, presses keys,
clicks, takes screenshots, and has recorded every console error and every request it made.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    # Sandboxed frames stay in the page's process, where its session can look into them.
    "--disable-features=IsolateSandboxedIframes",
    "--remote-debugging-pipe",
)


def executable() -> str | None:
    """The Chromium on PATH, under whichever of its names."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """One Chromium with a profile of its own, ended with the `with` block."""

    def __init__(self, timeout: float = 60.0) -> None:
        path = executable()
        if path is None:
            raise FileNotFoundError("no chromium on PATH")
        self.timeout = timeout
        self.profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        commands, self.writer = _pipe_above_ten()
        self.reader, answers = _pipe_above_ten()

        def attach_pipes() -> None:
            # Chromium reads commands from descriptor 3 and writes answers to 4.
            os.dup2(commands, 3)
            os.dup2(answers, 4)

        self.process = subprocess.Popen(
            [path, *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=attach_pipes,
            pass_fds=(3, 4),
        )
        os.close(commands)
        os.close(answers)
        self.numbers = itertools.count(1)
        self.buffer = b""
        self.events: deque[dict[str, Any]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.writer)
        os.close(self.reader)
        self.profile.cleanup()

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send one command and return its result; events on the way are kept."""
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        _write_all(self.writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive(self.timeout)
            if answer.get("id") != number:
                self.events.append(answer)
                continue
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            return answer["result"]

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next message from the browser."""
        end = time.monotonic() + timeout
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.reader], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self.reader, 1 << 20) if ready else b""
            if not chunk:
                raise TimeoutError("chromium did not answer")
            self.buffer += chunk
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)

    def open(
        self,
        path: Path,
        *,
        width: int = 1400,
        height: int = 1000,
        dark: bool = False,
        scripts: bool = True,
        printed: bool = False,
    ) -> Page:
        """Open a file in a new tab and wait until it has loaded and drawn."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        page = Page(self, attached["sessionId"], target, scripts=scripts)
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            page.send(f"{domain}.enable")
        page.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.send("Emulation.setEmulatedMedia", media="print" if printed else "", features=[scheme])
        page.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        page.send("Page.navigate", url=path.resolve().as_uri())
        page.wait_for_event("Page.loadEventFired")
        page.settle()
        return page


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str, target: str, *, scripts: bool) -> None:
        self.browser, self.session, self.target = browser, session, target
        self.scripts = scripts

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **params)

    def wait_for_event(self, method: str) -> None:
        while True:
            waiting = [event for event in self.browser.events if self._is(event, method)]
            if waiting:
                return
            self.browser.events.append(self.browser.receive(self.browser.timeout))

    def settle(self) -> None:
        """Wait for two frames, so that observers have run and everything is drawn."""
        if not self.scripts:
            return  # no frame callbacks without scripts, and nothing that would draw in one
        frames = "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"
        self.send("Runtime.evaluate", expression=frames, awaitPromise=True)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def in_frames(self, expression: str) -> list[Any]:
        """The value of an expression in every frame inside the page that is there now."""
        self.settle()
        created, gone = [], set()
        for event in self.browser.events:
            if self._is(event, "Runtime.executionContextCreated"):
                created.append(event["params"]["context"])
            elif self._is(event, "Runtime.executionContextDestroyed"):
                gone.add(event["params"]["executionContextUniqueId"])
        main = self.send("Page.getFrameTree")["frameTree"]["frame"]["id"]
        return [
            self.send(
                "Runtime.evaluate",
                expression=expression,
                returnByValue=True,
                uniqueContextId=context["uniqueId"],
            )["result"].get("value")
            for context in created
            if context["auxData"]["frameId"] != main and context["uniqueId"] not in gone
        ]

    def text(self, selector: str) -> str:
        """The visible text of the first element that matches."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def texts(self, selector: str) -> list[str]:
        return self.run(
            f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"
        )

    def count(self, selector: str) -> int:
        return self.run(f"document.querySelectorAll({json.dumps(selector)}).length")

    def focus(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")

    def press(self, key: str) -> None:
        """Press and release one key, as from a keyboard."""
        text = {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, "End": 35, "Home": 36, " ": 32}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        code = codes.get(key, ord(key[0].upper()))
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send(
            "Input.dispatchKeyEvent",
            type="keyDown" if text else "rawKeyDown",
            text=text,
            **common,
        )
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)
        self.settle()

    def center(self, selector: str) -> tuple[float, float]:
        x, y = self.run(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();"
            f" return [b.x + b.width / 2, b.y + b.height / 2]; }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        return x, y

    def hover(self, selector: str) -> None:
        x, y = self.center(selector)
        self.settle()
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()

    def click(self, selector: str) -> None:
        x, y = self.center(selector)
        self.settle()
        common = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type="mousePressed", **common)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", **common)
        self.settle()

    def screenshot(self, path: Path, *, full: bool = True) -> Path:
        """Write a PNG of the whole page, or of the window."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    @property
    def errors(self) -> list[str]:
        """What the console reported: exceptions, errors, policy violations."""
        self.settle()
        found = []
        for event in self.browser.events:
            if self._is(event, "Runtime.exceptionThrown"):
                found.append(json.dumps(event["params"]["exceptionDetails"]))
            elif self._is(event, "Log.entryAdded"):
                found.append(event["params"]["entry"]["text"])
            elif self._is(event, "Runtime.consoleAPICalled"):
                found.append(json.dumps(event["params"]["args"]))
        return found

    @property
    def requests(self) -> list[str]:
        """The addresses this page asked for, itself first."""
        self.settle()
        sent = [e for e in self.browser.events if self._is(e, "Network.requestWillBeSent")]
        return [event["params"]["request"]["url"] for event in sent]

    def close(self) -> None:
        self.browser.send("Target.closeTarget", targetId=self.target)
        kept = [e for e in self.browser.events if e.get("sessionId") != self.session]
        self.browser.events = deque(kept)

    def _is(self, event: dict[str, Any], method: str) -> bool:
        return event.get("method") == method and event.get("sessionId") == self.session


def _pipe_above_ten() -> tuple[int, int]:
    """A pipe whose ends can be put on descriptors 3 and 4 without running over each other."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]


def _write_all(descriptor: int, message: bytes) -> None:
    while message:
        message = message[os.write(descriptor, message) :]
