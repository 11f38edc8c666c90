"""Resizing: the one that encoders and the `tiny` backbone share.

Imports no torch, so that workers without a model start fast.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from schemas.records import ByteArray

# Images as (height, width, 3) uint8 arrays; sizes may differ.
Pixels = Sequence[ByteArray]


def resize(image: ByteArray, side_px: int) -> ByteArray:
    """(side, side, 3) uint8: the whole image squeezed into a square.

    CLIP-style encoders without cropping do so too. An image of that size is returned as it is.
    """
    if image.shape[:2] == (side_px, side_px):
        return image
    squeezed = Image.fromarray(image).resize((side_px, side_px), Image.Resampling.BOX)
    return np.asarray(squeezed, dtype=np.uint8)


def narrowed(image: ByteArray, ratio: int) -> ByteArray:
    """The image with its longer side squeezed to `ratio` times the shorter one.

    One in such proportions is returned as it is.
    """
    height, width = image.shape[:2]
    longest = ratio * min(height, width)
    if max(height, width) <= longest:
        return image
    size = (min(width, longest), min(height, longest))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX), dtype=np.uint8)
