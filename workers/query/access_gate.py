"""The access gate: judges every request by its host, address, key and rate, before it is read.

Refusing is cheap: no body is read, nothing is logged, and what is counted has few names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from schemas.access_settings import AccessSettings
from schemas.api_keys import ApiKey, ApiScope
from workers.api.addresses import (
    HEALTH_PATH,
    PICTURE_PATH,
    QUERY_PATH,
    READINESS_PATH,
    SAFE_METHODS,
    find_address,
)
from workers.query.key_rates import KeyRates
from workers.query.key_ring import KeyRing
from workers.query.refusals import TOO_MANY_REQUESTS
from workers.query.request_form import form_refusal
from workers.runtime.host_check import HostCheck, host_headers, host_name
from workers.runtime.query_metrics import QueryMetrics
from workers.runtime.refusal import RawHeaders, Refusal

BAD_REQUEST = 400
UNAUTHORIZED = 401
FORBIDDEN = 403
NOT_FOUND = 404

# Load balancers may ask these by HTTP/1.0 without a Host header.
_HEALTH_PATHS = frozenset({HEALTH_PATH, READINESS_PATH})

# RFC 6750, section 3.
_CHALLENGE = 'Bearer realm="sigma-stream"'

_NO_PATH = Refusal(
    BAD_REQUEST, f"the request must name a path such as {QUERY_PATH}; leave scheme and host out"
)
_UNKNOWN_PATH = Refusal(NOT_FOUND, "Not Found; the API is described at /docs")
_OTHER_ORIGIN = Refusal(
    FORBIDDEN,
    "a web page of another origin must not change anything here; open the page of this service, or"
    " add the page's host to SIGMA_ALLOWED_HOSTS",
)
_NO_KEY = Refusal(
    UNAUTHORIZED,
    "a key is needed here; send one header Authorization: Bearer KEY",
    (("www-authenticate", _CHALLENGE),),
)
_UNKNOWN_KEY = Refusal(
    UNAUTHORIZED,
    "the key is not known here; ask whoever runs this service for one",
    (("www-authenticate", f'{_CHALLENGE}, error="invalid_token"'),),
)


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What the gate reads of a request."""

    method: str
    path: str
    """As it was sent, percent-encoded."""
    query: bytes
    headers: RawHeaders


@dataclass(frozen=True, slots=True)
class AccessVerdict:
    """What the gate says of a request."""

    refusal: Refusal | None
    cause: str = ""
    """Why it is refused: with the status one of `workers.runtime.query_metrics.RESPONSES`."""
    key: ApiKey | None = None
    """The key that was sent, if it is known."""


