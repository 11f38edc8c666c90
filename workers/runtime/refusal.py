"""The refusal: an HTTP answer that is not a good one, `{"error": "one sentence"}`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from starlette.types import Send

# The headers of a request: the name of each in small letters, and its value.
RawHeaders = Sequence[tuple[bytes, bytes]]


def error_body(sentence: str) -> bytes:
    """Encode the JSON body of every refusal."""
    return json.dumps({"error": sentence}).encode()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal that is sent before any framework sees the request."""

    status: int
    sentence: str
    headers: tuple[tuple[str, str], ...] = ()
    """Beside those of every refusal."""

    def to_http(self) -> bytes:
        """Return the whole answer, for a request that no HTTP library has read."""
        body = error_body(self.sentence)
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
        ]
        for name, value in self.headers:
            lines.append(f"{name}: {value}")
        return "\r\n".join([*lines, "", ""]).encode() + body

    async def send(self, send: Send) -> None:
        """Answer one request over ASGI. Its body is not read."""
        body = error_body(self.sentence)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        for name, value in self.headers:
            headers.append((name.encode(), value.encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
