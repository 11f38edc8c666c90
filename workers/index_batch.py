"""An index batch: which of its events need work, what the models say, and the messages it leads to.

Functions of values, without database or log; `workers.index` calls them in order. Imports no torch.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import TypeVar

from schemas.errors import RejectInputError
from schemas.events import ImageAccepted, ImageIndexed, ImageRejected, OperationsEvent
from schemas.identifiers import IdentifierShape
from schemas.metadata import canonical
from schemas.records import ByteArray
from stream.log.dead_letters import dead_letter, rejection_of_event, rejection_of_image
from stream.log.event_log import Event, Message, message, record_of
from workers.generations.image_assigner import ImageAssigner
from workers.generations.inferred import Inferred
from workers.repository.generations import Generation
from workers.repository.postings import AppendOutcome, AppendStatus
from workers.repository.stored_images import StoredImage, has_content

# The stage that dead letters name.
STAGE = "index"

# Pictures of one forward pass: more would not be faster on a CPU, and hold more memory.
SLICE = 16

# Digits of a checksum that a message shows.
_SHOWN_DIGITS = 12

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AcceptedEvent:
    """An event that announces an image to index."""

    event: Event
    image: ImageAccepted


@dataclass(frozen=True, slots=True)
class RefusedEvent:
    """An event that cannot be indexed, and why."""

    event: Event
    rejection: ImageRejected
    published_at: datetime | None = None
    """When the image was published; None where the event does not tell which image it is about."""


@dataclass(frozen=True, slots=True)
class IndexItem:
    """One image to index, with its pixels."""

    event: Event
    image: ImageAccepted
    picture: ByteArray
    """(H, W, 3) uint8"""


@dataclass(slots=True)
class BatchInference:
    """What one generation's model says about a batch so far. Grows by slices."""

    assigner: ImageAssigner
    inferred: list[Inferred] = field(default_factory=list)
    seconds: float = 0.0
    """Time inside the model."""

    def add(self, items: Sequence[IndexItem]) -> None:
        """Infer further images, a slice at a time."""
        started_s = time.perf_counter()
        for part in slices(items, SLICE):
            self.inferred += self.assigner.infer([item.picture for item in part])
        # Wall time: other threads of the process read pictures meanwhile.
        self.seconds += time.perf_counter() - started_s


