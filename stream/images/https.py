"""The guard: reads `https://` images of allowed public hosts, and lets no URI lead into the private network."""

import http.client
import io
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

from schemas.errors import RejectInputError, RetryLaterError, UsageError

Resolver = Callable[[str, int], Sequence[str]]
"""From host name and port to addresses; raises `socket.gaierror`."""
Connector = Callable[[str, int, float], socket.socket]
"""From address, port and seconds to a connected socket; raises `OSError`."""

_MAX_REDIRECTS, _MAX_URI, _PART = 3, 8192, 1 << 16
_REDIRECTS, _PASSING = (301, 302, 303, 307, 308), (408, 425, 429)
_URI = re.compile(
    r"https://(?P<place>[^/?#]*)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(#.*)?", re.IGNORECASE
)
_PLACE = re.compile(r"(?P<host>[^:]+)(:(?P<port>[0-9]{1,5}))?")
# The last label starts with a letter: then no spelling of an IP address is a name, be it decimal, octal, hex or short.
_NAME = re.compile(
    r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
)
# Printable ASCII without what parsers read differently: programs disagree on backslashes, and Unicode has look-alike dots.
_PLAIN = re.compile(r"[!#-;=?-\[\]_a-z~]*")

# Listed in full, for what `ipaddress` calls global differs between Python versions. 168.63.129.16 is Azure's inner service.
_NOT_PUBLIC = [
    *map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "168.63.129.16/32",
            "169.254.0.0/16",
        ),
    ),
    *map(
        ipaddress.ip_network,
        (
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
        ),
    ),
    *map(ipaddress.ip_network, ("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4")),
    *map(ipaddress.ip_network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")),
]
_UNICAST_V6 = ipaddress.ip_network("2000::/3")


