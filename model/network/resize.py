"""Pixels in memory: the one resizing that encoders and the `tiny` backbone share. Imports no torch, so that workers start fast."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from schemas.records import ByteArray

Pixels = Sequence[ByteArray]
"""Images as (H, W, 3) uint8 arrays; sizes may differ."""


def resize(image: ByteArray, side_px: int) -> ByteArray:
    """(side, side, 3) uint8: the whole image squeezed into a square, as CLIP-style encoders without cropping do."""
    if image.shape[:2] == (side_px, side_px):
        return image
    return np.asarray(
        Image.fromarray(image).resize((side_px, side_px), Image.Resampling.BOX), dtype=np.uint8
    )
