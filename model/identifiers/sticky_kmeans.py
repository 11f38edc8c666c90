"""Sticky k-means: a row leaves its old cluster only for a clearly nearer one.

Centres are the means of the rows that really belong to them, so the codes that stay are the codes
the centres are made for. Beside Lloyd's iterations there are relocations: a *relocation* takes the
centre whose removal costs least to the cluster whose split gains most, which a warm start alone
cannot do when the data have moved.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from schemas.records import DoubleArray, FloatArray, IntArray

# Rows that are widened to float64 at a time: 50 MiB at 768 dimensions.
_BLOCK = 8192

# Largest movement of a coordinate at which centres count as settled: float32's resolution.
_STILL = 1e-6

# Share of a row's largest distance that two equal distances may differ by.
_ROUNDING = 1e-13

# Share of the error that a relocation must gain however few rows it moves.
_MIN_GAIN = 1e-4

# Share of its cost that a split must gain before Lloyd's iterations: they improve on it.
_PROMISE = 0.5

# Power iterations for a cluster's principal axis: a start for the split needs no more.
_AXIS_STEPS = 5

# Lloyd's iterations of a split in two.
_SPLIT_STEPS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """A clustering of n rows."""

    centres: FloatArray
    """(K, D)"""
    labels: IntArray
    """(n,) the cluster of each row"""
    error: float
    """Summed squared distance of the rows to their centres."""


def squared_distances(rows: FloatArray, centres: FloatArray) -> DoubleArray:
    """(n, K) squared distances of (n, D) rows to (K, D) centres, in float64."""
    wide = centres.astype(np.float64)
    centre_lengths = (wide**2).sum(axis=1)
    distance = np.empty((len(rows), len(centres)))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK].astype(np.float64)
        row_lengths = (block**2).sum(axis=1)[:, None]
        distance[start : start + _BLOCK] = row_lengths - 2.0 * block @ wide.T + centre_lengths
    return np.maximum(distance, 0.0)


def sticky_labels(distance: DoubleArray, was: IntArray, tolerance: float) -> IntArray:
    """(n,) labels: the old one `was` while it is near enough, else the nearest.

    Near enough is a squared distance (n, K) of at most (1 + `tolerance`) times the least.
    """
    nearest = distance.argmin(axis=1).astype(np.int64)
    rows = np.arange(len(distance))
    # Without this, equal distances that were summed in another order would move rows.
    rounding = _ROUNDING * distance.max(axis=1, initial=0.0)
    limit = (1.0 + tolerance) * distance[rows, nearest] + rounding
    return np.where(distance[rows, was] <= limit, was, nearest)


def settle(
    rows: FloatArray, centres: FloatArray, was: IntArray, tolerance: float, iterations: int
) -> Clusters:
    """Alternate sticky labels and means until the centres do not move.

    The centre of an empty cluster stays where it is.
    """
    for _ in range(iterations):
        labels = sticky_labels(squared_distances(rows, centres), was, tolerance)
        moved = _means(rows, labels, centres)
        step = float(np.abs(moved - centres).max(initial=0.0))
        centres = moved
        if step < _STILL:
            break
    distance = squared_distances(rows, centres)
    labels = sticky_labels(distance, was, tolerance)
    error = float(distance[np.arange(len(rows)), labels].sum())
    return Clusters(centres, labels, error)


def refit(
    rows: FloatArray,
    centres: FloatArray,
    was: IntArray,
    *,
    tolerance: float,
    price: float,
    iterations: int,
) -> Clusters:
    """Warm-started k-means of (n, D) rows from (K, D) `centres`, numbered like the old one.

    A relocation is accepted when it lowers the error by at least `price` of itself for each share
    of the rows that it moves. The search is Lloyd's own, `tolerance` 0; then the rows go back to
    their old clusters `was` as far as `tolerance` lets them, and the centres follow.
    """
    count = len(centres)
    best = settle(rows, centres, was, 0.0, iterations)
    for _ in range(count):
        proposal = _relocate_one(rows, best)
        if proposal is None:
            break
        tried = settle(rows, proposal, was, 0.0, iterations)
        moved = _moved_share(was, tried.labels, count) - _moved_share(was, best.labels, count)
        if best.error - tried.error < max(_MIN_GAIN, price * moved) * best.error:
            break
        best = tried
    renumbered = best.centres[matching(was, best.labels, count)]
    return settle(rows, renumbered, was, tolerance, iterations)


def matching(was: IntArray, now: IntArray, count: int) -> IntArray:
    """(count,) permutation p: the new code p[k] takes the old number k, so most rows keep theirs.

    Codes that share no row keep their own number as far as that is free (Hungarian algorithm).
    """
    shared = _shared_rows(was, now, count)
    # Less than one row in all, so it decides between equal matchings only.
    own_number = 0.5 / count * np.eye(count)
    _, order = linear_sum_assignment(shared + own_number, maximize=True)
    return np.asarray(order, dtype=np.int64)


def _shared_rows(was: IntArray, now: IntArray, count: int) -> DoubleArray:
    """(count, count) rows with each pair of old and new code."""
    pairs = np.bincount(was * count + now, minlength=count * count)
    return pairs.reshape(count, count).astype(np.float64)


def _moved_share(was: IntArray, now: IntArray, count: int) -> float:
    """Share of the rows whose number would change after the best matching."""
    order = matching(was, now, count)
    kept = float(_shared_rows(was, now, count)[np.arange(count), order].sum())
    return 1.0 - kept / len(was)


def _means(rows: FloatArray, labels: IntArray, centres: FloatArray) -> FloatArray:
    """(K, D) mean of each cluster's rows; an empty cluster keeps its centre."""
    means = centres.copy()
    for code in np.unique(labels):
        means[code] = rows[labels == code].mean(axis=0, dtype=np.float64)
    return means


