"""Frozen records that cross package borders. Times are timezone-aware, checked at construction."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import RejectInputError, UsageError
from schemas.metadata import Metadata

# A JSON document where it enters or leaves the project; inside, values are frozen records.
JsonObject = dict[str, Any]

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
HalfArray = npt.NDArray[np.float16]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]

# Arrays of any types by name: all that a part of an index holds.
NamedArrays = dict[str, npt.NDArray[Any]]


# Times that every session of PostgreSQL can store and give back: a day inside the years 1 to 9999,
# so that no time zone (at most 16 hours in PostgreSQL) moves them beyond what Python can hold.
EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
LATEST = datetime(9999, 12, 30, tzinfo=UTC)


def storable_time(moment: datetime) -> datetime:
    """Return a time in UTC, moved into the range that can be stored; a naive one as it is.

    PostgreSQL takes offsets below 16 hours only, Python up to 24. Go's zero time, which its
    programs send for a time that was never set, lies at the edge of what either can hold.
    """
    if moment.tzinfo is None:
        return moment
    try:
        return min(max(moment.astimezone(UTC), EARLIEST), LATEST)
    except OverflowError:
        return EARLIEST if moment.year == EARLIEST.year else LATEST


def require_aware(name: str, moment: datetime | None) -> None:
    """Refuse a naive time: two machines would read it differently."""
    if moment is not None and moment.tzinfo is None:
        raise UsageError(
            f"{name} must have a time zone, got {moment.isoformat()}; add an offset such as +00:00"
        )


def require_finite(name: str, values: npt.ArrayLike) -> None:
    """Refuse numbers of a model that are not finite: nothing can be ranked or found by them.

    `RejectInputError`, because a model that works otherwise may fail on one input.
    """
    if not np.isfinite(values).all():
        raise RejectInputError(
            "not-finite",
            f"{name} must be finite, the model gave NaN or infinity; check the picture and the "
            "generation's checkpoint",
        )


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One image of a manifest."""

    image_id: str
    path: str
    """Absolute path of the image file."""
    captions: tuple[str, ...] = ()
    test_captions: tuple[str, ...] = ()
    """Captions that evaluation asks for and training never sees."""
    split: str | None = None
    arrived_at: datetime | None = None
    # A dictionary has no hash.
    metadata: Metadata = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        require_aware("arrived_at", self.arrived_at)

    @property
    def queries(self) -> tuple[str, ...]:
        """Texts that evaluation asks for: `test_captions`, or `captions` when there are none."""
        return self.test_captions or self.captions


@dataclass(frozen=True, slots=True)
class Posting:
    """An image's place in the trie."""

    leaf: int
    weight: float
    """Log-probability relative to the primary posting, whose weight is 0."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The places that the index worker computed for one image."""

    image_key: int
    postings: tuple[Posting, ...]
    """The primary posting first, then the alternates."""
    # Comparing arrays gives an array, which has no truth value.
    embedding: HalfArray = field(compare=False)
    """(D,) float16 of unit length."""
    confidence: float = 0.0
    """Log-probability of the primary posting."""
    spill: tuple[int, ...] = ()
    """More leaves, best first, to try when the primary leaf has no free suffix."""
    trained: bool = False
    """Whether the generation's model was trained on this image."""

    def __post_init__(self) -> None:
        require_finite("the embedding of an image", self.embedding)
        require_finite("the confidence of an image", self.confidence)
        require_finite(
            "the weights of an image's postings", [posting.weight for posting in self.postings]
        )


@dataclass(frozen=True, slots=True)
class Hit:
    """One image in the answer to a query."""

    rank: int
    image_id: str
    uri: str
    identifier: tuple[int, ...]
    score: float
    link: str
    """Address from which the normalised picture can be fetched for a limited time."""
    metadata: Metadata = field(default_factory=dict, hash=False)
