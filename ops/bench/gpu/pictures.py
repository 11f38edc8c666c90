"""Pictures that stand for photos: four by three, of random pixels."""

import numpy as np

from schemas.records import ByteArray

_PICTURE_PX = (336, 448)


def random_pictures(count: int, seed: int) -> list[ByteArray]:
    """`count` arrays (336, 448, 3) uint8."""
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 255, (count, *_PICTURE_PX, 3), dtype=np.uint8))
