"""Readiness: how a process that was just started tells its starter that it can take work.

The protocol is systemd's `sd_notify`: the child finds a socket's address in `NOTIFY_SOCKET` and
sends `READY=1` to it, and before that `STATUS=…` as it gets on. `workers.runtime.process` is the
sending side.
"""

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Longest notification that is read; `READY=1` and a few more lines need far less.
DATAGRAM_BYTES = 4096

_STATUS = b"STATUS="


class ReadinessListener:
    """Receives the readiness notification of one process."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._ready = False
        self._news = ""

    @property
    def environment(self) -> dict[str, str]:
        """The variable that the process has to find in its environment."""
        return {"NOTIFY_SOCKET": str(self._listener.getsockname())}

    def is_ready(self) -> bool:
        """Whether the process has announced itself. Does not wait."""
        self._receive()
        return self._ready

    def take_news(self) -> str:
        """What the process said last of how far it is; empty without news. Does not wait."""
        self._receive()
        news, self._news = self._news, ""
        return news

    def _receive(self) -> None:
        with suppress(BlockingIOError):
            while not self._ready:
                for line in self._listener.recv(DATAGRAM_BYTES).split(b"\n"):
                    self._ready = self._ready or line == b"READY=1"
                    if line.startswith(_STATUS):
                        self._news = line.removeprefix(_STATUS).decode(errors="replace")


@contextmanager
def listen_for_readiness() -> Iterator[ReadinessListener]:
    """Open an address where one process can announce itself; it is removed at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="sigma-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(str(Path(folder) / "ready"))
        listener.setblocking(False)
        yield ReadinessListener(listener)
