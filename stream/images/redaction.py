"""Redaction: addresses as they may be stored and shown.

An address that somebody sends may hold a password, or a signature that opens what it names. Dead
letters, logs and messages are read by more people than the events are.
"""

import json
import re
from typing import Any

# Characters of an address or a path that a message shows.
_SHOWN_CHARACTERS = 200

# Characters of an address that an answer shows: longer ones hold data, not a place.
_ANSWERED_CHARACTERS = 2000

_LOCAL_FILE = re.compile(r"file:(///|/[^/])", re.IGNORECASE)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[/\\]{1,3}\S+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[/\\]*")
_HOST_AND_PORT = re.compile(r"[^:]*:[0-9]*|\[[0-9A-Fa-f:.]*\](:[0-9]*)?")


def redact_uri(uri: str) -> str:
    """Drop what may be secret from a URI; a path on this machine stays whole."""
    return uri if _LOCAL_FILE.match(uri) else uri_for_message(uri)


def uri_for_answer(uri: str) -> str:
    """Return a URI as answers show it: nothing secret, in one line, and of bounded length."""
    if _LOCAL_FILE.match(uri):
        return printable(uri, _ANSWERED_CHARACTERS)
    return uri_for_message(uri, _ANSWERED_CHARACTERS)


def redact_text(text: str) -> str:
    """Redact the addresses in a text: in each string of a JSON document, or in plain text.

    In plain text an address ends at white space. Text that holds no secret comes back unchanged.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return _redact_string(text)
    if not isinstance(document, dict | list):
        return _redact_string(text)
    redacted = _redact(document)
    return text if redacted == document else json.dumps(redacted, ensure_ascii=False)


def uri_for_message(uri: str, limit: int = _SHOWN_CHARACTERS) -> str:
    """Return a URI without user, password, query and fragment, fit for one line of a message."""
    bare = re.split(r"[?#]", uri, maxsplit=1)[0]
    match = _SCHEME.match(bare)
    scheme = match[0] if match else ""
    rest = bare[len(scheme) :].rpartition("@")[2]
    place = re.split(r"[/\\]", rest, maxsplit=1)[0]
    # A password may itself hold the marks that end a host, such as / and #; then what seems to be
    # the place is a part of the password. Show only what looks like host:port.
    if ":" in place and ("@" in uri or not _HOST_AND_PORT.fullmatch(place)):
        rest = "[hidden]"
    return printable(scheme + rest, limit)


def printable(text: str, limit: int = _SHOWN_CHARACTERS) -> str:
    """Return the beginning of a hostile text, fit for one line of a message or a log.

    Line ends would forge log lines, and other control characters would steer a terminal.
    """
    shown = text[:limit]
    return "".join(letter if letter.isprintable() else "?" for letter in shown)


def _redact(value: Any) -> Any:
    """Redact the strings of a JSON value."""
    if isinstance(value, dict):
        return {_redact(name): _redact(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_redact(member) for member in value]
    return _redact_string(value) if isinstance(value, str) else value


def _redact_string(text: str) -> str:
    # A string that begins as an address is one as a whole: a password may hold white space.
    if _ADDRESS.match(text):
        return redact_uri(text)
    return _ADDRESS.sub(lambda address: redact_uri(address[0]), text)
