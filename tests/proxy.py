"""HAProxy with the exported configuration, in front of query workers of a test."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.conftest import skip_or_fail
from tests.services.servers import ToolMissingError, free_port
from tests.serving import until

CONFIGURATION = Path(__file__).parents[1] / "ops/deploy/files/haproxy.cfg"


def installed() -> str:
    """Where HAProxy is: without it a skip on a laptop, a failure in CI."""
    tool = shutil.which("haproxy")
    if tool is None:
        skip_or_fail(ToolMissingError("haproxy is needed to test the proxy: install it"))
    return str(tool)


@contextmanager
def proxy(tool: str, folder: Path, workers: list[str], check: str = "100ms") -> Iterator[str]:
    """The address of a proxy; only addresses and the pace of checks differ from the export."""
    port = free_port()
    lines = [
        f"server query{number} {url.removeprefix('http://')} check inter {check} fall 1 rise 1"
        for number, url in enumerate(workers)
    ]
    text = CONFIGURATION.read_text(encoding="utf-8").replace("bind :8631", f"bind 127.0.0.1:{port}")
    text, found = re.subn(r"server-template query .*", "\n  ".join(lines), text)
    assert found == 2
    file = folder / "haproxy.cfg"
    file.write_text(text, encoding="utf-8")
    process = subprocess.Popen([tool, "-db", "-q", "-f", str(file)])
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: process.poll() is not None or is_alive(url), "the proxy listens")
        yield url
    finally:
        process.kill()
        process.wait()


def is_alive(url: str) -> bool:
    """Whether a proxy answers by itself."""
    try:
        return httpx.get(f"{url}/proxy-alive").status_code == 200
    except httpx.HTTPError:
        return False
