"""Re-clustering: a codebook fitted to what is in the store now whose codes mean, as far as possible, what they meant before.

Every identifier that changes is a posting rewritten, a training pair forgotten and a cached answer gone, so the fit pays for
moves: it starts from the old codebook, moves a centre far only where that gains clearly more than it disturbs, numbers what
it found like the old one (Hungarian), and `keep_codes` leaves an image where it is while its old code is nearly as good as
the best one.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np

from model.identifiers.codebook import Codebook, checked, dominant, pack_all
from model.identifiers.quality import gini
from model.identifiers.seminmf import fit_seminmf, nonnegative_coefficients
from model.identifiers.sticky_kmeans import Clusters, matching, refit, squared, stay
from schemas.errors import UsageError
from schemas.records import BoolArray, FloatArray, IntArray

_BLOCK, _RUNGS, _STEP, _DEAR = 8192, 5, 1.5, 4.0
_TRIAL_ITERATIONS, _TRIAL_SWEEPS = 10, 40


@dataclass(frozen=True, slots=True)
class ReclusterConfig:
    """What an unchanged identifier is worth.

    `distance`: id1 and id4 stay while their squared distance exceeds the least by at most this share. `coefficient`: id2 and
    id3 stay while their coefficient falls short of the largest by at most this share. `price`: a centre is relocated when
    that lowers the error by this share of itself for each share of images that it moves. `stale`: Semi-NMF directions are
    fitted anew when the old ones leave this share more of unseen rows unexplained than new ones do. `moves`: the share of
    identifiers that `recluster_within_budget` may move; it raises `distance` and `stale` until they keep to it.
    """

    seed: int = 0
    distance: float = 0.1
    coefficient: float = 0.25
    price: float = 0.1
    stale: float = 0.2
    moves: float = 0.15
    iterations: int = 30

    def __post_init__(self) -> None:
        if (
            min(self.distance, self.coefficient, self.price, self.stale, self.moves) < 0
            or self.iterations < 1
            or self.coefficient > 1
        ):
            raise UsageError(
                f"{self}: tolerances must not be negative, `coefficient` at most 1, iterations at least 1"
            )


def recluster(
    old: Codebook, embeddings: FloatArray, config: ReclusterConfig = ReclusterConfig()
) -> Codebook:
    """A codebook of the same shape fitted to (N, D) embeddings, a sample of what is in the store now, numbered like `old`.

    `UsageError` for no rows, NaN and another width. Deterministic.
    """
    rows = checked(embeddings, old.width)
    if not len(rows):
        raise UsageError(
            "a re-clustering needs at least one embedding, got none; index images first"
        )
    codes = old.encode(rows)
    first = refit(
        rows,
        old.centroids,
        codes[:, 0],
        tolerance=config.distance,
        price=config.price,
        iterations=config.iterations,
    )
    second, third = _directions(old, rows, codes, first, config)
    codewords = _codewords(old, rows - first.centres[first.labels], codes[:, 3], config)
    return Codebook(old.config, first.centres, second, third, codewords)


def recluster_within_budget(
    old: Codebook, embeddings: FloatArray, config: ReclusterConfig = ReclusterConfig()
) -> tuple[Codebook, ReclusterConfig]:
    """The most faithful re-clustering that moves at most `moves` of the sample's identifiers, and the config to give to
    `keep_codes` with it.

    How much one tolerance moves depends on the shape: in a fine codebook the second-best code is never far. So the tolerances
    rise until the budget is met, once with relocations at their price and once with hardly any. Moves are counted on the old
    codebook's own codes: what a model assigned differently is no work of the re-clustering. When nothing fits, the
    re-clustering that moves least is returned.
    """
    rows = checked(embeddings, old.width)
    codes = old.encode(rows)
    tries = _ladder(old, rows, codes, config)
    if len(tries) > 1:
        tries += _ladder(old, rows, codes, replace(config, price=_DEAR * config.price))
    _, _, book, tried = min(tries, key=lambda found: found[:2])
    return book, tried


def _ladder(
    old: Codebook, rows: FloatArray, codes: IntArray, config: ReclusterConfig
) -> list[tuple[float, float, Codebook, ReclusterConfig]]:
    """Re-clusterings at rising tolerances until one keeps to the budget, then one between it and the last that did not: each
    with its moves (no less than the budget, so that all within it compare by error) and its error."""
    tries: list[tuple[float, float, Codebook, ReclusterConfig]] = []
    powers = [float(rung) for rung in reversed(range(_RUNGS))]
    while powers:
        power = powers.pop()
        up = _STEP**power
        tried = replace(config, distance=config.distance * up, stale=config.stale * up)
        book = recluster(old, rows, tried)
        kept = keep_codes(codes, rows, book, tried)
        moved = float((kept != codes).any(axis=1).mean())
        tries.append((max(moved, config.moves), quantisation_error(book, kept, rows), book, tried))
        if moved <= config.moves:
            powers = [power - 0.5] if power == round(power) and power > 0 else []
    return tries


def keep_codes(
    codes: IntArray,
    embeddings: FloatArray,
    codebook: Codebook,
    config: ReclusterConfig = ReclusterConfig(),
) -> IntArray:
    """(N, 4) codes of (N, D) embeddings in the re-clustered `codebook`: the old `codes` where they are still good enough.

    Each row is decided alone, so batches give the same as the whole. id2 and id3 mean nothing outside their id1 cluster: an
    image that leaves it gets its best ones. `UsageError` for codes of another shape.
    """
    rows, old = checked(embeddings, codebook.width), np.asarray(codes, dtype=np.int64)
    allowed = np.array(codebook.config.shape.codes)
    if old.shape != (len(rows), 4) or (old < 0).any() or (old >= allowed).any():
        raise UsageError(
            f"codes of shape {old.shape} for {len(rows)} embeddings: must be ({len(rows)}, 4) and below {allowed.tolist()}"
        )
    kept = [
        _kept(old[at : at + _BLOCK], rows[at : at + _BLOCK], codebook, config)
        for at in range(0, len(rows), _BLOCK)
    ]
    return np.concatenate(kept) if kept else old.copy()


def _kept(old: IntArray, rows: FloatArray, book: Codebook, config: ReclusterConfig) -> IntArray:
    codes = old.copy()
    codes[:, 0] = stay(squared(rows, book.centroids), old[:, 0], config.distance)
    residual = rows - book.centroids[codes[:, 0]]
    here = codes[:, 0] == old[:, 0]
    for cluster in np.unique(codes[:, 0]):
        at = np.flatnonzero(codes[:, 0] == cluster)
        codes[at, 1], left = _lasting(
            residual[at], book.second[cluster], old[at, 1], here[at], config
        )
        codes[at, 2], _ = _lasting(left, book.third[cluster], old[at, 2], here[at], config)
    best = book.quantise(residual)
    far = ((residual - book.codeword(old[:, 3])) ** 2).sum(1, dtype=np.float64)
    least = ((residual - book.codeword(best)) ** 2).sum(1, dtype=np.float64)
    codes[:, 3] = np.where(far <= (1 + config.distance) * least, old[:, 3], best)
    return codes


def _lasting(
    rows: FloatArray, basis: FloatArray, was: IntArray, here: BoolArray, config: ReclusterConfig
) -> tuple[IntArray, FloatArray]:
    """The old component while it is nearly the dominant one, and what it leaves over."""
    weights, at = nonnegative_coefficients(rows, basis), np.arange(len(rows))
    best = weights.argmax(axis=1)
    good = here & (weights[at, was] >= (1 - config.coefficient) * weights[at, best])
    code = np.where(good, was, best).astype(np.int64)
    return code, (rows - weights[at, code][:, None] * basis[code]).astype(np.float32)


def _directions(
    old: Codebook, rows: FloatArray, codes: IntArray, first: Clusters, config: ReclusterConfig
) -> tuple[FloatArray, FloatArray]:
    """Both Semi-NMF levels of each id1 cluster; those of a cluster that lost all its images stay."""
    second, third = old.second.copy(), old.third.copy()
    for cluster in np.unique(first.labels):
        at = np.flatnonzero(first.labels == cluster)
        inside, same = rows[at] - first.centres[cluster], codes[at, 0] == cluster
        seed = config.seed + int(cluster)
        second[cluster] = _basis(inside, old.second[cluster], codes[at, 1], same, seed, config)
        _, left = dominant(inside, second[cluster])
        third[cluster] = _basis(
            left, old.third[cluster], codes[at, 2], same, seed + len(second), config
        )
    return second, third


def _basis(
    inside: FloatArray,
    basis: FloatArray,
    was: IntArray,
    same: BoolArray,
    seed: int,
    config: ReclusterConfig,
) -> FloatArray:
    """The old directions (k, D) while they serve the (n, D) rows, else new ones numbered like them.

    `same` marks rows that were in this cluster: without a majority of them the old directions are no start worth having.
    """
    start = basis if basis.any() and same.mean() > 0.5 else None
    if basis.any() and not _stale(inside, basis, start, seed, config):
        return basis
    fitted = fit_seminmf(
        inside, len(basis), seed=seed, iterations=config.iterations, start=start
    ).basis
    if not same.any():
        return fitted
    now, _ = dominant(inside[same], fitted)
    return fitted[matching(was[same], now, len(basis))]


def _stale(
    inside: FloatArray,
    basis: FloatArray,
    start: FloatArray | None,
    seed: int,
    config: ReclusterConfig,
) -> bool:
    """Whether directions fitted to every other row explain the rows between clearly better than the old ones do.

    Judged on rows that the fit has not seen: on its own rows a new fit always looks a tenth better, and seldom is.
    """
    seen, unseen = inside[::2], inside[1::2]
    if not len(unseen):
        return False
    fitted = fit_seminmf(
        seen, len(basis), seed=seed, iterations=_TRIAL_ITERATIONS, start=start
    ).basis
    return _unexplained(unseen, basis) > (1 + config.stale) * _unexplained(unseen, fitted)


def _unexplained(rows: FloatArray, basis: FloatArray) -> float:
    weights = nonnegative_coefficients(rows, basis, sweeps=_TRIAL_SWEEPS)
    return float(((rows - weights @ basis.astype(np.float64)) ** 2).sum())


def _codewords(
    old: Codebook, residual: FloatArray, was: IntArray, config: ReclusterConfig
) -> FloatArray:
    """id4's codewords (M, N, D/M), subspace by subspace: the digits of the old mixed-radix code are the old clusters."""
    spaces, count, width = old.codewords.shape
    found = np.empty_like(old.codewords)
    for m in range(spaces):
        part = residual[:, m * width : (m + 1) * width]
        digit = was // count ** (spaces - 1 - m) % count
        found[m] = refit(
            part,
            old.codewords[m],
            digit,
            tolerance=config.distance,
            price=config.price,
            iterations=config.iterations,
        ).centres
    return found