def _relocate_one(rows: FloatArray, now: Clusters) -> FloatArray | None:
    """The centres after the most promising relocation, or None when none promises anything."""
    count = len(now.centres)
    if count < 2 or not len(rows):
        return None
    costs = _removal_costs(squared_distances(rows, now.centres))
    victim = int(costs.argmin())
    gains = np.full(count, -np.inf)
    halves = np.zeros((count, 2, rows.shape[1]), np.float32)
    for code in np.unique(now.labels):
        if code != victim:
            gains[code], halves[code] = _split(rows[now.labels == code])
    host = int(gains.argmax())
    if gains[host] <= _PROMISE * costs[victim]:
        return None
    centres = now.centres.copy()
    centres[host] = halves[host, 0]
    centres[victim] = halves[host, 1]
    return centres


def _removal_costs(distance: DoubleArray) -> DoubleArray:
    """(K,) what each centre's removal would cost, when its rows go to the next nearest one."""
    two_nearest = np.partition(distance, 1, axis=1)[:, :2]
    loss = two_nearest[:, 1] - two_nearest[:, 0]
    costs = np.bincount(distance.argmin(axis=1), weights=loss, minlength=distance.shape[1])
    return costs.astype(np.float64, copy=False)


def _split(members: FloatArray) -> tuple[float, FloatArray]:
    """What a split into two would gain, and the two centres (2, D) float32.

    Lloyd's iterations from the two sides of the principal axis.
    """
    centre = members.mean(axis=0, dtype=np.float64)
    spread = members - centre
    side = spread @ _principal_axis(spread) > 0
    for _ in range(_SPLIT_STEPS):
        if side.all() or not side.any():
            return 0.0, np.stack([centre, centre]).astype(np.float32)
        left = spread[~side].mean(axis=0)
        right = spread[side].mean(axis=0)
        # Nearer to the right centre than to the left one, by the plane between them.
        plane = ((right**2).sum() - (left**2).sum()) / 2
        nearer_right = spread @ (right - left) > plane
        if (nearer_right == side).all():
            break
        side = nearer_right
    rest = spread - np.where(side[:, None], right, left)
    gain = float((spread**2).sum() - (rest**2).sum())
    return gain, (centre + np.stack([left, right])).astype(np.float32)


def _principal_axis(spread: DoubleArray) -> DoubleArray:
    """(D,) unit direction of the largest variance of centred rows (n, D), by power iteration."""
    farthest = (spread**2).sum(axis=1).argmax()
    axis = spread[farthest]
    for _ in range(_AXIS_STEPS):
        axis = spread.T @ (spread @ axis)
        axis /= max(float(np.linalg.norm(axis)), 1e-30)
    return axis