def slices(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Split items into lists of `size`, the last one shorter. Takes from `items` only as needed."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


def read_events(events: Iterable[Event]) -> tuple[list[AcceptedEvent], list[RefusedEvent]]:
    """Parse events: the images to index, and the events that cannot be parsed, in their order."""
    accepted: list[AcceptedEvent] = []
    refused: list[RefusedEvent] = []
    for event in events:
        try:
            record = record_of(event)
        except RejectInputError as error:
            refused.append(RefusedEvent(event, rejection_of_event(event, error, stage=STAGE)))
            continue
        if isinstance(record, ImageAccepted):
            accepted.append(AcceptedEvent(event, record))
    return accepted, refused


def without_repeats(accepted: Iterable[AcceptedEvent]) -> list[AcceptedEvent]:
    """Keep one event of the same content of a version, in the order in which each came first.

    A relay that died between publishing and committing publishes an event again, often into the
    same batch. Of the repeats the last one stays, with the time at which the first was published.
    """
    unique: dict[tuple[str, int, str, str], AcceptedEvent] = {}
    for candidate in accepted:
        image = candidate.image
        content = image.checksum, canonical(image.metadata)
        version = image.image_id, image.version, *content
        known = unique.get(version)
        if known is not None:
            first = min(published(known), published(candidate), key=_published_at)
            image = replace(image, published_at=first.published_at)
        unique[version] = AcceptedEvent(candidate.event, image)
    return list(unique.values())


def _published_at(image: ImageAccepted) -> datetime:
    return image.published_at or image.arrived_at


def published(item: AcceptedEvent | IndexItem) -> ImageAccepted:
    """The image with the time at which it was published, which deletions are compared with.

    Where its arrival's time is unknown, this event's own comes closest.
    """
    image = item.image
    return replace(image, published_at=image.published_at or item.event.published_at)


def unfinished(
    accepted: Iterable[AcceptedEvent],
    stored: Mapping[str, StoredImage],
    posted_keys: Collection[int],
) -> list[AcceptedEvent]:
    """Drop the events whose image needs nothing more, before any model runs.

    `stored` are the images in the database, by id; `posted_keys` are the keys of those that every
    loaded generation holds.
    """
    kept = []
    for candidate in accepted:
        image = stored.get(candidate.image.image_id)
        # An image without a row is new; its row is made when the batch commits.
        if (
            image is None
            or not is_finished(candidate.image.version, image, posted_keys)
            or is_news(published(candidate), image)
        ):
            kept.append(candidate)
    return kept


def is_finished(version: int, stored: StoredImage, posted_keys: Collection[int]) -> bool:
    """Tell whether version `version` of a stored image needs nothing more.

    It does not when it was replaced by a newer one, was deleted, or is posted everywhere.
    """
    if stored.version != version:
        return stored.version > version
    return stored.state == "deleted" or stored.image_key in posted_keys


def is_news(image: ImageAccepted, stored: StoredImage) -> bool:
    """Tell whether a version says something of itself that is not stored.

    Other bytes or metadata are a conflict. An earlier publication is to be noted, for a deletion
    may lie between the two.
    """
    if stored.version != image.version or stored.state == "deleted":
        return False
    if stored.checksum and not has_content(stored, image.checksum, image.metadata):
        return True
    if image.published_at is None or stored.published_at is None:
        return False
    return image.published_at < stored.published_at


def conflict(item: IndexItem, stored_checksum: str) -> RefusedEvent:
    """Refuse an image whose version is stored with other bytes, or with other metadata."""
    image = item.image
    other = "other metadata"
    if image.checksum != stored_checksum:
        stored, got = stored_checksum[:_SHOWN_DIGITS], image.checksum[:_SHOWN_DIGITS]
        other = f"other bytes (SHA-256 {stored}…, got {got}…)"
    error = RejectInputError(
        "version-conflict",
        f"version {image.version} of image {image.image_id} is stored with {other}; "
        "publish a changed image with a higher version, and another image with another id",
    )
    return RefusedEvent(item.event, rejection_of_image(image, error, stage=STAGE))


def unloaded_live(
    receiving: Iterable[Generation], inferred_in: Collection[int]
) -> Generation | None:
    """Return the live generation if no model of it looked at the batch, else None."""
    for generation in receiving:
        if generation.state == "live" and generation.id not in inferred_in:
            return generation
    return None


def append_targets(
    receiving: Iterable[Generation], inferred_in: Collection[int]
) -> list[Generation]:
    """Select the receiving generations whose model looked at the batch.

    One that is neither loaded nor live catches up before it can go live (`workers.generations`).
    """
    return [generation for generation in receiving if generation.id in inferred_in]


def refusal_messages(refused: Iterable[RefusedEvent]) -> list[Message]:
    """Build the dead letters."""
    return [dead_letter(refusal.event, refusal.rejection) for refusal in refused]


def outcome_messages(
    items: Sequence[IndexItem],
    inferred: Sequence[Inferred],
    outcomes: Sequence[AppendOutcome],
    generation: int,
    shape: IdentifierShape,
) -> list[Message]:
    """Build the events of one generation's outcomes, which are in the order of the items.

    An image that was appended gives `ImageIndexed`, one beyond the shape an operations event too,
    and one that was there already or is gone gives none.
    """
    messages: list[Message] = []
    for item, inference, outcome in zip(items, inferred, outcomes, strict=True):
        image_id = item.image.image_id
        if outcome.status is AppendStatus.BEYOND:
            note = OperationsEvent(
                "no-room",
                f"image {image_id} found its leaves full in generation {generation}: queries find "
                "it, the paper's mode does not",
            )
            messages.append(message(note, image_id, cause=item.event))
        # Only an image that this batch appended has them, so a replay announces nothing.
        if outcome.leaf is not None and outcome.suffix is not None:
            indexed = ImageIndexed(
                image_id=image_id,
                version=item.image.version,
                generation=generation,
                identifier=tuple(shape.identifier(outcome.leaf, outcome.suffix)),
                leaves=tuple(posting.leaf for posting in outcome.postings),
                confidence=inference.leaves.confidence,
                arrived_at=item.image.arrived_at,
            )
            messages.append(message(indexed, image_id, cause=item.event))
    return messages


def age_s(image: ImageAccepted, moment: datetime) -> float:
    """Seconds from an image's publication (or arrival, if that is unknown) to `moment`, at least 0.

    The clocks of producer and worker may differ.
    """
    began = image.published_at or image.arrived_at
    return max(0.0, (moment - began).total_seconds())
