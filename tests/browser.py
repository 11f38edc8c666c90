"""A headless Chromium that tells everything it has to complain about: its DevTools protocol over two pipes, no library needed."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.services.servers import Absent

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Browser:
    """One browser with one tab. `complaints` are console messages, exceptions, blocked loads and violations of the page's policy."""

    def __init__(self, folder: Path, timeout_s: float = 60) -> None:
        found = next((path for path in map(shutil.which, NAMES) if path), None)
        if found is None:
            raise Absent(f"none of {', '.join(NAMES)} is installed; apt-get install chromium")
        self.timeout_s = timeout_s
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._number = 0
        self._pending = b""
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--hide-scrollbars",
        ]
        options += [
            "--disable-extensions",
            "--disable-background-networking",
            f"--user-data-dir={folder}",
            "--remote-debugging-pipe",
        ]
        # It speaks on descriptors 3 and 4, whatever numbers the pipes have here.
        script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, found, *options, "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._session: str | None = None
        (target,) = [
            one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"
        ]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """One command and its answer; what arrives meanwhile is noted."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self.timeout_s
        while True:
            answer = self._message(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def open(self, page: Path, width: int = 1100, height: int = 900, *, dark: bool = False) -> None:
        """Show a file at a size in CSS pixels; returns when it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Page.navigate", url=page.absolute().as_uri())
        deadline = time.monotonic() + self.timeout_s
        while (
            self.evaluate("document.readyState") != "complete"
            or self.evaluate("location.href") != page.absolute().as_uri()
        ):
            assert time.monotonic() < deadline, "the page does not load"

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, which no policy of the page forbids."""
        return self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )["result"].get("value")

    def boxes(self, selector: str) -> dict[str, tuple[int, int, int, int]]:
        """(left, top, right, bottom) in pixels of the whole page, by the id of each element that is shown."""
        script = (
            f"[...document.querySelectorAll({json.dumps(selector)})].map(e => [e.id, e.getBoundingClientRect()])"
            ".filter(([, r]) => r.width > 0)"
            ".map(([id, r]) => [id, [r.left + scrollX, r.top + scrollY, r.right + scrollX, r.bottom + scrollY]])"
        )
        return {name: tuple(round(one) for one in box) for name, box in self.evaluate(script)}

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(
            self.call(
                "Page.captureScreenshot", format="png", captureBeyondViewport=True, fromSurface=True
            )["data"]
        )

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

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            read = os.read(self._in, 1 << 16)
            assert read, "the browser has ended"
            self._pending += read
        first, _, self._pending = self._pending.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, found: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(found["exceptionDetails"].get("text")))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(
                f"console.{found['type']}: {[one.get('value') for one in found['args']]}"
            )
        elif method == "Log.entryAdded":
            self.complaints.append(f"{found['entry']['level']}: {found['entry']['text']}")
        elif method == "Audits.issueAdded":
            self.complaints.append(found["issue"]["code"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
