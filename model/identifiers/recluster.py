"""Re-clustering: a codebook fitted to what is stored now whose codes mean what they meant before.

Every identifier that changes is a posting rewritten, a training pair forgotten and a cached answer
lost, so the fit pays for moves. It starts from the old codebook, moves a centre far only where that
gains clearly more than it disturbs, and numbers the result like the old one (Hungarian).
`keep_codes` then leaves an image where it is while its old code is nearly as good as the best one.
"""

from dataclasses import dataclass, replace

import numpy as np

from model.identifiers.codebook import Codebook, checked, dominant
from model.identifiers.quality import quantisation_error
from model.identifiers.seminmf import fit_seminmf, nonnegative_coefficients
from model.identifiers.sticky_kmeans import (
    Clusters,
    matching,
    refit,
    squared_distances,
    sticky_labels,
)
from schemas.errors import UsageError
from schemas.records import BoolArray, FloatArray, IntArray

# Rows whose codes are decided at a time, which bounds memory.
_BLOCK = 8192

# Tolerances that are tried to keep to a budget, each `_STEP` times the one before.
_RUNGS = 5

# Four steps are five times the tolerance: beyond, codes fit their images no longer.
_STEP = 1.5

# How many times its price a relocation costs in the second round, which hardly makes any.
_HIGH_PRICE = 4.0

# Iterations of a trial fit of directions: the verdict needs no converged one.
_TRIAL_ITERATIONS = 10

# Sweeps of its coefficients.
_TRIAL_SWEEPS = 40


@dataclass(frozen=True, slots=True)
class ReclusterConfig:
    """What an unchanged identifier is worth."""

    seed: int = 0
    distance: float = 0.1
    """id1 and id4 stay while their squared distance exceeds the least by at most this share."""
    coefficient: float = 0.25
    """id2 and id3 stay while their coefficient is below the largest by at most this share."""
    price: float = 0.1
    """A centre is relocated for this share of the error gained, for each share of images moved."""
    stale: float = 0.2
    """Directions are fitted anew when the old ones leave this share more of unseen rows."""
    moves: float = 0.15
    """Share of identifiers that `recluster_within_budget` may move."""
    iterations: int = 30

    def __post_init__(self) -> None:
        least = min(self.distance, self.coefficient, self.price, self.stale, self.moves)
        if least < 0 or self.coefficient > 1 or self.iterations < 1:
            raise UsageError(
                "tolerances must not be negative, `coefficient` must be at most 1 and iterations at"
                f" least 1, got {self}"
            )


@dataclass(frozen=True, slots=True)
class _Trial:
    """A re-clustering of the sample at one pair of tolerances."""

    codebook: Codebook
    config: ReclusterConfig
    excess_moves: float
    """Share of identifiers moved, or the budget where that is larger: all within it are equal."""
    error: float

    @property
    def cost(self) -> tuple[float, float]:
        """Fewest moves beyond the budget first, then the smallest error."""
        return self.excess_moves, self.error


def recluster(
    old: Codebook, embeddings: FloatArray, config: ReclusterConfig = ReclusterConfig()
) -> Codebook:
    """A codebook of the same shape fitted to (N, D) embeddings, numbered like `old`.

    The embeddings are a sample of what is stored now. `UsageError` for no rows, NaN and another
    width. Deterministic.
    """
    rows = old.rows(embeddings)
    if not len(rows):
        raise UsageError(
            "a re-clustering needs at least one embedding, got none; index images first"
        )
    codes = old.encode(embeddings)
    first = refit(
        rows,
        old.centroids,
        codes[:, 0],
        tolerance=config.distance,
        price=config.price,
        iterations=config.iterations,
    )
    second, third = _refit_directions(old, rows, codes, first, config)
    residual = rows - first.centres[first.labels]
    codewords = _refit_codewords(old, residual, codes[:, 3], config)
    return Codebook(old.config, first.centres, second, third, codewords, old.directions)


