"""Semi-NMF, V ≈ W·H with W ≥ 0 and H free (Ding, Li and Jordan 2008), vectorised over rows.

The rows of `H` are unit-length directions, so that the coefficients of a row compare between
components. Both half-steps are exact minimisations, so the objective ‖V − W·H‖² never rises.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.identifiers.kmeans import kmeans_centres
from schemas.errors import UsageError
from schemas.records import BoolArray, DoubleArray, FloatArray

Reals = npt.NDArray[np.float32] | DoubleArray

# Coefficients have settled when a sweep moves them by less, times the largest target.
_TOLERANCE = 1e-10

# Most sweeps for final coefficients: bases of nearly parallel directions need hundreds.
_SWEEPS = 400

# Sweeps between two updates of the basis: enough to go downhill, the next round goes on.
_FIT_SWEEPS = 8

# After so many sweeps the rows still moving are solved on their support.
#
# Some bases need hundreds of sweeps for the last digits.
_POLISH = frozenset({12, 24, 48, 96, 192})

# Least eigenvalue of a support's Gram matrix that is solved on: below, digits are lost.
_SINGULAR = 1e-8

# Keeps a division by a squared length from being one by zero.
_TINY = 1e-30

# A direction shorter than this has no direction.
_NO_LENGTH = 1e-9


@dataclass(frozen=True, slots=True)
class SemiNMF:
    """A fitted factorisation."""

    basis: FloatArray
    """(k, D) unit rows"""
    objective: tuple[float, ...]
    """‖V − W·H‖² after each iteration, never rising"""


def nonnegative_coefficients(
    rows: Reals, basis: Reals, *, start: DoubleArray | None = None, sweeps: int = _SWEEPS
) -> DoubleArray:
    """W (n, k) ≥ 0 that minimises ‖rows − W·basis‖², all rows (n, D) at once, `basis` (k, D) fixed.

    Cyclic coordinate descent on the k×k Gram matrix: each coordinate's minimum is closed-form and
    the problem is convex, so the sweeps converge to the non-negative least-squares solution. From
    `start` (n, k), no number of sweeps makes it worse.
    """
    basis = basis.astype(np.float64)
    gram = basis @ basis.T
    target = rows.astype(np.float64) @ basis.T
    weights = _first_guess(gram, target) if start is None else start.copy()
    limit = _TOLERANCE * max(1.0, float(np.abs(target).max(initial=0.0)))
    active = np.arange(len(rows))
    for sweep in range(1, sweeps + 1):
        before = weights[active]
        after = _sweep(gram, target[active], before)
        weights[active] = after
        moved = np.abs(after - before).max(axis=1, initial=0.0)
        active = active[moved > limit]
        if sweep in _POLISH and len(active):
            exact, optimal = _solve_on_support(gram, target[active], weights[active], limit)
            weights[active[optimal]] = exact[optimal]
            active = active[~optimal]
        if not len(active):
            break
    return weights


def fit_seminmf(
    rows: FloatArray,
    components: int,
    *,
    seed: int,
    iterations: int = 30,
    tolerance: float = 1e-4,
    start: FloatArray | None = None,
) -> SemiNMF:
    """Factorise (n, D) rows into `components` directions; deterministic for a seed.

    Begins at the (k, D) directions `start` when they are given, and ends when an iteration lowers
    the objective by less than `tolerance` of its first value. Alternates H = (WᵀW)⁺WᵀV and a few
    sweeps of W from its last value; the last W is exact. Components that no row uses keep their
    direction.
    """
    if rows.ndim != 2 or not len(rows) or components < 1:
        raise UsageError(
            "Semi-NMF needs a matrix (n, D) of at least one row and at least one component,"
            f" got {rows.shape} and {components}"
        )
    data = rows.astype(np.float64)
    if start is None:
        basis = _starting_basis(data, components, seed)
    else:
        basis = _to_unit(start.astype(np.float64), np.random.default_rng(seed))
    weights = nonnegative_coefficients(data, basis, sweeps=_FIT_SWEEPS)
    history = [_objective(data, weights, basis)]
    for _ in range(iterations):
        basis, weights = _update_basis(data, weights, basis)
        weights = nonnegative_coefficients(data, basis, start=weights, sweeps=_FIT_SWEEPS)
        history.append(_objective(data, weights, basis))
        if history[-2] - history[-1] <= tolerance * max(history[0], _TINY):
            break
    weights = nonnegative_coefficients(data, basis, start=weights)
    history.append(_objective(data, weights, basis))
    return SemiNMF(basis=basis.astype(np.float32), objective=tuple(history))


def _first_guess(gram: DoubleArray, target: DoubleArray) -> DoubleArray:
    """Each direction's own coefficient as if it were alone, shared among all of them."""
    alone = np.maximum(target / np.maximum(np.diag(gram), _TINY), 0.0)
    return np.asarray(alone * (1.0 / max(1, len(gram))))


