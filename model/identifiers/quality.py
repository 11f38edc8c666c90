"""How good identifiers are, measured as the field does: balance, collisions, faithfulness."""

from dataclasses import asdict, dataclass

import numpy as np

from model.identifiers.codebook import Codebook, pack_all
from schemas.records import FloatArray, IntArray

# Nearest neighbours of an image whose codes should agree with its own.
_NEIGHBOURS = 10


@dataclass(frozen=True, slots=True)
class IdentifierQuality:
    """Figures of a gallery's identifiers. The suffix is excluded everywhere: it has no meaning."""

    images: int
    leaves: int
    """Occupied ones."""
    perplexity: tuple[float, float, float, float]
    """Codes of each level effectively in use."""
    leaf_gini: float
    """Loads of the occupied leaves: 0 when they are equal, near 1 when one holds nearly all."""
    leaf_p99: float
    """Images in a crowded leaf: the 99th percentile of the loads."""
    collision_share: float
    """Images that share their leaf, so only the suffix tells them apart."""
    reconstruction_error: float
    """Squared error of the codes' approximation, relative to the embeddings' variance."""
    neighbour_agreement: float
    """Share of an image's ten exact nearest neighbours with the same id1."""
    shared_prefix: float
    """Mean number of leading codes that those neighbours share with it."""

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def perplexity(codes: IntArray, count: int) -> float:
    """exp(entropy) of one level's codes: between 1 (one code) and `count` (all equally used)."""
    share = np.bincount(codes, minlength=count) / max(1, len(codes))
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def gini(loads: IntArray) -> float:
    """Gini coefficient of positive loads: 0 when all are equal."""
    ordered = np.sort(loads.astype(np.float64))
    n = len(ordered)
    if n == 0:
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum()))


def leaf_loads(codes: IntArray, codebook: Codebook) -> IntArray:
    """(L,) images in each occupied leaf, of (N, 4) codes."""
    _, loads = np.unique(pack_all(codes, codebook.config.shape), return_counts=True)
    return loads


def quantisation_error(codebook: Codebook, codes: IntArray, embeddings: FloatArray) -> float:
    """Squared error of (N, 4) codes relative to the variance of (N, D) embeddings.

    Both in the directions of the codebook.
    """
    rows = codebook.rows(embeddings)
    error = ((rows - codebook.reconstruct(codes)) ** 2).sum()
    variance = float(((rows - rows.mean(axis=0)) ** 2).sum())
    return float(error / max(variance, 1e-12))


def identifier_quality(
    codes: IntArray,
    embeddings: FloatArray,
    codebook: Codebook,
    *,
    seed: int = 0,
    sample: int = 1000,
) -> IdentifierQuality:
    """Quality of (N, 4) codes of (N, D) embeddings.

    Neighbours are measured on a seeded sample of at most `sample` rows.
    """
    loads = leaf_loads(codes, codebook)
    agreement, prefix = _neighbours(codes, embeddings, seed, sample)
    first, second, third, fourth = _perplexities(codes, codebook)
    return IdentifierQuality(
        images=len(codes),
        leaves=len(loads),
        perplexity=(first, second, third, fourth),
        leaf_gini=gini(loads),
        leaf_p99=float(np.percentile(loads, 99)),
        collision_share=float(loads[loads > 1].sum() / len(codes)),
        reconstruction_error=quantisation_error(codebook, codes, embeddings),
        neighbour_agreement=agreement,
        shared_prefix=prefix,
    )


def _perplexities(codes: IntArray, codebook: Codebook) -> list[float]:
    perplexities = []
    for level, count in enumerate(codebook.config.shape.codes):
        perplexities.append(perplexity(codes[:, level], count))
    return perplexities


def _neighbours(
    codes: IntArray, embeddings: FloatArray, seed: int, sample: int
) -> tuple[float, float]:
    """Share of neighbours with the same id1, and the mean number of leading codes shared."""
    total = len(codes)
    if total < 2:
        return 1.0, 4.0
    rows = np.random.default_rng(seed).choice(total, min(sample, total), replace=False)
    # The row's own squared length is left out: it does not change which neighbours are nearest.
    distance = (embeddings**2).sum(1)[None] - 2 * embeddings[rows] @ embeddings.T
    distance[np.arange(len(rows)), rows] = np.inf
    count = min(_NEIGHBOURS, total - 1)
    nearest = np.argpartition(distance, count - 1, axis=1)[:, :count]
    same = codes[nearest] == codes[rows][:, None, :]
    shared_prefix = np.cumprod(same, axis=2).sum(2)
    return float(same[:, :, 0].mean()), float(shared_prefix.mean())