class AccessGate:
    """The ASGI application in front of all others of a query worker."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: HostCheck,
        ring: KeyRing,
        rates: KeyRates,
        settings: AccessSettings,
        metrics: QueryMetrics,
        admits_link: Callable[[str, bytes], bool] = lambda _path, _query: False,
    ) -> None:
        """`admits_link` tells whether path and query are a signed link that opens a picture."""
        self._app = app
        self._admits_link = admits_link
        self._allowed_hosts = frozenset(settings.allowed_hosts)
        self._hosts = hosts
        self._ring = ring
        self._rates = rates
        self._rate = settings.key_rate
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Nothing but HTTP is served."""
        if scope["type"] != "http":
            return
        # Everything behind goes by the path as it was sent: decoded, an image id with a slash in it
        # would be two parts of an address.
        scope["path"] = scope["raw_path"].decode("ascii")
        head = RequestHead(scope["method"], scope["path"], scope["query_string"], scope["headers"])
        verdict = self._counted_verdict(head)
        if verdict.refusal is not None:
            await verdict.refusal.send(send)
            return
        state = scope.setdefault("state", {})
        state["trusted"] = verdict.key is not None or not self._ring.is_required
        state["charge"] = lambda requests: self._charge(verdict.key, requests)
        await self._app(scope, receive, send)

    def query_refusal(self, headers: RawHeaders) -> Refusal | None:
        """Judge and count a query that gets another answer than ours if this returns None."""
        return self._counted_verdict(RequestHead("POST", QUERY_PATH, b"", headers)).refusal

    def may_ask(self, headers: RawHeaders) -> bool:
        """Whether a query with these headers could be let in, its rate apart. Counts nothing."""
        if self._hosts.refusal(headers, may_be_missing=False) is not None:
            return False
        if not self._ring.is_required:
            return True
        secret = bearer_secret(headers)
        key = None if secret is None else self._ring.find(secret)
        return key is not None and key.may(ApiScope.READ)

    def _charge(self, key: ApiKey | None, requests: int) -> int:
        """Count further requests of a key, as a batch is; the seconds to wait where too many."""
        if key is None or requests < 1:
            return 0
        rate = self._rate if key.rate is None else key.rate
        return self._rates.take(key.name, rate, requests)

    def _counted_verdict(self, head: RequestHead) -> AccessVerdict:
        self._forget_revoked()
        verdict = self._judge(head)
        if verdict.refusal is not None:
            self._metrics.count_response(verdict.refusal.status, verdict.cause)
        return verdict

    def _judge(self, head: RequestHead) -> AccessVerdict:
        wrong_host = self._hosts.refusal(head.headers, may_be_missing=head.path in _HEALTH_PATHS)
        if wrong_host is not None:
            return AccessVerdict(wrong_host, "host")
        # RFC 9112, section 3.2: a target with a scheme and a host overrules the Host header.
        if not head.path.startswith("/"):
            return AccessVerdict(_NO_PATH, "invalid")
        misread = form_refusal(head.path, head.query, head.headers)
        if misread is not None:
            return AccessVerdict(misread, "invalid")
        address = find_address(head.path)
        if address is None:
            return AccessVerdict(_UNKNOWN_PATH, "invalid")
        if not self._ring.is_required:
            if self._is_foreign(head):
                return AccessVerdict(_OTHER_ORIGIN, "forbidden")
            return AccessVerdict(None)
        needed = address.needed(head.method)
        secret = bearer_secret(head.headers)
        key = None if secret is None else self._ring.find(secret)
        if needed is None:
            return AccessVerdict(None, key=key)
        if secret is None:
            if address.path == PICTURE_PATH and self._admits_link(head.path, head.query):
                return AccessVerdict(None)
            return AccessVerdict(_NO_KEY, "no-key")
        if key is None:
            return AccessVerdict(_UNKNOWN_KEY, "unknown-key")
        return self._judge_key(key, needed)

    def _is_foreign(self, head: RequestHead) -> bool:
        """Whether a web page of another origin asks for a change.

        Where no key is needed, any page in a browser on this machine could.
        """
        origins = [value for name, value in head.headers if name == b"origin"]
        if head.method in SAFE_METHODS or not origins:
            return False
        hosts = host_headers(head.headers)
        return not all(self._is_own(origin, hosts) for origin in origins)

    def _is_own(self, origin: bytes, hosts: Sequence[bytes]) -> bool:
        try:
            authority = urlsplit(origin).netloc
        except ValueError:
            return False
        return authority in hosts or host_name(authority) in self._allowed_hosts

    def _judge_key(self, key: ApiKey, needed: ApiScope) -> AccessVerdict:
        """Judge a known key: its rate first, so that refused requests count too."""
        rate = self._rate if key.rate is None else key.rate
        wait_s = self._rates.take(key.name, rate)
        if wait_s:
            refusal, outcome = _too_often(rate, wait_s), "rate-limited"
        elif not key.may(needed):
            refusal, outcome = _not_enough(key, needed), "forbidden"
        else:
            self._metrics.count_key_request(key.name, "admitted")
            return AccessVerdict(None, key=key)
        self._metrics.count_key_request(key.name, outcome)
        return AccessVerdict(refusal, outcome, key)

    def _forget_revoked(self) -> None:
        for name in self._ring.refresh():
            self._rates.forget(name)
            self._metrics.forget_key(name)


def bearer_secret(headers: RawHeaders) -> bytes | None:
    """Return the key of a request's one Authorization header, None without a usable one."""
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, secret = values[0].strip().partition(b" ")
    secret = secret.strip()
    return secret if scheme.lower() == b"bearer" and secret else None


def _not_enough(key: ApiKey, needed: ApiScope) -> Refusal:
    challenge = f'{_CHALLENGE}, error="insufficient_scope", scope="{needed}"'
    return Refusal(
        FORBIDDEN,
        f"the key must have the scope {needed} for this, got {key.scope}; use another key",
        (("www-authenticate", challenge),),
    )


def _too_often(rate: float, wait_s: int) -> Refusal:
    return Refusal(
        TOO_MANY_REQUESTS,
        f"this key may send {rate:g} requests a second, got more; try again after {wait_s} s",
        (("retry-after", str(wait_s)),),
    )
