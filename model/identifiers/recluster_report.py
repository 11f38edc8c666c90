"""What a re-clustering moved and gained, beside a fit of its own to the same data."""

from dataclasses import asdict, dataclass

import numpy as np

from model.identifiers.codebook import Codebook, checked
from model.identifiers.quality import gini, leaf_loads, quantisation_error
from schemas.records import FloatArray, IntArray

# Share of the old error that a fresh fit must gain before a share of that gain means anything.
_MIN_GAIN = 0.01


@dataclass(frozen=True, slots=True)
class ReclusterReport:
    """Moves, errors and leaf loads before and after.

    Errors are squared, relative to the variance of the embeddings. Leaf loads are those of occupied
    leaves.
    """

    images: int
    moved: int
    kept: tuple[float, float, float, float]
    """Share of images whose id1, id2, id3, id4 is what it was, each level for itself."""
    kept_whole: float
    """Share of images whose four codes are all what they were."""
    error_old: float
    """Of the old codebook with its own best codes."""
    error_new: float
    """Of the new codebook with the codes that images really get."""
    error_fresh: float | None
    """Of a fresh fit with its best codes."""
    gain_share: float | None
    """How much of the fresh fit's gain over the old codebook the new one has; see `gain_share`."""
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
    """Compare (N, 4) codes before and after of the same (N, D) embeddings.

    `fresh` is a fit of its own to them, the yardstick.
    """
    rows = checked(embeddings, old.width)
    same = old_codes == new_codes
    whole = same.all(axis=1)
    error_old = quantisation_error(old, old.encode(rows), rows)
    error_new = quantisation_error(new, new_codes, rows)
    error_fresh = None
    if fresh is not None:
        error_fresh = quantisation_error(fresh, fresh.encode(rows), rows)
    first, second, third, fourth = same.mean(axis=0).tolist()
    loads_old = leaf_loads(old_codes, old)
    loads_new = leaf_loads(new_codes, new)
    return ReclusterReport(
        images=len(rows),
        moved=int((~whole).sum()),
        kept=(first, second, third, fourth),
        kept_whole=float(whole.mean()),
        error_old=error_old,
        error_new=error_new,
        error_fresh=error_fresh,
        gain_share=gain_share(error_old, error_new, error_fresh),
        leaves_old=len(loads_old),
        leaves_new=len(loads_new),
        leaf_gini_old=gini(loads_old),
        leaf_gini_new=gini(loads_new),
        leaf_p99_old=float(np.percentile(loads_old, 99)),
        leaf_p99_new=float(np.percentile(loads_new, 99)),
    )


def gain_share(before: float, after: float, fresh: float | None) -> float | None:
    """(before − after) / (before − fresh): the share of a fresh fit's gain.

    None without a fresh fit, or when it gains less than a hundredth of `before`: then there is
    nothing to share, and `after` beside `fresh` says all.
    """
    if fresh is None or before - fresh < _MIN_GAIN * before:
        return None
    return (before - after) / (before - fresh)
