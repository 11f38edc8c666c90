"""How good identifiers are, measured as the field does: balance, collisions, faithfulness."""

from dataclasses import asdict, dataclass

import numpy as np

from model.identifiers.codebook import Codebook, pack_all
from schemas.records import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class IdentifierQuality:
    """`perplexity`: codes of each level effectively in use. `leaf_gini`: 0 is even load, 1 is one leaf; occupied leaves
    only. `leaf_p99`: images in a crowded leaf. `collision_share`: images that share their leaf, which only the suffix
    tells apart. `reconstruction_error`: squared error of the codes' approximation relative to the embeddings' variance.
    `neighbour_agreement`: share of an image's ten exact nearest neighbours with the same id1; `shared_prefix`: mean
    number of leading codes they share. The suffix is excluded everywhere: it has no meaning."""

    images: int
    leaves: int
    perplexity: tuple[float, float, float, float]
    leaf_gini: float
    leaf_p99: float
    collision_share: float
    reconstruction_error: float
    neighbour_agreement: float
    shared_prefix: float

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def perplexity(codes: IntArray, count: int) -> float:
    """exp(entropy) of one level's code distribution: between 1 (one code) and `count` (all equally used)."""
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


def identifier_quality(
    codes: IntArray,
    embeddings: FloatArray,
    codebook: Codebook,
    *,
    seed: int = 0,
    sample: int = 1000,
) -> IdentifierQuality:
    """Quality of (N, 4) codes of (N, D) embeddings; neighbours are measured on a seeded sample of at most `sample` rows."""
    shape = codebook.config.shape
    leaves, loads = np.unique(pack_all(codes, shape), return_counts=True)
    centred = embeddings - embeddings.mean(0)
    error = float(
        ((embeddings - codebook.reconstruct(codes)) ** 2).sum()
        / max(float((centred**2).sum()), 1e-12)
    )
    agreement, prefix = _neighbours(codes, embeddings, seed, sample)
    first, second, third, fourth = (
        perplexity(codes[:, level], shape.codes[level]) for level in range(4)
    )
    return IdentifierQuality(
        images=len(codes),
        leaves=len(leaves),
        perplexity=(first, second, third, fourth),
        leaf_gini=gini(loads),
        leaf_p99=float(np.percentile(loads, 99)),
        collision_share=float(loads[loads > 1].sum() / len(codes)),
        reconstruction_error=error,
        neighbour_agreement=agreement,
        shared_prefix=prefix,
    )


def _neighbours(
    codes: IntArray, embeddings: FloatArray, seed: int, sample: int
) -> tuple[float, float]:
    if len(codes) < 2:
        return 1.0, 4.0
    rows = np.random.default_rng(seed).choice(len(codes), min(sample, len(codes)), replace=False)
    distance = (embeddings**2).sum(1)[None] - 2 * embeddings[rows] @ embeddings.T
    distance[np.arange(len(rows)), rows] = np.inf
    near = np.argpartition(distance, min(10, len(codes) - 1) - 1, axis=1)[
        :, : min(10, len(codes) - 1)
    ]
    same = codes[near] == codes[rows][:, None, :]
    return float(same[:, :, 0].mean()), float(np.cumprod(same, axis=2).sum(2).mean())
