"""HAProxy with the exported configuration, in front of query workers of a test."""

import csv
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.conftest import skip_or_fail
from tests.services.servers import ToolMissingError, free_port
from tests.serving import until

CONFIGURATION = Path(__file__).parents[1] / "ops/deploy/files/haproxy.cfg"

STATISTICS = """
frontend statistics
  bind 127.0.0.1:{port}
  no log
  stats enable
  stats uri /
"""

LOG_TAIL = 4000


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    url: str
    statistics: str
    """The address of what it thinks of its workers."""
    file: Path
    process: "subprocess.Popen[bytes]"

    @property
    def log(self) -> str:
        """What it wrote: requests that failed or were tried again, and workers that come and go."""
        return self.file.read_text(encoding="utf-8", errors="replace")

    @property
    def is_alive(self) -> bool:
        """Whether it answers by itself."""
        return _status(f"{self.url}/proxy-alive") == 200

    def ready_workers(self) -> int:
        """How many workers it sends requests to."""
        rows = csv.DictReader(httpx.get(f"{self.statistics}/;csv").text.splitlines())
        return sum(
            row["# pxname"] == "ready"
            and row["svname"] != "BACKEND"
            and row["status"].startswith("UP")
            for row in rows
        )


def installed() -> str:
    """Where HAProxy is: without it a skip on a laptop, a failure in CI."""
    tool = shutil.which("haproxy")
    if tool is None:
        skip_or_fail(ToolMissingError("haproxy is needed to test the proxy: install it"))
    return str(tool)


@contextmanager
def proxy(tool: str, folder: Path, workers: list[str], check: str = "1s") -> Iterator[Proxy]:
    """A proxy; only the addresses, and the pace of checks where one is given, differ.

    Its log is in the folder, and an end of its own is a failure.
    """
    ports = free_port(), free_port()
    text = CONFIGURATION.read_text(encoding="utf-8")
    text = text.replace("bind :8631", f"bind 127.0.0.1:{ports[0]}")
    server = re.compile(r"server-template query 16 query:8631 (.*) resolvers docker init-addr none")
    lines = [f"server query{n} {url.removeprefix('http://')} \\1" for n, url in enumerate(workers)]
    text, found = server.subn("\n  ".join(lines), text)
    assert found == 2
    text = text.replace("check inter 1s", f"check inter {check}")
    configured = folder / "haproxy.cfg"
    configured.write_text(text + STATISTICS.format(port=ports[1]), encoding="utf-8")
    file = folder / "haproxy.log"
    with file.open("wb") as log:
        command = [tool, "-db", "-f", str(configured)]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    running = Proxy(*(f"http://127.0.0.1:{port}" for port in ports), file, process)
    try:
        until(lambda: process.poll() is not None or running.is_alive, "the proxy listens")
        yield running
        assert process.poll() is None, f"HAProxy ended by itself: {running.log[-LOG_TAIL:]}"
    finally:
        process.kill()
        process.wait()


def _status(url: str) -> int:
    """The status of an answer, 0 without one."""
    try:
        return httpx.get(url).status_code
    except httpx.HTTPError:
        return 0
