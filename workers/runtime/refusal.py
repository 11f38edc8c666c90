"""The refusal: an HTTP answer that is not a good one, `{"error": "one sentence"}`."""

import json
from dataclasses import dataclass

from starlette.types import Send


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
