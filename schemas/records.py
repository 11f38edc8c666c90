"""Frozen records that cross package borders. Times are timezone-aware, checked at construction."""

from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from schemas.errors import UsageError

FloatArray = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]


def require_aware(name: str, moment: datetime | None) -> None:
    """Refuse a naive time: two machines would read it differently."""
    if moment is not None and moment.tzinfo is None:
        raise UsageError(
            f"{name} is {moment.isoformat()} without a time zone; add an offset such as +00:00"
        )


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One image of a manifest: `path` is absolute, captions may be empty."""

    image_id: str
    path: str
    captions: tuple[str, ...] = ()
    test_captions: tuple[str, ...] = ()
    split: str | None = None
    arrived_at: datetime | None = None

    def __post_init__(self) -> None:
        require_aware("arrived_at", self.arrived_at)

    @property
    def queries(self) -> tuple[str, ...]:
        """Texts that evaluation asks for this image: `test_captions`, or `captions` when there are none."""
        return self.test_captions or self.captions


@dataclass(frozen=True, slots=True)
class Posting:
    """An image's place in the trie: a leaf and the log-probability relative to the primary (primary: 0)."""

    leaf: int
    weight: float


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the index worker found for one image: `postings[0]` is the primary, the others are alternates.

    `spill` lists further leaves, best first, to try when the primary leaf has no suffix left.
    `embedding` is (D,) float16 with unit length, `confidence` the primary's log-probability.
    """

    image_key: int
    postings: tuple[Posting, ...]
    embedding: HalfArray = field(compare=False)
    confidence: float = 0.0
    spill: tuple[int, ...] = ()
    trained: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer to a query."""

    rank: int
    image_id: str
    uri: str
    identifier: tuple[int, ...]
    score: float
    link: str
    """Where the normalised picture can be fetched, for a while."""
