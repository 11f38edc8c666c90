"""K-means by scikit-learn, which is loaded when something is fitted.

Loading it takes a second, and every command of the command line would pay for it.
"""

import numpy as np

from schemas.records import DoubleArray, FloatArray

# Rows of one step of mini-batch k-means (Sculley 2010).
_BATCH = 2048


def kmeans_centres(
    rows: FloatArray | DoubleArray, count: int, *, starts: int, seed: int
) -> DoubleArray:
    """(count, D) centres of (K, D) rows; the best of `starts` runs. The same seed, the same."""
    from sklearn.cluster import KMeans

    fitted = KMeans(count, n_init=starts, random_state=seed).fit(rows)
    return np.asarray(fitted.cluster_centers_)


def minibatch_centres(rows: FloatArray, count: int, *, starts: int, seed: int) -> FloatArray:
    """(count, D) centres of (K, D) rows, looked at in parts: for many rows."""
    from sklearn.cluster import MiniBatchKMeans

    fitted = MiniBatchKMeans(count, n_init=starts, batch_size=_BATCH, random_state=seed).fit(rows)
    return np.asarray(fitted.cluster_centers_, dtype=np.float32)
