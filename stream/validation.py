"""The intake: what an arrival must pass before it may enter the index.

A plain function from record to record; the intake worker calls it for every event.
"""

import hashlib
from collections.abc import Callable
from datetime import datetime

from schemas.errors import RejectInputError
from schemas.events import ImageAccepted, ImageArrived, ImageRejected
from stream.images.decode_pool import DecodePool
from stream.images.decode_protocol import LONGEST_SIDE
from stream.images.store import ImageStore
from stream.log.dead_letters import rejection_of_image

# The stage that dead letters of this module name.
STAGE = "intake"


def accept(
    arrived: ImageArrived,
    store: ImageStore,
    decoder: DecodePool,
    source: Callable[[str], bytes],
    published_at: datetime | None = None,
    longest_side: int = LONGEST_SIDE,
) -> ImageAccepted | ImageRejected:
    """Read, decode and store an image.

    `source` returns the bytes of a URI; `longest_side` is in pixels. A refusal is a record too;
    only `RetryLaterError` is raised.
    """
    try:
        data = source(arrived.uri)
        image = decoder.decode(data, longest_side)
    except RejectInputError as error:
        return rejection_of_image(arrived, error, stage=STAGE)
    return ImageAccepted(
        image_id=arrived.image_id,
        uri=arrived.uri,
        normalized_uri=store.put(image.png, ".png"),
        # Of what arrived, not of what is stored: a producer can compare it with its own file.
        checksum=hashlib.sha256(data).hexdigest(),
        width=image.width,
        height=image.height,
        arrived_at=arrived.arrived_at,
        version=arrived.version,
        captions=arrived.captions,
        test_captions=arrived.test_captions,
        split=arrived.split,
        published_at=published_at,
        metadata=arrived.metadata,
    )
