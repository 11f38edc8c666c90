"""Signatures: on what clients bring back unchanged, such as links and cursors."""

import base64
import binascii
import hmac
from collections.abc import Callable

# Bytes of a signature: half of a SHA-256, far beyond guessing.
_BYTES = 16


class Signer:
    """Signs with a secret that all workers of an installation share."""

    def __init__(self, secret: Callable[[], bytes]) -> None:
        """`secret` is asked each time: it changes with the keys."""
        self._secret = secret

    def signature(self, purpose: str, payload: bytes) -> bytes:
        """Sign a payload; one of another purpose has another signature."""
        message = purpose.encode() + b"\0" + payload
        return hmac.digest(self._secret(), message, "sha256")[:_BYTES]

    def sealed(self, purpose: str, payload: bytes) -> str:
        """A payload with its signature, as letters that fit into an address."""
        return encoded(self.signature(purpose, payload) + payload)

    def opened(self, purpose: str, text: str) -> bytes | None:
        """The payload of a sealed text; None for any other text."""
        data = decoded(text)
        if data is None or not hmac.compare_digest(
            self.signature(purpose, data[_BYTES:]), data[:_BYTES]
        ):
            return None
        return data[_BYTES:]


def encoded(data: bytes) -> str:
    """Bytes as letters that fit into an address."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decoded(text: str) -> bytes | None:
    """The bytes of such letters; None for anything else."""
    if not text.isascii():
        return None
    padded = text + "=" * (-len(text) % 4)
    try:
        return base64.b64decode(padded, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
