"""Sticky k-means: Lloyd's iterations in which a row leaves its old cluster only for a clearly nearer one.

Centres are the means of the rows that really hold them, so the codes that stay are the codes the centres are made for.
A *relocation* takes the centre whose removal costs least to the cluster whose split gains most: what a warm start alone
cannot do when the data have moved.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from schemas.records import FloatArray, IntArray

Matrix = npt.NDArray[np.float64]
_BLOCK = 8192
_STILL, _ROUNDING = 1e-6, 1e-13
_LEAST, _HOPE = 1e-4, 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """`centres` (K, D) float32, `labels` (n,) the cluster each row holds, `error` the summed squared distance to it."""

    centres: FloatArray
    labels: IntArray
    error: float


def squared(rows: FloatArray, centres: FloatArray) -> Matrix:
    """(n, K) float64 squared distances; (n, D) rows are widened block by block."""
    wide = centres.astype(np.float64)
    lengths = (wide**2).sum(axis=1)
    found = np.empty((len(rows), len(centres)))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK].astype(np.float64)
        found[start : start + _BLOCK] = (
            (block**2).sum(axis=1)[:, None] - 2.0 * block @ wide.T + lengths
        )
    return np.maximum(found, 0.0)


def stay(distance: Matrix, was: IntArray, tolerance: float) -> IntArray:
    """(n,) labels: the old one while its (n, K) squared distance is at most (1 + `tolerance`) times the least, else the nearest."""
    best = distance.argmin(axis=1).astype(np.int64)
    at = np.arange(len(distance))
    slack = _ROUNDING * distance.max(axis=1, initial=0.0)
    return np.where(distance[at, was] <= (1.0 + tolerance) * distance[at, best] + slack, was, best)


def settle(
    rows: FloatArray, centres: FloatArray, was: IntArray, tolerance: float, iterations: int
) -> Clusters:
    """Alternate `stay` and means until the centres stand still. An empty cluster keeps its centre."""
    for _ in range(iterations):
        moved = _means(rows, stay(squared(rows, centres), was, tolerance), centres)
        still = float(np.abs(moved - centres).max(initial=0.0)) < _STILL
        centres = moved
        if still:
            break
    distance = squared(rows, centres)
    labels = stay(distance, was, tolerance)
    return Clusters(centres, labels, float(distance[np.arange(len(rows)), labels].sum()))


def refit(
    rows: FloatArray,
    centres: FloatArray,
    was: IntArray,
    *,
    tolerance: float,
    price: float,
    iterations: int,
) -> Clusters:
    """Warm-started k-means of (n, D) rows from (K, D) `centres`, relocations included, numbered like the old one.

    A relocation is accepted when it lowers the error by at least `price` of itself for each share of the rows that it
    moves. The search is Lloyd's own, `tolerance` 0; then the rows go back to where they `was` as far as `tolerance` lets
    them and the centres follow.
    """
    best = settle(rows, centres, was, 0.0, iterations)
    for _ in range(len(centres)):
        proposal = _relocated(rows, best)
        if proposal is None:
            break
        tried = settle(rows, proposal, was, 0.0, iterations)
        moved = _moved(was, tried.labels, len(centres)) - _moved(was, best.labels, len(centres))
        if best.error - tried.error < max(_LEAST, price * moved) * best.error:
            break
        best = tried
    ordered = best.centres[matching(was, best.labels, len(centres))]
    return settle(rows, ordered, was, tolerance, iterations)


def matching(was: IntArray, now: IntArray, count: int) -> IntArray:
    """(count,) permutation p: the new code p[k] takes the old number k, so that most rows keep their number (Hungarian).

    Codes that share no row keep their own number as far as that is free.
    """
    shared = _shared(was, now, count)
    _, order = linear_sum_assignment(shared + 0.5 / count * np.eye(count), maximize=True)
    return np.asarray(order, dtype=np.int64)


def _shared(was: IntArray, now: IntArray, count: int) -> Matrix:
    return (
        np.bincount(was * count + now, minlength=count * count)
        .reshape(count, count)
        .astype(np.float64)
    )


def _moved(was: IntArray, now: IntArray, count: int) -> float:
    """Share of the rows whose number would change after the best matching."""
    order = matching(was, now, count)
    return 1.0 - float(_shared(was, now, count)[np.arange(count), order].sum()) / len(was)


def _means(rows: FloatArray, labels: IntArray, centres: FloatArray) -> FloatArray:
    found = centres.copy()
    for code in np.unique(labels):
        found[code] = rows[labels == code].mean(axis=0, dtype=np.float64)
    return found


def _relocated(rows: FloatArray, now: Clusters) -> FloatArray | None:
    """The centres after the most promising relocation, or None when none promises anything."""
    count = len(now.centres)
    distance = squared(rows, now.centres)
    if count < 2 or not len(rows):
        return None
    two = np.partition(distance, 1, axis=1)[:, :2]
    costs = np.bincount(distance.argmin(axis=1), weights=two[:, 1] - two[:, 0], minlength=count)
    victim = int(costs.argmin())
    gains, halves = np.full(count, -np.inf), np.zeros((count, 2, rows.shape[1]), np.float32)
    for code in np.unique(now.labels):
        if code != victim:
            gains[code], halves[code] = _split(rows[now.labels == code])
    host = int(gains.argmax())
    if gains[host] <= _HOPE * costs[victim]:
        return None
    centres = now.centres.copy()
    centres[host], centres[victim] = halves[host]
    return centres


def _split(members: FloatArray) -> tuple[float, FloatArray]:
    """What a split into two would gain, and the two centres (2, D). Lloyd from the principal axis."""
    centre = members.mean(axis=0, dtype=np.float64)
    spread = members - centre
    axis = spread[(spread**2).sum(axis=1).argmax()]
    for _ in range(5):
        axis = spread.T @ (spread @ axis)
        axis /= max(float(np.linalg.norm(axis)), 1e-30)
    side = spread @ axis > 0
    for _ in range(8):
        if side.all() or not side.any():
            return 0.0, np.stack([centre, centre]).astype(np.float32)
        left, right = spread[~side].mean(axis=0), spread[side].mean(axis=0)
        near_right = spread @ (right - left) > ((right**2).sum() - (left**2).sum()) / 2
        if (near_right == side).all():
            break
        side = near_right
    left_over = spread - np.where(side[:, None], right, left)
    return float((spread**2).sum() - (left_over**2).sum()), (
        centre + np.stack([left, right])
    ).astype(np.float32)
