"""Write tokens: which version of an image a client has published, so that it can wait for it."""

import struct
from dataclasses import dataclass
from datetime import UTC, datetime

from schemas.errors import UsageError
from workers.api.signatures import decoded, encoded

# Version, and microseconds since 1970 on the database's clock.
_LAYOUT = struct.Struct(">Iq")

# Microseconds of a second.
_MICROSECONDS = 1_000_000

# The last moment that a token can name: beyond the years that a datetime holds.
_LAST = 250_000_000_000 * _MICROSECONDS


@dataclass(frozen=True, slots=True)
class WriteToken:
    """A version that was published, and since when it can have been refused."""

    version: int
    since: datetime

    def text(self) -> str:
        """The token as a client gets it."""
        return encoded(_LAYOUT.pack(self.version, int(self.since.timestamp() * _MICROSECONDS)))

    @classmethod
    def parse(cls, text: str) -> "WriteToken":
        """Read a token; `UsageError` for anything else."""
        data = decoded(text)
        if data is None or len(data) != _LAYOUT.size:
            raise _wrong()
        version, moment = _LAYOUT.unpack(data)
        if not version or not 0 <= moment <= _LAST:
            raise _wrong()
        return cls(version, datetime.fromtimestamp(moment / _MICROSECONDS, UTC))


def _wrong() -> UsageError:
    return UsageError(
        "the token must be one that PUT gave, got another; leave it out to wait for what is stored"
    )
