"""Workers that end in the middle: servers that leave connections as a killed process does."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

# What a killed process leaves: connections that are reset.
_RESET = struct.pack("ii", 1, 0)

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
NOT_READY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 7\r\n\r\nloading"

Fate = Callable[[socket.socket, int], bool]
"""Deals with a request, the number of which on its connection is given; whether it goes on."""


def answers(client: socket.socket, number: int) -> bool:
    """Answer everything."""
    client.sendall(ANSWER)
    return True


def is_loading(client: socket.socket, number: int) -> bool:
    """Refuse everything."""
    client.sendall(NOT_READY)
    return True


def ends_silently(client: socket.socket, number: int) -> bool:
    """End before anything was answered."""
    reset(client)
    return False


def ends_within_the_head(client: socket.socket, number: int) -> bool:
    """End in the middle of an answer's head."""
    client.sendall(ANSWER[:15])
    return False


def ends_after_one(client: socket.socket, number: int) -> bool:
    """Answer the first request of a connection, and reset it when a second one comes."""
    return answers(client, number) if number == 0 else ends_silently(client, number)


def reset(client: socket.socket) -> None:
    """Close a connection as the end of a process with unread bytes does."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


@dataclass
class MortalWorker:
    """A server of one fate, which is healthy."""

    fate: Fate
    held: threading.Event
    """Requests are held until it is set."""
    listener: socket.socket = field(
        default_factory=lambda: socket.create_server(("127.0.0.1", 0), backlog=256)
    )
    ready: bool = True
    requests: int = 0
    """That have arrived."""

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        """Accept connections until the listener is closed."""
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        number = 0
        with client, suppress(OSError):
            while head := _read(client):
                if head.startswith((b"GET /readyz", b"GET /healthz")):
                    is_good = self.ready or head.startswith(b"GET /healthz")
                    client.sendall(ANSWER if is_good else NOT_READY)
                    continue
                self.requests += 1
                self.held.wait()
                if not self.fate(client, number):
                    return
                number += 1


def _read(client: socket.socket) -> bytes:
    """The head of a request, whose body is thrown away; nothing at the end."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = client.recv(65536)
        if not part:
            return b""
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    missing = length - len(body)
    while missing > 0:
        part = client.recv(65536)
        if not part:
            return b""
        missing -= len(part)
    return head


@contextmanager
def mortal_worker(fate: Fate) -> Iterator[MortalWorker]:
    """A worker of one fate, which holds nothing."""
    worker = MortalWorker(fate, threading.Event())
    worker.held.set()
    thread = threading.Thread(target=worker.serve)
    thread.start()
    try:
        yield worker
    finally:
        worker.held.set()
        # Closing alone does not wake who accepts.
        with suppress(OSError):
            worker.listener.shutdown(socket.SHUT_RDWR)
        worker.listener.close()
        thread.join()
