"""The key ring: the API keys of one query worker, from its settings and a file that it follows.

A key that is taken out of the file is refused a second later. While the file is damaged or gone,
the keys that were read last go on, and the log says so.
"""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path

import structlog

from schemas.access_settings import AccessSettings
from schemas.api_keys import ApiKey, digest_of, parse_key, unique_keys
from schemas.errors import RefuseToStartError, SigmaError, UsageError

# Seconds between looks at the file.
LOOK_EVERY_S = 1.0

# Bytes of a file of keys: far more than the most keys need.
_MOST_BYTES = 1 << 20

log = structlog.get_logger()

# Seconds on a clock that never goes back.
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class FileState:
    """By what a change of a file is noticed."""

    modified_ns: int
    size: int
    inode: int
    """Another one when the file was replaced, as mounted secrets are."""

    @classmethod
    def of(cls, path: Path) -> "FileState | None":
        """The state of a file, None when there is none."""
        try:
            found = os.stat(path)
        except OSError:
            return None
        return cls(found.st_mtime_ns, found.st_size, found.st_ino)


class KeyRing:
    """Knows the keys. For the thread of the event loop."""

    def __init__(self, settings: AccessSettings, clock: Clock = time.monotonic) -> None:
        """`open` reads the file."""
        self._settings = settings
        self._clock = clock
        self._keys = settings.api_keys
        self._state: FileState | None = None
        self._looked_s = clock()

    @classmethod
    def open(cls, settings: AccessSettings, clock: Clock = time.monotonic) -> "KeyRing":
        """Read the keys; an error when an entry is wrong, the file unreadable or without keys."""
        ring = cls(settings, clock)
        if settings.api_keys_file is not None:
            ring._state = FileState.of(settings.api_keys_file)
            ring._keys = _read_keys(settings, settings.api_keys_file)
            if not ring._keys:
                raise RefuseToStartError(
                    f"SIGMA_API_KEYS_FILE must name a file with keys, got {settings.api_keys_file}"
                    " without any; make one with: sigma keys new NAME"
                )
        return ring

    @property
    def is_required(self) -> bool:
        """Whether requests need a key. Settled at the start: revoking all keys opens nothing."""
        return self._settings.has_keys

    @property
    def signing_secret(self) -> bytes:
        """What links and cursors are signed with: the same in all workers with these keys.

        Of hashes, which are configured and not shown. Revoking a key ends what was signed before.
        """
        digests = sorted(key.digest for key in self._keys)
        return hashlib.sha256("\n".join(["sigma-stream", *digests]).encode()).digest()

    def find(self, secret: bytes) -> ApiKey | None:
        """Return the key that somebody sent, None when it is not known."""
        digest = digest_of(secret)
        known = None
        # All of them, each in constant time: how long it takes tells nothing of any hash.
        for key in self._keys:
            if compare_digest(key.digest, digest):
                known = key
        return known

    def refresh(self) -> frozenset[str]:
        """Read the file again if it changed; returns the names that are no longer there."""
        path = self._settings.api_keys_file
        now_s = self._clock()
        if path is None or now_s - self._looked_s < LOOK_EVERY_S:
            return frozenset()
        self._looked_s = now_s
        # Before the content: a change between the two is then seen at the next look.
        state = FileState.of(path)
        if state == self._state:
            return frozenset()
        self._state = state
        before = {key.name for key in self._keys}
        try:
            self._keys = _read_keys(self._settings, path)
        except SigmaError as error:
            log.error("API keys not read again, the former ones go on", reason=str(error))
            return frozenset()
        log.info("API keys read again", keys=len(self._keys))
        return frozenset(before - {key.name for key in self._keys})


def _read_keys(settings: AccessSettings, path: Path) -> tuple[ApiKey, ...]:
    """Read the keys of the settings and of the file."""
    # A pipe or a device might never come to an end, and nobody is answered meanwhile.
    if path.exists() and not path.is_file():
        raise UsageError(
            f"SIGMA_API_KEYS_FILE must be a plain file, got {path}, which is none; name another"
        )
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise UsageError(
            f"SIGMA_API_KEYS_FILE must be a file that can be read, got {path} ({error.strerror});"
            " correct the path or its permissions"
        ) from error
    except UnicodeDecodeError:
        raise UsageError(f"{path} must be text in UTF-8; write it anew") from None
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{path} must have at most {_MOST_BYTES:,} bytes, got more; shorten it")
    keys = list(settings.api_keys)
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            keys.append(parse_key(line, f"line {number} of {path}"))
    return unique_keys(keys)
