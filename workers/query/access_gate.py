"""The access gate: judges every request by its host, address, key and rate, before it is read.

Refusing is cheap: no body is read, nothing is logged, and what is counted has few names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from schemas.access_settings import AccessSettings
from schemas.api_keys import ApiKey, ApiScope
from workers.query.key_rates import KeyRates
from workers.query.key_ring import KeyRing
from workers.query.refusals import QUERY_PATH, TOO_MANY_REQUESTS
from workers.runtime.host_check import HostCheck
from workers.runtime.metrics import QueryMetrics
from workers.runtime.metrics_server import METRICS_PATH
from workers.runtime.refusal import RawHeaders, Refusal

HEALTH_PATH = "/healthz"
READINESS_PATH = "/readyz"

BAD_REQUEST = 400
UNAUTHORIZED = 401
FORBIDDEN = 403
NOT_FOUND = 404

# What each address needs where keys are configured. An address that is not listed is not served,
# so that a new one needs a decision. None: open, for load balancers and for whoever wants to know
# what the API is; these tell nothing of the images.
NEEDED_SCOPES: Final[Mapping[str, ApiScope | None]] = {
    QUERY_PATH: ApiScope.READ,
    METRICS_PATH: ApiScope.METRICS,
    HEALTH_PATH: None,
    READINESS_PATH: None,
    "/docs": None,
    "/redoc": None,
    "/openapi.json": None,
}

# Load balancers may ask these by HTTP/1.0 without a Host header.
_HEALTH_PATHS = frozenset({HEALTH_PATH, READINESS_PATH})

# RFC 6750, section 3.
_CHALLENGE = 'Bearer realm="sigma-stream"'

_NO_PATH = Refusal(
    BAD_REQUEST, f"the request must name a path such as {QUERY_PATH}; leave scheme and host out"
)
_UNKNOWN_PATH = Refusal(NOT_FOUND, "Not Found; the API is described at /docs")
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
class AccessVerdict:
    """What the gate says of a request."""

    refusal: Refusal | None
    cause: str = ""
    """Why it is refused: with the status one of `workers.runtime.metrics.RESPONSES`."""
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
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._ring = ring
        self._rates = rates
        self._rate = settings.key_rate
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Nothing but HTTP is served."""
        if scope["type"] != "http":
            return
        verdict = self._counted_verdict(scope["path"], scope["headers"])
        if verdict.refusal is not None:
            await verdict.refusal.send(send)
            return
        trusted = verdict.key is not None or not self._ring.is_required
        scope.setdefault("state", {})["trusted"] = trusted
        await self._app(scope, receive, send)

    def refusal(self, path: str, headers: RawHeaders) -> Refusal | None:
        """Judge and count a request that gets another answer than ours if this returns None."""
        return self._counted_verdict(path, headers).refusal

    def may_ask(self, headers: RawHeaders) -> bool:
        """Whether a query with these headers could be let in, its rate apart. Counts nothing."""
        if self._hosts.refusal(headers, may_be_missing=False) is not None:
            return False
        if not self._ring.is_required:
            return True
        secret = bearer_secret(headers)
        key = None if secret is None else self._ring.find(secret)
        return key is not None and key.may(ApiScope.READ)

    def _counted_verdict(self, path: str, headers: RawHeaders) -> AccessVerdict:
        self._forget_revoked()
        verdict = self._judge(path, headers)
        if verdict.refusal is not None:
            self._metrics.count_response(verdict.refusal.status, verdict.cause)
        return verdict

    def _judge(self, path: str, headers: RawHeaders) -> AccessVerdict:
        wrong_host = self._hosts.refusal(headers, may_be_missing=path in _HEALTH_PATHS)
        if wrong_host is not None:
            return AccessVerdict(wrong_host, "host")
        # RFC 9112, section 3.2: a target with a scheme and a host overrules the Host header.
        if not path.startswith("/"):
            return AccessVerdict(_NO_PATH, "invalid")
        if path not in NEEDED_SCOPES:
            return AccessVerdict(_UNKNOWN_PATH, "invalid")
        if not self._ring.is_required:
            return AccessVerdict(None)
        needed = NEEDED_SCOPES[path]
        secret = bearer_secret(headers)
        key = None if secret is None else self._ring.find(secret)
        if needed is None:
            return AccessVerdict(None, key=key)
        if secret is None:
            return AccessVerdict(_NO_KEY, "no-key")
        if key is None:
            return AccessVerdict(_UNKNOWN_KEY, "unknown-key")
        return self._judge_key(key, needed)

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
