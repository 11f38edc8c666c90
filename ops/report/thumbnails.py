"""Pictures of examples: small, inlined, and rationed, so that a page stays small whatever is in the store."""

import base64
import io
from collections.abc import Iterable

from PIL import Image

from schemas.errors import SigmaError
from stream.images.store import ImageStore
from workers.repository.connection import Connection
from workers.repository.images import images_by_id
from workers.runtime.pictures import read_picture

_SIDE_PX = 128
_QUALITY = 78
_MOST_BYTES = 1 << 20
"""Of all pictures of a page together, before they are written as text."""


def thumbnails(conn: Connection, store: ImageStore, image_ids: Iterable[str]) -> dict[str, str]:
    """Data URIs by image id. An image that is gone, or beyond the ration, is left out."""
    found: dict[str, str] = {}
    used = 0
    for image_id, stored in sorted(images_by_id(conn, sorted(set(image_ids))).items()):
        data = _shrunk(store, stored.normalized_uri) if stored.state == "indexed" else None
        if data is not None and used + len(data) <= _MOST_BYTES:
            used += len(data)
            found[image_id] = f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"
    return found


def _shrunk(store: ImageStore, uri: str) -> bytes | None:
    """A JPEG of at most 128 px a side, None when the store cannot give the image."""
    try:
        picture = Image.fromarray(read_picture(store, uri))
    except SigmaError:
        return None
    picture.thumbnail((_SIDE_PX, _SIDE_PX))
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=_QUALITY, optimize=True)
    return target.getvalue()
