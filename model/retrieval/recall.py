"""Recall per image, as the field reports it, with an interval that says how much to believe."""

from collections.abc import Sequence
from math import sqrt

# The k of R@k that text-to-image retrieval reports, and 20 for what re-ranking could reach.
CUTOFFS = (1, 5, 10, 20)


def recall_at(ranks: Sequence[int | None], cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """`R@k` for ranks that start at 1; None means not found. Empty input gives zeros."""
    total = max(1, len(ranks))
    recall = {}
    for cutoff in cutoffs:
        hits = sum(rank is not None and rank <= cutoff for rank in ranks)
        recall[f"R@{cutoff}"] = hits / total
    return recall


def wilson(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927).

    `z` standard errors: 1.96 for 95%. (0, 1) without observations.
    """
    if not total:
        return 0.0, 1.0
    share = hits / total
    spread = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    middle = share + z * z / (2 * total)
    whole = 1 + z * z / total
    return (middle - spread) / whole, (middle + spread) / whole
