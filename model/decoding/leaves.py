"""Leaves: what an assignment says about one image. Imports no torch, so that what works with another model starts fast."""

from dataclasses import dataclass

from schemas.records import Posting


@dataclass(frozen=True, slots=True)
class Leaves:
    """Where the model would put one image: `postings[0]` is the primary; `spill` are further leaves, best first."""

    postings: tuple[Posting, ...]
    spill: tuple[int, ...]
    confidence: float
