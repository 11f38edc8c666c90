"""The descriptions of images: what an answer says about each, from the database or from memory.

The database decides which images are still there. While it is away (it restarts, or somebody locks
a table), answers are described by what is remembered of earlier ones.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from schemas.errors import RetryLaterError
from schemas.identifiers import IdentifierShape
from stream.images.redaction import uri_for_answer
from workers.repository.connection import Connection
from workers.repository.postings import identifiers_of
from workers.repository.stored_images import StoredImage, images_by_key
from workers.runtime.process import TRANSIENT_ERRORS

# Captions of one image in an answer, as many as the usual data sets have.
MAX_CAPTIONS = 5

# Letters of one caption.
MAX_CAPTION_LETTERS = 300

# Longest that one batch waits for a database that is away and an image that is not remembered. A
# restart takes a second or two; a batch must end before the decode thread counts as stalled.
PATIENCE_S = 3.0

# Seconds for which the database is not asked again, if memory has all that is needed.
_AWAY_S = 1.0

# Seconds between two tries.
_RETRY_S = 0.1

# Images that are remembered: about a kilobyte each.
REMEMBERED = 50_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DescribedImages:
    """Images as they were at one moment, by image key. Those that do not exist are left out."""

    stored: Mapping[int, StoredImage]
    identifiers: Mapping[int, Sequence[int]]


@dataclass(frozen=True, slots=True)
class _Remembered:
    """What was last seen of one image key; None for what was not there."""

    stored: StoredImage | None
    identifier: Sequence[int] | None


class ImageMemory:
    """The images described last, the latest at the end. For one thread."""

    def __init__(self, capacity: int = REMEMBERED) -> None:
        self._capacity = capacity
        self._images: OrderedDict[int, _Remembered] = OrderedDict()

    def knows(self, keys: Iterable[int]) -> bool:
        """Whether all these images are remembered, if only as missing."""
        return all(key in self._images for key in keys)

    def remember(self, keys: Iterable[int], described: DescribedImages) -> None:
        """Take note of what was asked for and what was found."""
        for key in keys:
            self._images[key] = _Remembered(
                described.stored.get(key), described.identifiers.get(key)
            )
            self._images.move_to_end(key)
        while len(self._images) > self._capacity:
            self._images.popitem(last=False)

    def recall(self, keys: Iterable[int]) -> DescribedImages:
        """Describe those of these images that are remembered."""
        stored = {}
        identifiers = {}
        for key in keys:
            image = self._images.get(key)
            if image is not None and image.stored is not None:
                stored[key] = image.stored
            if image is not None and image.identifier is not None:
                identifiers[key] = image.identifier
        return DescribedImages(stored, identifiers)

    def forget(self, keys: Iterable[int]) -> None:
        """Drop what is remembered of images that were deleted."""
        for key in keys:
            self._images.pop(key, None)


class Descriptions:
    """Describes the images of one generation. For one thread. Closes its connection."""

    def __init__(
        self,
        conn: Connection,
        connect: Callable[[], Connection],
        generation: int,
        shape: IdentifierShape,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`connect` opens another connection in place of one that was lost."""
        self.memory = ImageMemory()
        self._conn = conn
        self._connect = connect
        self._generation = generation
        self._shape = shape
        self._clock = clock
        self._away_until_s = float("-inf")

    def read(self, keys: Collection[int], needed: Collection[int]) -> DescribedImages:
        """Describe images; of those `needed`, none is left out only because it is not remembered.

        `RetryLaterError` when the database is away, and memory lacks some of `needed`.
        """
        deadline_s = self._clock() + PATIENCE_S
        while True:
            if self._clock() < self._away_until_s and self.memory.knows(needed):
                return self.memory.recall(keys)
            try:
                return self._ask(keys)
            except TRANSIENT_ERRORS as error:
                self._note_absence(error)
                if self.memory.knows(needed):
                    return self.memory.recall(keys)
                if self._clock() > deadline_s:
                    raise RetryLaterError(
                        "the database does not answer, and not all images are in memory; try again"
                    ) from error
            time.sleep(_RETRY_S)

    def close(self) -> None:
        """Close the connection."""
        self._conn.close()

    def _ask(self, keys: Collection[int]) -> DescribedImages:
        if self._conn.closed:
            self._conn = self._connect()
        wanted = list(keys)
        stored = {}
        for key, image in images_by_key(self._conn, wanted).items():
            stored[key] = shown_image(image)
        identifiers = identifiers_of(self._conn, self._generation, self._shape, wanted)
        described = DescribedImages(stored, identifiers)
        self.memory.remember(wanted, described)
        return described

    def _note_absence(self, error: Exception) -> None:
        now_s = self._clock()
        # One line for each absence, not for each batch.
        if now_s > self._away_until_s + _AWAY_S:
            log.warning("database away, describing images from memory", reason=str(error))
        self._away_until_s = now_s + _AWAY_S


def shown_image(image: StoredImage) -> StoredImage:
    """Return an image as answers may show it: no secret in its address, and bounded captions."""
    captions = image.captions or image.test_captions
    return replace(
        image,
        uri=uri_for_answer(image.uri),
        captions=tuple(_shortened(caption) for caption in captions[:MAX_CAPTIONS]),
        test_captions=(),
    )


def _shortened(caption: str) -> str:
    if len(caption) <= MAX_CAPTION_LETTERS:
        return caption
    return caption[: MAX_CAPTION_LETTERS - 1] + "…"
