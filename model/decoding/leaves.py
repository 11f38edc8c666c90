"""Leaves: where the model would put one image.

Imports no torch, so that workers with another model start fast.
"""

from dataclasses import dataclass

from schemas.records import Posting


@dataclass(frozen=True, slots=True)
class Leaves:
    """The leaves that an assignment found for one image, best first.

    `postings[0]` is the primary, the other postings are alternates. `spill` are further leaves, to
    try when the primary leaf has no suffix left. `confidence` is the primary's log-probability
    (nats, at most 0).
    """

    postings: tuple[Posting, ...]
    spill: tuple[int, ...]
    confidence: float