class HttpsReader:
    """Reads from hosts on a list: exact names, or `*.example.org` for every name below it. Safe for several threads.

    A name is resolved once and the connection goes to the address that was checked; TLS still checks the name.
    `resolver`, `connector` and `tls` are for tests.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        ports: Collection[int] = (443,),
        timeout_s: float = 10.0,
        connect_timeout_s: float = 3.0,
        resolver: Resolver | None = None,
        connector: Connector | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts = tuple(host.lower() for host in hosts)
        for host in self._hosts:
            name = host.removeprefix("*.")
            if not _NAME.fullmatch(name) or (name != host and "." not in name):
                raise UsageError(
                    f"SIGMA_HTTPS_HOSTS holds {host!r}, allowed are names such as images.example.org or *.example.org; correct it"
                )
        self._ports = frozenset(ports)
        self._timeout_s, self._connect_timeout_s = timeout_s, connect_timeout_s
        self._resolver, self._connector = resolver or resolve, connector or connect
        self._tls = tls or ssl.create_default_context()

    def read(self, uri: str, cap_bytes: int) -> bytes:
        """The bytes behind a URI, at most `cap_bytes`. What passes by itself is a `RetryLaterError`.

        `RejectInputError` codes: unsupported-source, forbidden-host, forbidden-port, private-address, too-many-redirects,
        too-many-bytes, timeout, unreadable.
        """
        if not self._hosts:
            raise https_disabled()
        deadline = _Deadline(self._timeout_s)
        target = self._target(uri)
        for _ in range(_MAX_REDIRECTS + 1):
            answer = self._fetch(target, cap_bytes, deadline)
            if isinstance(answer, bytes):
                return answer
            try:
                target = self._target(answer)
            except RejectInputError as error:
                raise RejectInputError(
                    error.code, f"{target.shown} redirects to a place that may not be read: {error}"
                ) from error
        raise RejectInputError(
            "too-many-redirects",
            f"{uri_for_message(uri)} redirects more often than the allowed {_MAX_REDIRECTS} times; send the last address",
        )

    def _target(self, uri: str) -> "_Target":
        """Everything that the text alone can tell. Parsed strictly, so that nothing else can read it in another way."""
        what = uri_for_message(uri)
        if len(uri) > _MAX_URI or not _PLAIN.fullmatch(uri):
            message = f"{what} is too long or has characters other than those of a URI; send at most {_MAX_URI:,}, percent-encoded"
            raise RejectInputError("unsupported-source", message)
        parts = _URI.fullmatch(uri)
        if parts is None:
            raise RejectInputError(
                "unsupported-source",
                f"{what} is no https:// address, which alone is allowed; send one",
            )
        if "@" in parts["place"]:
            raise RejectInputError(
                "forbidden-host",
                f"{what} came with a user name or password, which is not allowed; send it without",
            )
        place = _PLACE.fullmatch(parts["place"])
        host = place["host"].lower() if place else ""
        if place is None or not _NAME.fullmatch(host):
            message = f"{what} does not name its host by a plain name, and numeric addresses are not allowed; send the host name"
            raise RejectInputError("forbidden-host", message)
        if not any(
            host == one or (one.startswith("*.") and host.endswith(one[1:])) for one in self._hosts
        ):
            allowed = ", ".join(self._hosts)
            message = f"{what} is on host {host}, allowed are {allowed}; move the image or add the host to SIGMA_HTTPS_HOSTS"
            raise RejectInputError("forbidden-host", message)
        port = int(place["port"] or 443)
        if port not in self._ports:
            allowed = ", ".join(map(str, sorted(self._ports)))
            raise RejectInputError(
                "forbidden-port", f"{what} is on port {port}, allowed is {allowed}; serve it there"
            )
        return _Target(uri, what, host, port, (parts["path"] or "/") + (parts["query"] or ""))

    def _fetch(self, target: "_Target", cap_bytes: int, deadline: "_Deadline") -> bytes | str:
        """The body, or the address of a redirect."""
        try:
            with closing(self._connected(target, deadline)) as sock:
                return _exchange(sock, target, cap_bytes, deadline)
        except TimeoutError as error:
            message = f"{target.shown} did not arrive within the allowed {self._timeout_s:g} seconds; serve it faster or send a smaller copy"
            raise RejectInputError("timeout", message) from error
        except OSError as error:
            raise RetryLaterError(
                f"the connection to {target.shown} broke ({_reason(error)}); try again"
            ) from error
        except (http.client.HTTPException, ValueError) as error:
            message = f"{target.shown} did not answer in plain HTTP ({type(error).__name__}); correct the server or the address"
            raise RejectInputError("unreadable", message) from error

    def _connected(self, target: "_Target", deadline: "_Deadline") -> ssl.SSLSocket:
        found = "no address"
        for address in self._addresses(target, deadline):
            try:
                sock = self._connector(
                    address, target.port, min(self._connect_timeout_s, deadline.left())
                )
                with closing(sock):
                    sock.settimeout(min(self._connect_timeout_s, deadline.left()))
                    # On success the new socket takes over, and closing the old one does nothing.
                    return self._tls.wrap_socket(sock, server_hostname=target.host)
            except ssl.SSLCertVerificationError as error:
                message = f"{target.shown} shows a certificate that does not hold ({error.verify_message}); correct the certificate"
                raise RejectInputError("unreadable", message) from error
            except OSError as error:
                if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                    message = f"{target.shown} does not speak TLS 1.2 or newer ({error.reason}); correct its server"
                    raise RejectInputError("unreadable", message) from error
                found = _reason(error)
        raise RetryLaterError(
            f"{target.shown} cannot be connected to ({found}); check that its server is up, then try again"
        )

    def _addresses(self, target: "_Target", deadline: "_Deadline") -> Sequence[str]:
        """The addresses of the host, all of them public. The system's resolver has no time limit, hence the thread."""
        answers: queue.SimpleQueue[Sequence[str] | Exception] = queue.SimpleQueue()

        def look_up() -> None:
            try:
                answers.put(self._resolver(target.host, target.port))
            except Exception as error:
                answers.put(error)

        threading.Thread(target=look_up, name="resolve", daemon=True).start()
        try:
            answer = answers.get(timeout=deadline.left())
        except queue.Empty as error:
            raise RetryLaterError(
                f"the name {target.host} was not resolved within {self._timeout_s:g} seconds; try again"
            ) from error
        if isinstance(answer, socket.gaierror) and answer.errno in (
            socket.EAI_NONAME,
            getattr(socket, "EAI_NODATA", None),
        ):
            raise RejectInputError(
                "unreadable",
                f"{target.shown} is on host {target.host}, which does not exist; correct the name",
            )
        if isinstance(answer, OSError):
            raise RetryLaterError(
                f"the name {target.host} cannot be resolved now ({_reason(answer)}); try again"
            ) from answer
        if isinstance(answer, Exception):
            raise answer
        if not answer or not all(is_public(address) for address in answer):
            message = f"{target.shown} is on host {target.host}, which has an address that is not public; serve it from a public address"
            raise RejectInputError("private-address", message)
        return answer


def https_disabled() -> RejectInputError:
    """The refusal of every `https://` URI where no host is allowed."""
    message = "the URI is an https:// address and no host is allowed; name the allowed hosts in SIGMA_HTTPS_HOSTS"
    return RejectInputError("unsupported-source", message)


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet. IPv6 forms that hold an IPv4 address are not."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and (
        found.scope_id is not None or found not in _UNICAST_V6
    ):
        return False
    return (
        found.is_global
        and not found.is_multicast
        and not found.is_reserved
        and not any(found in one for one in _NOT_PUBLIC)
    )