@dataclass(frozen=True, slots=True)
class ReclusterReport:
    """What a re-clustering moved and gained. `kept`: share of images whose id1, id2, id3, id4 is what it was, each level for
    itself; `kept_whole` all four together. Errors are squared, relative to the variance of the embeddings: the old codebook
    with its own best codes, the new one with the codes images really get, and a fresh fit with its best codes. `gain_share`:
    of what the fresh fit gains over the old codebook, how much the new one gains; None without a fresh fit, or when that
    gains less than a hundredth of the old error: there is nothing to share then, and `error_new` against `error_fresh` says
    all. Leaf loads are of the old and new codes; occupied leaves only."""

    images: int
    moved: int
    kept: tuple[float, float, float, float]
    kept_whole: float
    error_old: float
    error_new: float
    error_fresh: float | None
    gain_share: float | None
    leaves_old: int
    leaves_new: int
    leaf_gini_old: float
    leaf_gini_new: float
    leaf_p99_old: float
    leaf_p99_new: float

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def recluster_report(
    old_codes: IntArray,
    new_codes: IntArray,
    embeddings: FloatArray,
    old: Codebook,
    new: Codebook,
    fresh: Codebook | None,
) -> ReclusterReport:
    """Compare (N, 4) codes before and after of the same (N, D) embeddings; `fresh` is a fit of its own to them, the yardstick."""
    rows = checked(embeddings, old.width)
    same = old_codes == new_codes
    whole = same.all(axis=1)
    before, after = (
        quantisation_error(old, old.encode(rows), rows),
        quantisation_error(new, new_codes, rows),
    )
    yardstick = quantisation_error(fresh, fresh.encode(rows), rows) if fresh is not None else None
    first, second, third, fourth = (float(share) for share in same.mean(axis=0))
    loads_old, loads_new = _loads(old_codes, old), _loads(new_codes, new)
    return ReclusterReport(
        images=len(rows),
        moved=int((~whole).sum()),
        kept=(first, second, third, fourth),
        kept_whole=float(whole.mean()),
        error_old=before,
        error_new=after,
        error_fresh=yardstick,
        gain_share=gain_share(before, after, yardstick),
        leaves_old=len(loads_old),
        leaves_new=len(loads_new),
        leaf_gini_old=gini(loads_old),
        leaf_gini_new=gini(loads_new),
        leaf_p99_old=float(np.percentile(loads_old, 99)),
        leaf_p99_new=float(np.percentile(loads_new, 99)),
    )


def gain_share(before: float, after: float, fresh: float | None) -> float | None:
    """(before − after) / (before − fresh), None when a fresh fit gains less than a hundredth of `before`."""
    if fresh is None or before - fresh < 0.01 * before:
        return None
    return (before - after) / (before - fresh)


def quantisation_error(book: Codebook, codes: IntArray, embeddings: FloatArray) -> float:
    """Squared error of (N, 4) codes relative to the variance of (N, D) embeddings, as `identifier_quality` measures it."""
    centred = embeddings - embeddings.mean(axis=0)
    return float(
        ((embeddings - book.reconstruct(codes)) ** 2).sum() / max(float((centred**2).sum()), 1e-12)
    )


def _loads(codes: IntArray, book: Codebook) -> IntArray:
    return np.unique(pack_all(codes, book.config.shape), return_counts=True)[1]
