"""The early refusal: 429 to a query while the line is full, from its bytes, before HTTP is parsed.

At ten times the capacity nearly every request ends here, so what one costs decides how soon the
others are told: parsing HTTP and calling an application take much longer.
"""

import re
from collections.abc import Callable

from workers.api.addresses import QUERY_PATH
from workers.query.refusals import OVERLOADED
from workers.runtime.connection_guard import EarlyAnswer
from workers.runtime.refusal import RawHeaders, Refusal

_OVERLOADED_ANSWER = OVERLOADED.to_http()

_REQUEST_LINE = f"POST {QUERY_PATH} HTTP/1.1\r\n".encode()

# What may change where a request ends or what becomes of its connection (RFC 9112, sections 6 and
# 9). Such heads are rare, and left to those who know all of HTTP.
_UNUSUAL = re.compile(rb"transfer-encoding|expect|upgrade|close", re.IGNORECASE)

# Bytes of a body that is waited for after a refusal: as many as a query may have.
_MAX_BODY_BYTES = 64 * 1024

_LENGTH_NAME = re.compile(rb"content-length", re.IGNORECASE)

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)


class EarlyRefusal:
    """Lets queries in or refuses them (`EarlyAnswers`). For the thread of the event loop."""

    def __init__(
        self,
        is_full: Callable[[], bool],
        most: Callable[[], int],
        may_wait: Callable[[RawHeaders], bool],
        judge: Callable[[RawHeaders], Refusal | None],
        count: Callable[[], None],
    ) -> None:
        """`is_full` tells whether the line is full, `most` how many queries may be under way.

        `may_wait` tells whether a request may ask at all: others take no place. `judge` refuses
        by host, key and rate, which come first. `count` is called for each query that is refused
        because there are too many.
        """
        self._is_full = is_full
        self._most = most
        self._may_wait = may_wait
        self._judge = judge
        self._count = count
        # The line alone cannot tell: one turn of the event loop reads the requests of hundreds of
        # connections, and none of them joins the line before the next turn.
        self._under_way: set[object] = set()

    def answer(self, connection: object, data: bytes) -> EarlyAnswer | None:
        """See `EarlyAnswers`."""
        length = query_length(data)
        if length is None or length < len(data):
            return None
        missing = length - len(data)
        if self._is_full() or len(self._under_way) >= self._most():
            return EarlyAnswer(self._refuse(data), missing)
        # A query without its body does not count, nor one without a key where one is needed:
        # whoever sends many of them would shut others out.
        if not missing and self._may_wait(raw_headers(data)):
            self._under_way.add(connection)
        return None

    def _refuse(self, data: bytes) -> bytes:
        refusal = self._judge(raw_headers(data))
        if refusal is not None:
            return refusal.to_http()
        self._count()
        return _OVERLOADED_ANSWER

    def end(self, connection: object) -> None:
        """See `EarlyAnswers`."""
        self._under_way.discard(connection)


def query_length(data: bytes) -> int | None:
    """Return the bytes of the request for an answer that begins here; None if it is no usual one.

    Many clients send head and body apart, so the head is enough.
    """
    if not data.startswith(_REQUEST_LINE):
        return None
    head_end = data.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = data[: head_end + 4]
    length = _LENGTH.search(head)
    # Two lengths, however one of them is written, could be read in two ways.
    if length is None or len(_LENGTH_NAME.findall(head)) != 1 or _UNUSUAL.search(head):
        return None
    body_length = int(length[1])
    return len(head) + body_length if body_length <= _MAX_BODY_BYTES else None


def raw_headers(data: bytes) -> RawHeaders:
    """Read the headers of a request whose head is whole."""
    lines = data[: data.index(b"\r\n\r\n")].split(b"\r\n")[1:]
    headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip()))
    return headers