def recluster_within_budget(
    old: Codebook, embeddings: FloatArray, config: ReclusterConfig = ReclusterConfig()
) -> tuple[Codebook, ReclusterConfig]:
    """The most faithful re-clustering that moves at most `moves` of the sample's identifiers.

    Returned with the config to give to `keep_codes`. How much one tolerance moves depends on the
    shape: in a fine codebook the second-best code is never far. So the tolerances rise until the
    budget is met, once with relocations at their price and once with hardly any. Moves are counted
    on the old codebook's own codes: what a model assigned differently is no work of the
    re-clustering. When nothing fits, the re-clustering that moves least is returned.
    """
    rows = checked(embeddings, old.width)
    codes = old.encode(rows)
    trials = _try_tolerances(old, rows, codes, config)
    if len(trials) > 1:
        dear = replace(config, price=_HIGH_PRICE * config.price)
        trials += _try_tolerances(old, rows, codes, dear)
    best = min(trials, key=lambda trial: trial.cost)
    return best.codebook, best.config


def _try_tolerances(
    old: Codebook, rows: FloatArray, codes: IntArray, config: ReclusterConfig
) -> list[_Trial]:
    """Re-clusterings at rising tolerances until one keeps to the budget.

    Then one between it and the last that did not: half a step may be enough.
    """
    trials: list[_Trial] = []
    for rung in range(_RUNGS):
        trials.append(_try_tolerance(old, rows, codes, config, float(rung)))
        if trials[-1].excess_moves <= config.moves:
            if rung > 0:
                trials.append(_try_tolerance(old, rows, codes, config, rung - 0.5))
            break
    return trials


def _try_tolerance(
    old: Codebook, rows: FloatArray, codes: IntArray, config: ReclusterConfig, power: float
) -> _Trial:
    factor = _STEP**power
    tried = replace(config, distance=config.distance * factor, stale=config.stale * factor)
    codebook = recluster(old, rows, tried)
    kept = keep_codes(codes, rows, codebook, tried)
    moved = float((kept != codes).any(axis=1).mean())
    error = quantisation_error(codebook, kept, rows)
    return _Trial(codebook, tried, max(moved, config.moves), error)


def keep_codes(
    codes: IntArray,
    embeddings: FloatArray,
    codebook: Codebook,
    config: ReclusterConfig = ReclusterConfig(),
) -> IntArray:
    """(N, 4) codes in the re-clustered `codebook`: the old ones where they are still good enough.

    Each row of the (N, D) embeddings is decided alone, so batches give the same as the whole. id2
    and id3 mean nothing outside their id1 cluster: an image that leaves it gets its best ones.
    `UsageError` for codes of another shape.
    """
    rows = codebook.rows(embeddings)
    old = np.asarray(codes, dtype=np.int64)
    allowed = np.array(codebook.config.shape.codes)
    if old.shape != (len(rows), 4) or (old < 0).any() or (old >= allowed).any():
        raise UsageError(
            f"codes must be ({len(rows)}, 4) and below {allowed.tolist()}, got {old.shape}"
            f" for {len(rows)} embeddings; give the codes of the old codebook"
        )
    kept = old.copy()
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        kept[block] = _keep_block(old[block], rows[block], codebook, config)
    return kept


def _keep_block(
    old: IntArray, rows: FloatArray, codebook: Codebook, config: ReclusterConfig
) -> IntArray:
    codes = old.copy()
    distance = squared_distances(rows, codebook.centroids)
    codes[:, 0] = sticky_labels(distance, old[:, 0], config.distance)
    residual = rows - codebook.centroids[codes[:, 0]]
    local = residual if codebook.config.centred else rows
    stayed = codes[:, 0] == old[:, 0]
    for cluster in np.unique(codes[:, 0]):
        members = np.flatnonzero(codes[:, 0] == cluster)
        codes[members, 1], rest = _keep_component(
            local[members],
            codebook.second[cluster],
            old[members, 1],
            stayed[members],
            config.coefficient,
        )
        codes[members, 2], _ = _keep_component(
            rest,
            codebook.third[cluster],
            old[members, 2],
            stayed[members],
            config.coefficient,
        )
    codes[:, 3] = _keep_codeword(residual, old[:, 3], codebook, config.distance)
    return codes


def _keep_component(
    rows: FloatArray, basis: FloatArray, was: IntArray, stayed: BoolArray, tolerance: float
) -> tuple[IntArray, FloatArray]:
    """The old component while it is nearly the dominant one, and what it leaves over.

    Only for rows that `stayed` in their cluster is there an old component.
    """
    weights = nonnegative_coefficients(rows, basis)
    each = np.arange(len(rows))
    best = weights.argmax(axis=1)
    good = stayed & (weights[each, was] >= (1 - tolerance) * weights[each, best])
    code = np.where(good, was, best).astype(np.int64)
    part = weights[each, code][:, None] * basis[code]
    return code, (rows - part).astype(np.float32)


