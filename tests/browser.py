"""A headless Chromium that reports everything it complains about.

It is driven by the DevTools protocol over two pipes, so no library is needed.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.services.servers import ToolMissingError

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-extensions",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)

# Which parts of the page the browser reports about.
_DOMAINS = ("Page", "Runtime", "Log", "Network", "Audits")

# Windows' code and the text of keys that are no letters.
_KEYS = {
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
    " ": (32, " "),
}

# Presses of Tab that go round every page of ours.
_MOST_STOPS = 200

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels of the whole page."""


class Browser:
    """One browser with one tab."""

    def __init__(self, folder: Path, timeout_s: float = 60, options: Sequence[str] = ()) -> None:
        """Start a browser with its profile in `folder`; `ToolMissingError` when there is none."""
        program = _installed()
        self.timeout_s = timeout_s
        self.complaints: list[str] = []
        """Console messages, exceptions, blocked loads and violations of the page's policy."""
        self.requests: list[str] = []
        """Addresses that pages asked for."""
        self._chooser: int | None = None
        """The field of the page that wants a file."""
        self._last_id = 0
        self._pending = b""
        self._session: str | None = None
        browser_in, self._out = os.pipe()
        self._in, browser_out = os.pipe()
        try:
            self._process = _start(
                program, [*options, f"--user-data-dir={folder}"], browser_in, browser_out
            )
        finally:
            os.close(browser_in)
            os.close(browser_out)
        targets = self.call("Target.getTargets")["targetInfos"]
        (tab,) = [target for target in targets if target["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=tab["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in _DOMAINS:
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Send one command and return its result; events that arrive meanwhile are noted."""
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self.timeout_s
        while True:
            answer = self._next_message(deadline)
            if answer.get("id") == self._last_id:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def open(
        self, page: Path | str, width: int = 1100, height: int = 900, *, dark: bool = False
    ) -> None:
        """Show a file or an address at a size in CSS pixels; returns when it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        uri = page if isinstance(page, str) else page.absolute().as_uri()
        self.call("Page.navigate", url=uri)
        deadline = time.monotonic() + self.timeout_s
        while not self._shows(uri):
            assert time.monotonic() < deadline, "the page does not load"

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page. The page's own policy does not forbid it."""
        evaluated = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        return evaluated["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until an expression is true in the page; returns its value, true for an element."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            value = self.evaluate(f"(v => v instanceof Node || v)({expression})")
            if value:
                return value
            assert time.monotonic() < deadline, (
                expression,
                self.evaluate("document.body.innerText"),
            )
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press and release a key, such as Tab, Enter, Escape, ArrowRight or a letter."""
        code, text = _KEYS.get(key, (0, key))
        event: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code}
        if text:
            event |= {"text": text, "unmodifiedText": text}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def write(self, text: str) -> None:
        """Type a text into what has the focus."""
        for letter in text:
            self.press(letter)

    def tab_to(self, selector: str) -> None:
        """Press Tab until an element of a selector has the focus, as a person without a mouse."""
        for _ in range(_MOST_STOPS):
            if self.evaluate(f"document.activeElement.matches({json.dumps(selector)})"):
                return
            self.press("Tab")
        raise AssertionError(f"Tab does not lead to {selector}")

    def choose_file(self, path: Path) -> None:
        """Press the key that opens the choice of a file, and choose this one."""
        self.call("Page.setInterceptFileChooserDialog", enabled=True)
        self._chooser = None
        self.press(" ")
        deadline = time.monotonic() + self.timeout_s
        while self._chooser is None:
            self._next_message(deadline)
        self.call("DOM.setFileInputFiles", files=[str(path)], backendNodeId=self._chooser)

    def boxes(self, selector: str) -> dict[str, Box]:
        """Where each visible element of a selector is, by its id."""
        script = (
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            ".map(e => [e.id, e.getBoundingClientRect()])"
            ".filter(([, r]) => r.width > 0)"
            ".map(([id, r]) => [id,"
            " [r.left + scrollX, r.top + scrollY, r.right + scrollX, r.bottom + scrollY]])"
        )
        boxes: dict[str, Box] = {}
        for name, (left, top, right, bottom) in self.evaluate(script):
            boxes[name] = (round(left), round(top), round(right), round(bottom))
        return boxes

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        shot = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, fromSurface=True
        )
        return base64.b64decode(shot["data"])

    def close(self) -> None:
        """End the browser."""
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        self._process.wait(30)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _shows(self, uri: str) -> bool:
        # The tab is "complete" with the page before, until the new one begins to load.
        is_loaded = self.evaluate("document.readyState") == "complete"
        return is_loaded and bool(self.evaluate("location.href") == uri)

    def _next_message(self, deadline: float) -> dict[str, Any]:
        """The next message of the browser; each ends with a zero byte."""
        while b"\0" not in self._pending:
            remaining_s = max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([self._in], [], [], remaining_s)
            assert readable, "the browser does not answer"
            received = os.read(self._in, 1 << 16)
            assert received, "the browser has ended"
            self._pending += received
        first, _, self._pending = self._pending.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(event["exceptionDetails"].get("text")))
        elif method == "Runtime.consoleAPICalled":
            values = [argument.get("value") for argument in event["args"]]
            self.complaints.append(f"console.{event['type']}: {values}")
        elif method == "Log.entryAdded":
            entry = event["entry"]
            self.complaints.append(f"{entry['level']}: {entry['text']}")
        elif method == "Audits.issueAdded":
            self.complaints.append(event["issue"]["code"])
        elif method == "Page.fileChooserOpened":
            self._chooser = event["backendNodeId"]
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])


def _installed() -> str:
    for program in PROGRAMS:
        path = shutil.which(program)
        if path is not None:
            return path
    raise ToolMissingError(f"none of {', '.join(PROGRAMS)} is installed; apt-get install chromium")


def _start(
    program: str, more: Sequence[str], browser_in: int, browser_out: int
) -> "subprocess.Popen[bytes]":
    # The browser reads descriptor 3 and writes descriptor 4, whatever numbers the pipes have here.
    script = f'exec "$0" "$@" 3<&{browser_in} 4>&{browser_out}'
    return subprocess.Popen(
        ["bash", "-c", script, program, *_OPTIONS, *more, "about:blank"],
        pass_fds=(browser_in, browser_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
