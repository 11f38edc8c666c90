"""The request form: what must hold of every head before anybody reads meaning into it.

What can be read in two ways, one program in front of us may read in the other one.
"""

import re
from urllib.parse import unquote_to_bytes

from workers.runtime.connection_guard import MAX_HEAD_BYTES
from workers.runtime.refusal import RawHeaders, Refusal

_BAD_REQUEST = 400

# RFC 3986, section 2.1.
_HALF_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")

_TOO_LARGE = Refusal(
    _BAD_REQUEST, f"the request must have a head of at most {MAX_HEAD_BYTES:,} bytes; shorten it"
)
_TWO_LENGTHS = Refusal(
    _BAD_REQUEST,
    "a request must have one of the headers content-length and transfer-encoding, got both",
)
_NOT_ENCODED = Refusal(
    _BAD_REQUEST,
    "a % in an address must begin two hexadecimal digits, got others; encode it as %25",
)
_NOT_TEXT = Refusal(
    _BAD_REQUEST,
    "the parameters of the address must be UTF-8, percent-encoded, got other bytes; encode them",
)


def form_refusal(path: str, query: bytes, headers: RawHeaders) -> Refusal | None:
    """Refuse a head that is too large or can be read in two ways; `path` as it was sent.

    A head that comes in one piece is never too large for the parser, however long it is.
    """
    size = len(path) + len(query)
    names = set()
    for name, value in headers:
        # As it is written: a colon, a space and the end of the line.
        size += len(name) + len(value) + 4
        names.add(name)
    if size > MAX_HEAD_BYTES:
        return _TOO_LARGE
    if {b"content-length", b"transfer-encoding"} <= names:
        return _TWO_LENGTHS
    if _HALF_ESCAPE.search(query) or _HALF_ESCAPE.search(path.encode()):
        return _NOT_ENCODED
    try:
        unquote_to_bytes(query).decode("utf-8")
    except UnicodeDecodeError:
        return _NOT_TEXT
    return None