def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses that the system gives for a name."""
    return list(
        dict.fromkeys(
            str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
    )


def connect(address: str, port: int, timeout_s: float) -> socket.socket:
    """A connection to an address, past every proxy."""
    return socket.create_connection((address, port), timeout_s)


def uri_for_message(uri: str) -> str:
    """A URI fit for a message: without user, password, query and fragment, at most 200 printable characters."""
    bare = re.split(r"[?#]", uri, maxsplit=1)[0]
    start = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:[/\\]*", bare)
    scheme = start[0] if start else ""
    rest = bare[len(scheme) :].rpartition("@")[2]
    place = re.split(r"[/\\]", rest, maxsplit=1)[0]
    # A password may hold the very marks that end a host; what does not look like host:port is then not shown.
    if ":" in place and (
        "@" in uri or not re.fullmatch(r"[^:]*:[0-9]*|\[[0-9A-Fa-f:.]*\](:[0-9]*)?", place)
    ):
        rest = "[hidden]"
    return "".join(letter if letter.isprintable() else "?" for letter in (scheme + rest)[:200])


@dataclass(frozen=True, slots=True)
class _Target:
    uri: str
    shown: str
    host: str
    port: int
    path: str


class _Deadline:
    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("no time is left")
        return left


class _Wire:
    """What `http.client` needs of a socket, with one deadline over all waits: a byte now and then does not renew it."""

    def __init__(self, sock: ssl.SSLSocket, deadline: _Deadline) -> None:
        self._sock, self._deadline = sock, deadline

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._deadline.left())
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._deadline))

    def close(self) -> None:
        """Nothing: whoever opened the socket closes it."""


class _Reader(io.RawIOBase):
    def __init__(self, sock: ssl.SSLSocket, deadline: _Deadline) -> None:
        super().__init__()
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._deadline.left())
        return self._sock.recv_into(buffer)


def _exchange(
    sock: ssl.SSLSocket, target: _Target, cap_bytes: int, deadline: _Deadline
) -> bytes | str:
    connection = http.client.HTTPConnection(target.host, target.port)
    connection.sock = _Wire(sock, deadline)
    host = target.host if target.port == 443 else f"{target.host}:{target.port}"
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
        if response.status in _PASSING or response.status >= 500:
            raise RetryLaterError(
                f"{target.shown} answered with status {response.status}; try again when its server is well"
            )
        if response.status != 200:
            message = f"{target.shown} answered with status {response.status}, only 200 is allowed; make it readable for everybody"
            raise RejectInputError("unreadable", message)
        return _body(response, target, cap_bytes)


def _redirect(response: http.client.HTTPResponse, target: _Target) -> str:
    location = response.getheader("Location", "")
    # Checked before it is joined, for joining silently drops tabs and line ends.
    if not location or not _PLAIN.fullmatch(location):
        message = f"{target.shown} redirects without a plain address of where to; send the address of the image itself"
        raise RejectInputError("unreadable", message)
    return urljoin(target.uri, location)


def _body(response: http.client.HTTPResponse, target: _Target, cap_bytes: int) -> bytes:
    for header, allowed in (
        ("Content-Encoding", ("", "identity")),
        ("Transfer-Encoding", ("", "chunked")),
    ):
        if response.getheader(header, "").strip().lower() not in allowed:
            message = f"{target.shown} is sent packed ({header}), which is not allowed; serve the image as it is"
            raise RejectInputError("unreadable", message)
    declared = response.length
    data = bytearray()
    # read1, and not read: with a negative chunk size, read would take everything until the connection ends.
    while (
        (declared or 0) <= cap_bytes and len(data) <= cap_bytes and (part := response.read1(_PART))
    ):
        data += part
    if len(data) > cap_bytes or (declared or 0) > cap_bytes:
        size = max(len(data), declared or 0)
        message = f"{target.shown} has {size:,} bytes or more, allowed are {cap_bytes:,}; shrink it or raise SIGMA_MAX_IMAGE_BYTES"
        raise RejectInputError("too-many-bytes", message)
    if declared is not None and len(data) < declared:
        message = f"{target.shown} ended after {len(data):,} of {declared:,} bytes; serve the whole file, then send it again"
        raise RejectInputError("unreadable", message)
    return bytes(data)


def _reason(error: OSError) -> str:
    """What the system says about an error, without addresses."""
    return error.strerror or type(error).__name__
