"""The host check: by which names a port on loopback may be asked.

A web page can give its own name the address 127.0.0.1 and then, in the browser of somebody who
works on this machine, read what a port on loopback answers (DNS rebinding). Its requests carry its
name in the Host header, so only names that are known to be local are answered. Beyond loopback
there are keys, which no web page has.
"""

import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from schemas.errors import RefuseToStartError
from schemas.settings import Settings
from stream.images.redaction import printable
from workers.runtime.refusal import RawHeaders, Refusal

MISDIRECTED_REQUEST = 421

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

HIGHEST_PORT = 65535

# Letters of a refused value that are quoted.
_QUOTED_LETTERS = 80

# RFC 9110, section 7.2, without what no browser sends: percent escapes and user information.
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>\d+))?")


def host_name(header: bytes) -> str | None:
    """Read a Host header; returns the name in the form in which names are compared, or None.

    Small letters, without port and final dot; an IPv6 address without brackets, in its short form.
    """
    if not header.isascii():
        return None
    match = _HOST.fullmatch(header.decode("ascii"))
    if match is None:
        return None
    port = match["port"]
    # Compared by length first: int() refuses thousands of digits.
    if port is not None and (len(port) > len(str(HIGHEST_PORT)) or int(port) > HIGHEST_PORT):
        return None
    if match["ipv6"] is None:
        return match["name"].lower().removesuffix(".")
    try:
        return str(IPv6Address(match["ipv6"]))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class HostCheck:
    """Which names are answered; every name when there are none."""

    names: frozenset[str]

    @classmethod
    def of_listener(cls, address: str, allowed: Iterable[str]) -> "HostCheck":
        """The check of a port that listens on an address, with the names of the settings."""
        if not is_loopback(address):
            return cls(frozenset())
        return cls(LOCAL_HOSTS | {address, *allowed})

    def refusal(
        self, request_headers: RawHeaders, *, may_be_missing: bool = False
    ) -> Refusal | None:
        """Return why a request is refused, None when it is not.

        `may_be_missing` is for addresses that load balancers ask by HTTP/1.0, which has no Host.
        No browser leaves it out.
        """
        if not self.names:
            return None
        headers = host_headers(request_headers)
        if not headers and may_be_missing:
            return None
        # h11 refuses several Host headers, and HTTP/1.1 without one; here for HTTP/1.0.
        if len(headers) == 1 and host_name(headers[0]) in self.names:
            return None
        return Refusal(
            MISDIRECTED_REQUEST,
            "the Host header must be localhost, 127.0.0.1, [::1] or a name of SIGMA_ALLOWED_HOSTS,"
            f" got {_shown(headers)}; ask by one of them",
        )


def host_headers(headers: RawHeaders) -> list[bytes]:
    """The Host headers of a request."""
    return [value for name, value in headers if name == b"host"]


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an IP address; anything else counts as beyond."""
    try:
        return _parsed(address).is_loopback
    except ValueError:
        return False


def require_keys(settings: Settings, listener: socket.socket) -> None:
    """Refuse to listen beyond loopback without keys: `RefuseToStartError`.

    It looks at the socket, not at the setting: a name may stand for any address.
    """
    address = listening_address(listener)
    if settings.access.has_keys or is_loopback(address):
        return
    raise RefuseToStartError(
        "SIGMA_API_KEYS must be set to listen beyond loopback, got no keys and the address"
        f" {address}; make a key with: sigma keys new NAME, or set SIGMA_HTTP_HOST=127.0.0.1"
    )


def listening_address(listener: socket.socket) -> str:
    """The address that a socket listens on: an IP address, or what another family calls it."""
    name = listener.getsockname()
    return str(name[0]) if isinstance(name, tuple) else str(name)


def _parsed(address: str) -> IPv4Address | IPv6Address:
    parsed = ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed


def _shown(headers: Sequence[bytes]) -> str:
    if not headers:
        return "none"
    if len(headers) > 1:
        return f"{len(headers)} of them"
    text = headers[0].decode("latin-1")
    shown = printable(text[:_QUOTED_LETTERS])
    return f'"{shown}"' if len(text) <= _QUOTED_LETTERS else f'"{shown}…"'
