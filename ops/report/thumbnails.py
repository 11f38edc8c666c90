"""Pictures of the examples: small, in the page itself, and limited in number of bytes."""

import base64
import io
from collections.abc import Iterable

from PIL import Image

from schemas.errors import SigmaError
from stream.images.store import ImageStore
from workers.repository.connection import Connection
from workers.repository.stored_images import images_by_id
from workers.runtime.pictures import read_picture

# Longer side of a thumbnail; the page shows it at half that size, sharp on dense screens.
_SIDE_PX = 128

# Of 95: artefacts are hardly visible at this size.
_JPEG_QUALITY = 78

# All pictures of a page together, before they are encoded as text.
_MAX_TOTAL_BYTES = 1 << 20


def thumbnails(conn: Connection, store: ImageStore, image_ids: Iterable[str]) -> dict[str, str]:
    """Data URIs of JPEG thumbnails by image id.

    An image is left out when it is deleted or unreadable, or when all together would be too large.
    """
    uris: dict[str, str] = {}
    total_bytes = 0
    # Sorted: the same images are left out each time the page is made.
    for image_id, image in sorted(images_by_id(conn, sorted(set(image_ids))).items()):
        if image.state != "indexed":
            continue
        jpeg = _thumbnail(store, image.normalized_uri)
        if jpeg is None or total_bytes + len(jpeg) > _MAX_TOTAL_BYTES:
            continue
        total_bytes += len(jpeg)
        uris[image_id] = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
    return uris


def _thumbnail(store: ImageStore, uri: str) -> bytes | None:
    """A JPEG of at most `_SIDE_PX` a side; None when the store cannot give the image."""
    try:
        picture = Image.fromarray(read_picture(store, uri))
    except SigmaError:
        return None
    picture.thumbnail((_SIDE_PX, _SIDE_PX))
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return target.getvalue()
