"""API keys: who may ask the query API for what. Only the hashes of keys are configured.

An entry is `NAME:SCOPE:SHA256`, or `NAME:SCOPE:SHA256:RATE` with a rate of its own. `sigma keys
new` makes a key and its entry. An entry that is taken out revokes its key.
"""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from schemas.errors import UsageError

ENTRY_FORM = "NAME:SCOPE:SHA256 or NAME:SCOPE:SHA256:RATE"

# Each request compares its key with all entries, and each name is a label of a metric.
MAX_KEYS = 1000

# Requests a second.
LOWEST_RATE = 0.01
HIGHEST_RATE = 1_000_000.0

# Random bytes of a key.
_KEY_BYTES = 32

# Programs that look for leaked secrets find keys by it.
_KEY_PREFIX = "sigma_"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9A-Fa-f]{64}")
_RATE = re.compile(r"[0-9]{1,7}(\.[0-9]{1,6})?")


class ApiScope(StrEnum):
    """What a key is for."""

    READ = "read"
    """Ask queries."""
    WRITE = "write"
    """Change what can be found; everything of `read` too."""
    METRICS = "metrics"
    """Read the metrics, and nothing else: for Prometheus."""
    ADMIN = "admin"
    """Everything."""


# The scopes that each scope includes.
_INCLUDED = {
    ApiScope.READ: frozenset({ApiScope.READ}),
    ApiScope.WRITE: frozenset({ApiScope.READ, ApiScope.WRITE}),
    ApiScope.METRICS: frozenset({ApiScope.METRICS}),
    ApiScope.ADMIN: frozenset(ApiScope),
}


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key as it is configured."""

    name: str
    """Whose it is; shown in metrics and refusals."""
    scope: ApiScope
    digest: str = field(repr=False)
    """SHA-256 of the key, 64 small hexadecimal digits."""
    rate: float | None = None
    """Most requests a second; None for the rate of all keys."""

    def may(self, needed: ApiScope) -> bool:
        """Whether the key is enough for what needs a scope."""
        return needed in _INCLUDED[self.scope]

    def entry(self) -> str:
        """The text that configures the key."""
        entry = f"{self.name}:{self.scope}:{self.digest}"
        if self.rate is None:
            return entry
        # Not in the form 1e+06, which the reader refuses.
        return f"{entry}:{self.rate:.6f}".rstrip("0").rstrip(".")


def new_secret() -> str:
    """Make a random key of 256 bits, as its owner sends it."""
    return _KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def digest_of(secret: bytes) -> str:
    """Hash a key as its entry holds it."""
    # SHA-256, and no slow hash as passwords need: nobody guesses 256 random bits, however fast the
    # guesses are hashed. A slow hash would let anybody without a key keep the worker busy.
    # https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html
    return hashlib.sha256(secret).hexdigest()


def parse_key(text: str, where: str) -> ApiKey:
    """Read one entry; `UsageError` says what is wrong with it, but never shows it.

    `where` names its place. Somebody may have put the key itself there.
    """
    parts = text.strip().split(":")
    if len(parts) not in (3, 4):
        raise _wrong(where, ENTRY_FORM)
    name, scope, digest, *rate = parts
    if not _NAME.fullmatch(name):
        raise _wrong(f"the name of {where}", "1 to 64 letters, digits, dots, hyphens")
    if scope not in list(ApiScope):
        raise _wrong(f"the scope of {where}", f"one of {', '.join(ApiScope)}")
    if not _DIGEST.fullmatch(digest):
        raise _wrong(f"the hash of {where}", "the 64 hexadecimal digits of a key's SHA-256")
    if digest.lower() == digest_of(b""):
        raise _wrong(f"the hash of {where}", "that of a key, and is that of an empty text")
    return ApiKey(name, ApiScope(scope), digest.lower(), _parse_rate(rate, where))


def unique_keys(keys: Sequence[ApiKey]) -> tuple[ApiKey, ...]:
    """Return the keys; `UsageError` when two share a name or a hash, or there are too many."""
    if len(keys) > MAX_KEYS:
        raise UsageError(f"API keys must be at most {MAX_KEYS:,}, got {len(keys):,}; drop some")
    names: set[str] = set()
    digests: set[str] = set()
    for key in keys:
        if key.name in names:
            raise UsageError(
                f"API keys must have names of their own, got {key.name} twice; rename one"
            )
        if key.digest in digests:
            raise UsageError(
                f"API keys must differ, got that of {key.name} twice; make a new one with:"
                " sigma keys new NAME"
            )
        names.add(key.name)
        digests.add(key.digest)
    return tuple(keys)


def _parse_rate(parts: Sequence[str], where: str) -> float | None:
    if not parts:
        return None
    text = parts[0]
    if not _RATE.fullmatch(text) or not LOWEST_RATE <= float(text) <= HIGHEST_RATE:
        allowed = f"a number from {LOWEST_RATE:g} to {HIGHEST_RATE:,.0f} requests a second"
        raise _wrong(f"the rate of {where}", allowed)
    return float(text)


def _wrong(what: str, allowed: str) -> UsageError:
    return UsageError(
        f"{what} must be {allowed}; make it with: sigma keys new NAME (the value is not shown: it"
        " may be a key)"
    )
