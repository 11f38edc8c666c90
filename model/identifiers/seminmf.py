"""Semi-NMF, V ≈ W·H with W ≥ 0 and H free (Ding, Li and Jordan 2008), vectorised over rows.

`H` are unit-length directions, so that the coefficients of a row compare between components. Both half-steps are exact
minimisations, so the objective ‖V − W·H‖² never rises.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

from schemas.errors import UsageError
from schemas.records import BoolArray, FloatArray

Matrix = np.ndarray
_TOLERANCE = 1e-10
_SWEEPS = 400
_FIT_SWEEPS = 8
_POLISH = frozenset({12, 24, 48, 96, 192})
"""After so many sweeps the rows still moving are solved on their support: some bases need hundreds of sweeps for the last digits."""


@dataclass(frozen=True, slots=True)
class SemiNMF:
    """A fitted factorisation: `basis` (k, D) float32 with unit rows, `objective` after each iteration, non-increasing."""

    basis: FloatArray
    objective: tuple[float, ...]


def nonnegative_coefficients(
    rows: Matrix, basis: Matrix, *, start: Matrix | None = None, sweeps: int = _SWEEPS
) -> Matrix:
    """W (n, k) float64 ≥ 0 that minimises ‖rows − W·basis‖² for fixed `basis` (k, D), all rows at once.

    Cyclic coordinate descent on the k×k Gram matrix: each coordinate's minimum is closed-form, the problem is convex, so
    the sweeps converge to the non-negative least-squares solution. From `start` (n, k), no number of sweeps makes it worse.
    """
    basis = basis.astype(np.float64)
    gram = basis @ basis.T
    target = rows.astype(np.float64) @ basis.T
    if start is None:
        weights: Matrix = np.maximum(target / np.maximum(np.diag(gram), 1e-30), 0.0) * (
            1.0 / max(1, len(basis))
        )
    else:
        weights = start.copy()
    limit = _TOLERANCE * max(1.0, float(np.abs(target).max(initial=0.0)))
    active = np.arange(len(rows))
    for sweep in range(1, sweeps + 1):
        part, goal = weights[active], target[active]
        before = part.copy()
        for k in range(len(basis)):
            if gram[k, k] > 1e-30:
                part[:, k] = np.maximum(
                    0.0, part[:, k] + (goal[:, k] - part @ gram[:, k]) / gram[k, k]
                )
        weights[active] = part
        active = active[np.abs(part - before).max(axis=1, initial=0.0) > limit]
        if sweep in _POLISH and len(active):
            exact, done = _on_support(gram, target[active], weights[active], limit)
            weights[active[done]] = exact[done]
            active = active[~done]
        if not len(active):
            break
    return weights


def _on_support(
    gram: Matrix, target: Matrix, weights: Matrix, limit: float
) -> tuple[Matrix, BoolArray]:
    """Least squares of each row on its positive components, and where that is the optimum (Karush-Kuhn-Tucker).

    A singular support has no one solution: its rows are left to the sweeps.
    """
    inside = weights > 0
    both = inside[:, :, None] & inside[:, None, :]
    values, vectors = np.linalg.eigh(np.where(both, gram, np.eye(len(gram)) * ~inside[:, None, :]))
    turned = np.einsum("nij,ni->nj", vectors, np.where(inside, target, 0.0)) / np.maximum(
        values, 1e-30
    )
    exact = np.where(inside, np.einsum("nij,nj->ni", vectors, turned), 0.0)
    slope = np.where(inside, 0.0, target - exact @ gram)
    done = (values.min(axis=1) > 1e-8) & (exact >= 0).all(axis=1) & (slope <= limit).all(axis=1)
    return exact, done


def _directions(rows: Matrix, count: int, seed: int) -> Matrix:
    """Starting basis: normalised k-means centres; missing ones (few distinct rows) are seeded random directions."""
    rng = np.random.default_rng(seed)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    turned = rows / np.maximum(lengths, 1e-12)
    distinct = len(np.unique(np.round(turned, 6), axis=0))
    used = max(1, min(count, distinct))
    centres = KMeans(used, n_init=1, random_state=seed).fit(turned).cluster_centers_
    centres = np.vstack([centres, rng.standard_normal((count - used, rows.shape[1]))])
    return _unit(centres, rng)


def _unit(basis: Matrix, rng: np.random.Generator) -> Matrix:
    lengths = np.linalg.norm(basis, axis=1, keepdims=True)
    empty = lengths[:, 0] < 1e-9
    if empty.any():
        basis = basis.copy()
        basis[empty] = rng.standard_normal((int(empty.sum()), basis.shape[1]))
        lengths = np.linalg.norm(basis, axis=1, keepdims=True)
    unit: Matrix = basis / lengths
    return unit


def fit_seminmf(
    rows: FloatArray,
    components: int,
    *,
    seed: int,
    iterations: int = 30,
    tolerance: float = 1e-4,
    start: FloatArray | None = None,
) -> SemiNMF:
    """Factorise (n, D) rows into `components` directions; deterministic for a seed. Begins at the (k, D) directions `start`
    when they are given.

    Alternates H = (WᵀW)⁺WᵀV and a few sweeps of W from where it stands; the last W is exact. Components that no row uses
    keep their direction.
    """
    if rows.ndim != 2 or not len(rows) or components < 1:
        raise UsageError(
            f"Semi-NMF needs a non-empty (n, D) matrix and at least one component, got {rows.shape} and {components}"
        )
    data = rows.astype(np.float64)
    basis = (
        _directions(data, components, seed)
        if start is None
        else _unit(start.astype(np.float64), np.random.default_rng(seed))
    )
    weights = nonnegative_coefficients(data, basis, sweeps=_FIT_SWEEPS)
    history = [float(((data - weights @ basis) ** 2).sum())]
    for _ in range(iterations):
        used = weights.max(axis=0) > 0
        if used.any():
            solved = np.linalg.pinv(weights[:, used], rcond=1e-10) @ data
            lengths = np.linalg.norm(solved, axis=1)
            kept = lengths > 1e-12
            index = np.flatnonzero(used)[kept]
            basis = basis.copy()
            basis[index] = solved[kept] / lengths[kept, None]
            weights[:, np.flatnonzero(used)[~kept]] = 0.0
            weights[:, index] *= lengths[kept]
        weights = nonnegative_coefficients(data, basis, start=weights, sweeps=_FIT_SWEEPS)
        history.append(float(((data - weights @ basis) ** 2).sum()))
        if history[-2] - history[-1] <= tolerance * max(history[0], 1e-30):
            break
    weights = nonnegative_coefficients(data, basis, start=weights)
    history.append(float(((data - weights @ basis) ** 2).sum()))
    return SemiNMF(basis=basis.astype(np.float32), objective=tuple(history))
