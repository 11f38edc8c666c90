"""Image views: visual tokens of training images, computed once where the vision tower is frozen.

Letters in shapes: V views, N images, T visual tokens of an image, H hidden width.
"""

import numpy as np
import torch
from torch import Tensor

from model.network.sigma import SigmaModel
from model.progress import Progress, quiet
from schemas.records import ByteArray

# Largest shift of a view in pixels, about half a patch of the `tiny` profile.
#
# The visual tokens change, the content does not.
SHIFT_PX = 3

# Images that pass the vision tower at once.
VIEW_BATCH = 128


@torch.no_grad()
def visual_tokens(
    model: SigmaModel, squares: ByteArray, views: int, seed: int, progress: Progress = quiet
) -> Tensor:
    """(V, N, T, H) visual tokens of (N, side, side, 3) uint8 images.

    The first view is the image as it is, the others are shifted by a few pixels.
    """
    rng = np.random.default_rng(seed)
    parts: list[Tensor] = []
    with progress("visual tokens", views * len(squares)) as bar:
        for view in range(views):
            for start in range(0, len(squares), VIEW_BATCH):
                batch = squares[start : start + VIEW_BATCH]
                seen = batch if view == 0 else shifted(batch, rng)
                visual = model.encode_images(model.preprocessor.from_squares(seen))
                hidden = visual.states.shape[-1]
                parts.append(visual.states.view(len(batch), -1, hidden))
                bar.update(len(batch))
    count, hidden = parts[0].shape[1:]
    return torch.cat(parts).view(views, len(squares), count, hidden)


def shifted(squares: ByteArray, rng: np.random.Generator) -> ByteArray:
    """Each of (N, side, side, 3) uint8 images moved by up to `SHIFT_PX`, its border repeated."""
    side = squares.shape[1]
    border = (SHIFT_PX, SHIFT_PX)
    padded = np.pad(squares, ((0, 0), border, border, (0, 0)), mode="edge")
    corners = rng.integers(0, 2 * SHIFT_PX + 1, size=(len(squares), 2))
    moved: list[ByteArray] = []
    for image, (top, left) in zip(padded, corners, strict=True):
        moved.append(image[top : top + side, left : left + side])
    return np.stack(moved)
