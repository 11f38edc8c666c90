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


def shrink(image: ByteArray, longest_px: int) -> ByteArray:
    """The image with at most `longest_px` on its longer side, in its own proportions.

    A smaller one is returned as it is.
    """
    if max(image.shape[:2]) <= longest_px:
        return image
    smaller = Image.fromarray(image)
    smaller.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    return np.asarray(smaller, dtype=np.uint8)
