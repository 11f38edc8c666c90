"""Picture links: addresses of pictures that a browser can open, which sends no key.

Where keys are needed a link is signed and opens one picture for an hour or two.
"""

import hmac
import time
from collections.abc import Callable
from urllib.parse import parse_qsl, quote

from starlette.requests import Request

from workers.api.addresses import PICTURE_PATH
from workers.api.signatures import Signer, decoded, encoded
from workers.runtime.host_check import host_headers, host_name

_PURPOSE = "picture"

# Seconds after which links change; one is good for this long at least and twice as long at most.
# The same image has the same link meanwhile, so that browsers find it in their cache.
_LIFETIME_S = 3600

# Letters of a query that is looked at.
_LONGEST_QUERY = 1000


class PictureLinks:
    """Makes links and recognises them."""

    def __init__(
        self,
        signer: Signer,
        public_url: str | None,
        *,
        signed: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`public_url`: by which address clients reach the API; by default the one they asked."""
        self._signer = signer
        self._public_url = public_url
        self.signed = signed
        """Whether pictures need a key or a signature."""
        self._clock = clock

    def link(self, image_id: str, request: Request) -> str:
        """The whole address of an image's picture, for whoever sent the request."""
        path = picture_path(image_id)
        if not self.signed:
            return self._base(request) + path
        until = (int(self._clock()) // _LIFETIME_S + 2) * _LIFETIME_S
        signature = encoded(self._signature(path, until))
        return f"{self._base(request)}{path}?until={until}&signature={signature}"

    def admits(self, path: str, query: bytes) -> bool:
        """Whether path and query, as they were sent, are a link that is still good."""
        if len(query) > _LONGEST_QUERY:
            return False
        parameters = dict(parse_qsl(query.decode("ascii", "replace")))
        until = parameters.get("until", "")
        signature = decoded(parameters.get("signature", ""))
        if not until.isdecimal() or len(until) > len("99999999999") or signature is None:
            return False
        good = hmac.compare_digest(self._signature(path, int(until)), signature)
        return good and self._clock() < int(until)

    def _signature(self, path: str, until: int) -> bytes:
        return self._signer.signature(_PURPOSE, f"{until} {path}".encode())

    def _base(self, request: Request) -> str:
        if self._public_url is not None:
            return self._public_url
        hosts = host_headers(request.headers.raw)
        # One that is no name would make a link to anywhere.
        if len(hosts) != 1 or host_name(hosts[0]) is None:
            return ""
        return f"http://{hosts[0].decode('ascii')}"


def picture_path(image_id: str) -> str:
    """The path of an image's picture."""
    return PICTURE_PATH.replace("{image_id}", quote(image_id, safe=""))
