"""The reader of `https://` images: from allowed hosts at public addresses, nothing else."""

import http.client
import queue
import socket
import ssl
import threading
from collections.abc import Collection, Sequence
from contextlib import closing

from schemas.errors import RejectInputError, RetryLaterError
from stream.images.https_exchange import Deadline, exchange
from stream.images.https_target import HTTPS_PORT, HttpsTarget, check_host_patterns, parse_target
from stream.images.public_addresses import Connector, Resolver, connect, is_public, resolve
from stream.images.redaction import uri_for_message

# Enough for a move, a name with www, and a content network.
_MAX_REDIRECTS = 3

# A resolver's answers that asking again does not change; EAI_NODATA is not on all systems.
_NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None))


class HttpsReader:
    """Reads from hosts on a list: exact names, or `*.example.org` for every name below it.

    A name is resolved once, and the connection goes to the address that was checked: a name that
    changes its address between check and use (DNS rebinding) cannot move it. TLS still checks the
    name. Every redirect is checked like a new URI. Safe for several threads.

    `resolver`, `connector` and `tls` are for tests.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        ports: Collection[int] = (HTTPS_PORT,),
        timeout_s: float = 10.0,
        connect_timeout_s: float = 3.0,
        resolver: Resolver | None = None,
        connector: Connector | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts = tuple(host.lower() for host in hosts)
        check_host_patterns(self._hosts)
        self._ports = frozenset(ports)
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._resolver = resolver or resolve
        self._connector = connector or connect
        self._tls = tls or ssl.create_default_context()

    def read(self, uri: str, cap_bytes: int) -> bytes:
        """Return the bytes behind a URI, at most `cap_bytes`.

        Raises `RetryLaterError` for what may pass by itself, and `RejectInputError` with the codes
        unsupported-source, forbidden-host, forbidden-port, private-address, too-many-redirects,
        too-many-bytes, timeout and unreadable.
        """
        if not self._hosts:
            raise https_disabled()
        # One deadline over all redirects, so that they cannot add up.
        deadline = Deadline(self._timeout_s)
        target = self._parse(uri)
        for _ in range(_MAX_REDIRECTS + 1):
            answer = self._fetch(target, cap_bytes, deadline)
            if isinstance(answer, bytes):
                return answer
            try:
                target = self._parse(answer)
            except RejectInputError as error:
                raise RejectInputError(
                    error.code,
                    f"{target.label} redirects to a place that may not be read: {error}",
                ) from error
        raise RejectInputError(
            "too-many-redirects",
            f"an image must be behind at most {_MAX_REDIRECTS} redirects, got more from "
            f"{uri_for_message(uri)}; send the last address",
        )

    def _parse(self, uri: str) -> HttpsTarget:
        return parse_target(uri, self._hosts, self._ports)

    def _fetch(self, target: HttpsTarget, cap_bytes: int, deadline: Deadline) -> bytes | str:
        """Return the body, or the URI of a redirect."""
        try:
            with closing(self._connect(target, deadline)) as sock:
                return exchange(sock, target, cap_bytes, deadline)
        except TimeoutError as error:
            raise RejectInputError(
                "timeout",
                f"the image must arrive within {self._timeout_s:g} seconds, got no whole answer "
                f"from {target.label}; serve it faster or send a smaller copy",
            ) from error
        except OSError as error:
            raise RetryLaterError(
                f"the connection to {target.label} broke ({_reason(error)}); try again"
            ) from error
        except (http.client.HTTPException, ValueError) as error:
            raise RejectInputError(
                "unreadable",
                f"{target.label} must answer in plain HTTP, got {type(error).__name__}; "
                "correct the server or the address",
            ) from error

    def _connect(self, target: HttpsTarget, deadline: Deadline) -> ssl.SSLSocket:
        """Connect to the first address of the target that answers."""
        problem = "no address"
        for address in self._addresses(target, deadline):
            try:
                return self._connect_to(address, target, deadline)
            except ssl.SSLCertVerificationError as error:
                raise RejectInputError(
                    "unreadable",
                    f"{target.label} must show a valid certificate, got one that is not "
                    f"({error.verify_message}); correct the certificate",
                ) from error
            except OSError as error:
                # A connection that ends in the middle of the greeting may be a passing trouble.
                if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                    raise RejectInputError(
                        "unreadable",
                        f"{target.label} must speak TLS 1.2 or newer, got {error.reason}; "
                        "correct its server",
                    ) from error
                problem = _reason(error)
        raise RetryLaterError(
            f"{target.label} cannot be connected to ({problem}); "
            "check that its server is up, then try again"
        )

    def _connect_to(self, address: str, target: HttpsTarget, deadline: Deadline) -> ssl.SSLSocket:
        timeout_s = min(self._connect_timeout_s, deadline.left())
        sock = self._connector(address, target.port, timeout_s)
        with closing(sock):
            sock.settimeout(min(self._connect_timeout_s, deadline.left()))
            # On success the new socket takes over, and closing the old one does nothing.
            return self._tls.wrap_socket(sock, server_hostname=target.host)

    def _addresses(self, target: HttpsTarget, deadline: Deadline) -> Sequence[str]:
        """Resolve the host of the target; refuses it when any of its addresses is not public."""
        answer = self._look_up(target, deadline)
        if isinstance(answer, OSError):
            raise _look_up_error(target, answer) from answer
        if isinstance(answer, Exception):
            raise answer
        # All of them: with a mixed answer, the order of addresses would decide where we connect.
        if not answer or not all(is_public(address) for address in answer):
            raise RejectInputError(
                "private-address",
                f"the addresses of {target.host} must all be public, got one that is not; "
                f"serve {target.label} from public addresses",
            )
        return answer

    def _look_up(self, target: HttpsTarget, deadline: Deadline) -> Sequence[str] | Exception:
        """Ask the resolver, in a thread of its own: the system's resolver has no time limit."""
        answers: queue.SimpleQueue[Sequence[str] | Exception] = queue.SimpleQueue()

        def look_up() -> None:
            try:
                answers.put(self._resolver(target.host, target.port))
            except Exception as error:
                answers.put(error)

        # A daemon: a look-up that never ends must not keep the worker from stopping.
        threading.Thread(target=look_up, name="resolve", daemon=True).start()
        try:
            return answers.get(timeout=deadline.left())
        except queue.Empty as error:
            raise RetryLaterError(
                f"the name {target.host} was not resolved within {self._timeout_s:g} seconds; "
                "try again"
            ) from error


def https_disabled() -> RejectInputError:
    """Build the refusal of an `https://` URI where no host is allowed."""
    return RejectInputError(
        "unsupported-source",
        "an https:// URI must be on an allowed host, and none is allowed; "
        "name the allowed hosts in SIGMA_HTTPS_HOSTS",
    )


def _look_up_error(target: HttpsTarget, error: OSError) -> RejectInputError | RetryLaterError:
    if isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME:
        return RejectInputError(
            "unreadable",
            f"the host of {target.label} must exist, got {target.host}, which does not; "
            "correct the name",
        )
    return RetryLaterError(
        f"the name {target.host} cannot be resolved now ({_reason(error)}); try again"
    )


def _reason(error: OSError) -> str:
    """What the system says about an error, without addresses."""
    return error.strerror or type(error).__name__
