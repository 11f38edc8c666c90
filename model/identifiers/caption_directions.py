"""Caption directions: a linear map that makes of embeddings what captions tell of them.

A codebook spends its few codes on what varies most. Much of that no caption ever says, and what
captions do say varies more or less by the accident of an encoder's training. Canonical correlation
analysis (Hotelling 1936) finds the directions of image embeddings that captions predict, all of the
same variance. Each is weighed by how well they predict it in images that the fit has not seen, so
that a codebook holds what captions say, and of no kind of it more than of another
(docs/experiments/caption-directions.md).

Letters in shapes: N images with captions, D embedding width.
"""

import numpy as np
from numpy.typing import NDArray

from schemas.records import FloatArray

# Fewer captioned images for each dimension of the embeddings tell chance from correlation badly.
LEAST_IMAGES_A_DIMENSION = 8

# Share of the images that correlations are measured on, seeded; the others are fitted to.
_MEASURED = 0.2

# Added to the variance of each direction, as a share of the largest: those that hardly vary would
# be enlarged noise.
_RIDGE = 1e-3

# Standard errors that a correlation must be above zero: with hundreds of directions some are a few
# above by chance.
_Z = 4.0

Doubles = NDArray[np.float64]


def caption_directions(images: FloatArray, captions: FloatArray, seed: int) -> FloatArray | None:
    """(D, D) float32 map: `images @ map` is what captions tell of them, of their own mean length.

    `images` (N, D) are vectors of images and `captions` (N, D) the mean vectors of their captions,
    both of one encoder. Each direction varies as the square of its correlation. None where N is too
    small, or captions predict nothing.
    """
    count, width = images.shape
    if count < LEAST_IMAGES_A_DIMENSION * width:
        return None
    measured = np.zeros(count, np.bool_)
    order = np.random.default_rng((seed, 9)).permutation(count)
    measured[order[: round(_MEASURED * count)]] = True
    seen = images.astype(np.float64) - images[~measured].mean(0, dtype=np.float64)
    told = captions.astype(np.float64) - captions[~measured].mean(0, dtype=np.float64)
    seen_map, told_map = _canonical_maps(seen[~measured], told[~measured])
    correlations = _correlations(seen[measured] @ seen_map, told[measured] @ told_map)
    if not correlations.any():
        return None
    directions = seen_map * correlations
    length = np.sqrt(np.square(seen @ directions).sum() / np.square(seen).sum())
    return (directions / length).astype(np.float32)


def _canonical_maps(seen: Doubles, told: Doubles) -> tuple[Doubles, Doubles]:
    """(D, D) each: maps of two centred views (n, D) to pairs of correlated directions."""
    seen_white = _whitening(seen)
    told_white = _whitening(told)
    left, _, right = np.linalg.svd(seen_white @ (seen.T @ told / len(seen)) @ told_white)
    return seen_white @ left, told_white @ right.T


def _whitening(rows: Doubles) -> Doubles:
    """(D, D) symmetric map that gives centred rows (n, D) the same variance in all directions."""
    variances, axes = np.linalg.eigh(rows.T @ rows / len(rows))
    variances = np.maximum(variances, 0.0) + max(_RIDGE * variances[-1], np.finfo(float).tiny)
    white: Doubles = axes * variances**-0.5 @ axes.T
    return white


def _correlations(left: Doubles, right: Doubles) -> Doubles:
    """(D,) correlation of each pair of columns (n, D), 0 where it may be chance."""
    left = left - left.mean(0)
    right = right - right.mean(0)
    lengths = np.sqrt((left**2).sum(0) * (right**2).sum(0))
    correlations = (left * right).sum(0) / np.maximum(lengths, np.finfo(float).tiny)
    return np.where(correlations > _Z / len(left) ** 0.5, correlations, 0.0)