def _keep_codeword(
    residual: FloatArray, was: IntArray, codebook: Codebook, tolerance: float
) -> IntArray:
    """The old id4 while it is nearly the nearest one."""
    best = codebook.quantise(residual)
    old_distance = ((residual - codebook.codeword(was)) ** 2).sum(1, dtype=np.float64)
    least = ((residual - codebook.codeword(best)) ** 2).sum(1, dtype=np.float64)
    return np.where(old_distance <= (1 + tolerance) * least, was, best)


def _refit_directions(
    old: Codebook, rows: FloatArray, codes: IntArray, first: Clusters, config: ReclusterConfig
) -> tuple[FloatArray, FloatArray]:
    """Both Semi-NMF levels of each id1 cluster; those of a cluster that lost all images stay."""
    second = old.second.copy()
    third = old.third.copy()
    for cluster in np.unique(first.labels):
        members = np.flatnonzero(first.labels == cluster)
        inside = rows[members]
        if old.config.centred:
            inside = inside - first.centres[cluster]
        stayed = codes[members, 0] == cluster
        seed = config.seed + int(cluster)
        second[cluster] = _refit_basis(
            inside,
            old.second[cluster],
            codes[members, 1],
            stayed,
            seed,
            config,
        )
        _, rest = dominant(inside, second[cluster])
        third[cluster] = _refit_basis(
            rest,
            old.third[cluster],
            codes[members, 2],
            stayed,
            seed + len(second),
            config,
        )
    return second, third


def _refit_basis(
    inside: FloatArray,
    basis: FloatArray,
    was: IntArray,
    stayed: BoolArray,
    seed: int,
    config: ReclusterConfig,
) -> FloatArray:
    """The old directions (k, D) while they serve the (n, D) rows, else new ones numbered like them.

    `stayed` (n,) marks rows that were in this cluster before.
    """
    exists = bool(basis.any())
    # Without a majority of their own rows the old directions are no start worth having.
    start = basis if exists and stayed.mean() > 0.5 else None
    if exists and not _is_stale(inside, basis, start, seed, config):
        return basis
    count = len(basis)
    fitted = fit_seminmf(inside, count, seed=seed, iterations=config.iterations, start=start).basis
    if not stayed.any():
        return fitted
    now, _ = dominant(inside[stayed], fitted)
    return fitted[matching(was[stayed], now, count)]


def _is_stale(
    inside: FloatArray,
    basis: FloatArray,
    start: FloatArray | None,
    seed: int,
    config: ReclusterConfig,
) -> bool:
    """Whether directions fitted to every other row explain the rows between clearly better.

    Judged on rows that the fit has not seen: on its own rows a new fit always looks a tenth better,
    and seldom is.
    """
    seen = inside[::2]
    unseen = inside[1::2]
    if not len(unseen):
        return False
    trial = fit_seminmf(seen, len(basis), seed=seed, iterations=_TRIAL_ITERATIONS, start=start)
    limit = (1 + config.stale) * _unexplained(unseen, trial.basis)
    return _unexplained(unseen, basis) > limit


def _unexplained(rows: FloatArray, basis: FloatArray) -> float:
    """Squared error that (k, D) directions leave of (n, D) rows."""
    weights = nonnegative_coefficients(rows, basis, sweeps=_TRIAL_SWEEPS)
    return float(((rows - weights @ basis.astype(np.float64)) ** 2).sum())


def _refit_codewords(
    old: Codebook, residual: FloatArray, was: IntArray, config: ReclusterConfig
) -> FloatArray:
    """id4's codewords (M, N, D/M), subspace by subspace.

    The digits of the old mixed-radix code are the old clusters of each.
    """
    spaces, count, width = old.codewords.shape
    codewords = np.empty_like(old.codewords)
    for m in range(spaces):
        clusters = refit(
            residual[:, m * width : (m + 1) * width],
            old.codewords[m],
            was // count ** (spaces - 1 - m) % count,
            tolerance=config.distance,
            price=config.price,
            iterations=config.iterations,
        )
        codewords[m] = clusters.centres
    return codewords
