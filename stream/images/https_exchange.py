"""One HTTP exchange with a hostile server: a request, and a body or a redirect, within limits.

The server may be slow on purpose, send without end, or declare sizes that are not true. One
deadline covers the whole exchange, and the body is cut at a cap whatever it declares.
"""

import http.client
import io
import ssl
import time
from typing import Any
from urllib.parse import urljoin

from schemas.errors import RejectInputError, RetryLaterError
from stream.images.https_target import HTTPS_PORT, HttpsTarget, is_plain

# Statuses below 500 of a server that asks to be tried again: timeout, too early, too many.
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 425, 429)
# Bytes that are read at a time.
_PART_BYTES = 1 << 16


class Deadline:
    """A moment by which everything must be done."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds left; `TimeoutError` when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        return left


def exchange(
    sock: ssl.SSLSocket, target: HttpsTarget, cap_bytes: int, deadline: Deadline
) -> bytes | str:
    """Request a target over a connected socket; returns the body, or the URI of a redirect.

    Raises `TimeoutError` at the deadline, `RetryLaterError` for a server that is unwell, and
    `RejectInputError` with the codes unreadable and too-many-bytes.
    """
    connection = http.client.HTTPConnection(target.host, target.port)
    connection.sock = _DeadlineSocket(sock, deadline)
    host = target.host if target.port == HTTPS_PORT else f"{target.host}:{target.port}"
    headers = {
        "Host": host,
        "Accept": "image/*",
        "User-Agent": "sigma-stream",
        "Connection": "close",
    }
    connection.request("GET", target.path, headers=headers)
    with connection.getresponse() as response:
        if response.status in _REDIRECTS:
            return _redirect(response, target)
        if response.status in _TRANSIENT or response.status >= 500:
            raise RetryLaterError(
                f"{target.label} answered with status {response.status}; "
                "try again when its server is well"
            )
        if response.status != 200:
            raise RejectInputError(
                "unreadable",
                f"{target.label} must answer with status 200, got {response.status}; "
                "make it readable for everybody",
            )
        return _body(response, target, cap_bytes)


class _DeadlineSocket:
    """What `http.client` needs of a socket, with one deadline over all waits.

    The timeout of a plain socket is per wait: a byte now and then would renew it for ever.
    """

    def __init__(self, sock: ssl.SSLSocket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._deadline.left())
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._sock, self._deadline))

    def close(self) -> None:
        """Do nothing: whoever opened the socket closes it."""


class _DeadlineReader(io.RawIOBase):
    """The reading half of `_DeadlineSocket`."""

    def __init__(self, sock: ssl.SSLSocket, deadline: Deadline) -> None:
        super().__init__()
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._deadline.left())
        return self._sock.recv_into(buffer)


def _redirect(response: http.client.HTTPResponse, target: HttpsTarget) -> str:
    location = response.getheader("Location", "")
    # Checked before it is joined: joining silently drops tabs and line ends.
    if not location or not is_plain(location):
        raise RejectInputError(
            "unreadable",
            f"a redirect must name a plain address, got none from {target.label}; "
            "send the address of the image itself",
        )
    return urljoin(target.uri, location)


def _body(response: http.client.HTTPResponse, target: HttpsTarget, cap_bytes: int) -> bytes:
    # Packed bodies could unpack to more than the cap.
    _require_header(response, target, "Content-Encoding", "identity")
    _require_header(response, target, "Transfer-Encoding", "chunked")
    # Read now: http.client counts it down while the body is read. None in chunks or until the end.
    declared = response.length
    if declared is not None and declared > cap_bytes:
        raise _too_large(target, declared, cap_bytes)
    data = bytearray()
    while len(data) <= cap_bytes:
        # read1, not read: with a negative chunk size, read takes all until the connection ends.
        part = response.read1(_PART_BYTES)
        if not part:
            break
        data += part
    if len(data) > cap_bytes:
        raise _too_large(target, len(data), cap_bytes)
    if declared is not None and len(data) < declared:
        raise RejectInputError(
            "unreadable",
            f"{target.label} must send the {declared:,} bytes that it declares, got {len(data):,}; "
            "serve the whole file, then send it again",
        )
    return bytes(data)


def _require_header(
    response: http.client.HTTPResponse, target: HttpsTarget, name: str, allowed: str
) -> None:
    value = response.getheader(name, "").strip().lower()
    if value not in ("", allowed):
        raise RejectInputError(
            "unreadable",
            f"{target.label} must be sent as it is, got it packed ({name}); serve it unpacked",
        )


def _too_large(target: HttpsTarget, size: int, cap_bytes: int) -> RejectInputError:
    return RejectInputError(
        "too-many-bytes",
        f"the image must have at most {cap_bytes:,} bytes (SIGMA_MAX_IMAGE_BYTES={cap_bytes}), "
        f"got {size:,} or more from {target.label}; shrink it or raise it",
    )
