"""The target of an `https://` URI: parsed strictly, and refused where its text alone tells enough.

Attacks on such guards live from parsers that disagree. So there is one strict grammar here, and
what does not fit it as a whole is refused: nothing is corrected, decoded or guessed.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from schemas.errors import RejectInputError, UsageError
from stream.images.redaction import uri_for_message

HTTPS_PORT = 443

# Characters. What common servers accept in a request line.
_MAX_URI = 8192

_URI = re.compile(
    r"https://(?P<place>[^/?#]*)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(#.*)?", re.IGNORECASE
)
_PLACE = re.compile(r"(?P<host>[^:]+)(:(?P<port>[0-9]{1,5}))?")
# The last label starts with a letter: then no spelling of an IP address is a name, be it decimal,
# octal, hexadecimal or short.
_NAME = re.compile(
    r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
)
# Printable ASCII without what parsers read differently: programs disagree on backslashes, line
# ends would add headers to the request, and Unicode has look-alike dots and digits.
_PLAIN = re.compile(r"[!#-;=?-\[\]_a-z~]*")


@dataclass(frozen=True, slots=True)
class HttpsTarget:
    """Where a request goes."""

    uri: str
    label: str
    """The URI without secrets, for messages."""
    host: str
    port: int
    path: str
    """Path and query, as they are sent."""


def is_plain(text: str) -> bool:
    """Whether a text has only characters that every parser of URIs reads alike."""
    return _PLAIN.fullmatch(text) is not None


def check_host_patterns(patterns: Sequence[str]) -> None:
    """Refuse patterns other than names and `*.` before a name of two labels or more."""
    for pattern in patterns:
        name = pattern.removeprefix("*.")
        # A whole top-level domain is more than anybody means.
        too_wide = name != pattern and "." not in name
        if too_wide or not _NAME.fullmatch(name):
            raise UsageError(
                "SIGMA_HTTPS_HOSTS must be names such as images.example.org or *.example.org, "
                f"got {pattern!r}; correct it"
            )


def parse_target(uri: str, host_patterns: Sequence[str], ports: Collection[int]) -> HttpsTarget:
    """Parse a URI of an allowed host and port.

    `RejectInputError` codes: unsupported-source, forbidden-host, forbidden-port.
    """
    label = uri_for_message(uri)
    if len(uri) > _MAX_URI or not is_plain(uri):
        raise RejectInputError(
            "unsupported-source",
            f"a URI must have at most {_MAX_URI:,} characters, and only those of a URI, "
            f"got {label}; percent-encode or shorten it",
        )
    parts = _URI.fullmatch(uri)
    if parts is None:
        raise RejectInputError(
            "unsupported-source", f"the URI must be an https:// address, got {label}; send one"
        )
    host, port = _parse_place(parts["place"], label)
    if not _is_allowed(host, host_patterns):
        raise RejectInputError(
            "forbidden-host",
            f"the host must be one of {', '.join(host_patterns)}, got {host} in {label}; "
            "move the image or add the host to SIGMA_HTTPS_HOSTS",
        )
    if port not in ports:
        allowed = ", ".join(str(port) for port in sorted(ports))
        raise RejectInputError(
            "forbidden-port",
            f"the port must be {allowed}, got {port} in {label}; serve the image there",
        )
    path = (parts["path"] or "/") + (parts["query"] or "")
    return HttpsTarget(uri=uri, label=label, host=host, port=port, path=path)


def _parse_place(place: str, label: str) -> tuple[str, int]:
    """Split host and port, the host in lower case."""
    # https://allowed.example@127.0.0.1/ goes to 127.0.0.1.
    if "@" in place:
        raise RejectInputError(
            "forbidden-host",
            f"the URI must not hold a user name or password, got one in {label}; send it without",
        )
    parts = _PLACE.fullmatch(place)
    host = parts["host"].lower() if parts else ""
    if parts is None or not _NAME.fullmatch(host):
        raise RejectInputError(
            "forbidden-host",
            f"the URI must name its host by a plain name, not by a numeric address, got {label}; "
            "send the host's name",
        )
    return host, int(parts["port"] or HTTPS_PORT)


def _is_allowed(host: str, patterns: Sequence[str]) -> bool:
    for pattern in patterns:
        if host == pattern:
            return True
        # With the dot: evilexample.org does not end with .example.org.
        if pattern.startswith("*.") and host.endswith(pattern[1:]):
            return True
    return False