def _sweep(gram: DoubleArray, target: DoubleArray, weights: DoubleArray) -> DoubleArray:
    """One round of coordinate descent over all k coordinates of (n, k) weights."""
    weights = weights.copy()
    for k in range(len(gram)):
        if gram[k, k] > _TINY:
            step = (target[:, k] - weights @ gram[:, k]) / gram[k, k]
            weights[:, k] = np.maximum(0.0, weights[:, k] + step)
    return weights


def _solve_on_support(
    gram: DoubleArray, target: DoubleArray, weights: DoubleArray, limit: float
) -> tuple[DoubleArray, BoolArray]:
    """Least squares of each row on its positive components, (n, k), and (n,) where that is optimal.

    It is the optimum where the Karush-Kuhn-Tucker conditions are met. A singular support has no one
    solution: its rows are left to the sweeps.
    """
    inside = weights > 0
    both = inside[:, :, None] & inside[:, None, :]
    # Outside of the support the matrix is the identity: one batched solve for supports of any size.
    outside = np.eye(len(gram)) * ~inside[:, None, :]
    values, vectors = np.linalg.eigh(np.where(both, gram, outside))
    rotated = np.einsum("nij,ni->nj", vectors, np.where(inside, target, 0.0))
    rotated = rotated / np.maximum(values, _TINY)
    exact = np.where(inside, np.einsum("nij,nj->ni", vectors, rotated), 0.0)
    slope = np.where(inside, 0.0, target - exact @ gram)
    regular = values.min(axis=1) > _SINGULAR
    optimal = regular & (exact >= 0).all(axis=1) & (slope <= limit).all(axis=1)
    return exact, optimal


def _objective(rows: DoubleArray, weights: DoubleArray, basis: DoubleArray) -> float:
    return float(((rows - weights @ basis) ** 2).sum())


def _update_basis(
    rows: DoubleArray, weights: DoubleArray, basis: DoubleArray
) -> tuple[DoubleArray, DoubleArray]:
    """The best basis for (n, k) weights, in unit length, and weights with its lengths in them."""
    used = weights.max(axis=0) > 0
    if not used.any():
        return basis, weights
    solved = np.linalg.pinv(weights[:, used], rcond=1e-10) @ rows
    lengths = np.linalg.norm(solved, axis=1)
    # A direction that vanished cannot be normalised: it stays as it was, without weight.
    kept = lengths > 1e-12
    index = np.flatnonzero(used)[kept]
    vanished = np.flatnonzero(used)[~kept]
    basis = basis.copy()
    basis[index] = solved[kept] / lengths[kept, None]
    weights = weights.copy()
    weights[:, vanished] = 0.0
    weights[:, index] *= lengths[kept]
    return basis, weights


def _starting_basis(rows: DoubleArray, count: int, seed: int) -> DoubleArray:
    """(count, D) normalised k-means centres of the rows' directions.

    Few distinct rows have fewer centres: seeded random directions make up the number.
    """
    rng = np.random.default_rng(seed)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    directions = rows / np.maximum(lengths, 1e-12)
    distinct = len(np.unique(np.round(directions, 6), axis=0))
    used = max(1, min(count, distinct))
    centres = kmeans_centres(directions, used, starts=1, seed=seed)
    missing = rng.standard_normal((count - used, rows.shape[1]))
    return _to_unit(np.vstack([centres, missing]), rng)


def _to_unit(basis: DoubleArray, rng: np.random.Generator) -> DoubleArray:
    """Rows in unit length; one without a length gets a random direction."""
    lengths = np.linalg.norm(basis, axis=1, keepdims=True)
    empty = lengths[:, 0] < _NO_LENGTH
    if empty.any():
        basis = basis.copy()
        basis[empty] = rng.standard_normal((int(empty.sum()), basis.shape[1]))
        lengths = np.linalg.norm(basis, axis=1, keepdims=True)
    return np.asarray(basis / lengths)
