"""Redaction: addresses as they may be kept and shown, for one may hold a password or a signature that opens what it names."""

import json
import re
from typing import Any

from stream.images.https import uri_for_message

_PATH = re.compile(r"file:(///|/[^/])", re.IGNORECASE)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[/\\]{1,3}\S+")


def redact_uri(uri: str) -> str:
    """A URI without what may be secret: a path on this machine as it is, of all others scheme, host and path."""
    return uri if _PATH.match(uri) else uri_for_message(uri)


def redact_text(text: str) -> str:
    """Text with the addresses in it made redact_uri: each string of a JSON document; elsewhere an address ends at white space. Text that
    holds no secret comes back as it is."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict | list):
        return str(_harmless(text))
    clean = _harmless(document)
    return text if clean == document else json.dumps(clean, ensure_ascii=False)


def _harmless(value: Any) -> Any:
    if isinstance(value, dict):
        return {_harmless(name): _harmless(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_harmless(member) for member in value]
    if not isinstance(value, str):
        return value
    # A string that begins as an address is one, white space or not.
    return (
        redact_uri(value)
        if _ADDRESS.match(value)
        else _ADDRESS.sub(lambda found: redact_uri(found[0]), value)
    )
