"""The account of a fuzz run: what became of each event, from the rows and the log alone.

It reads payloads with Python's own JSON parser and not with ours, which is under test.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from schemas.events import ACCEPTED, ARRIVED, DELETED, trace_of
from stream.log.dead_letters import DeadLetter, dead_letters
from stream.log.event_log import Event, EventLog
from workers.repository.connection import Connection
from workers.repository.counters import recount, totals

# The topics whose events a run publishes itself.
PUBLISHED = (ARRIVED, DELETED, ACCEPTED)

# Unaccounted events that a result names.
_NAMED = 10

# Topic, partition and offset.
Place = tuple[str, int, int]

# Whole tables: the database of a run has one live generation.
_IMAGES = "SELECT image_id, image_key, version, state::text, image_checksum(image) FROM image"
_PRIMARIES = "SELECT image_key FROM posting WHERE generation = %s AND suffix IS NOT NULL"
_DELETIONS = "SELECT image_id, version, published_at FROM deletion"


@dataclass(frozen=True, slots=True)
class _Row:
    """An image as the database has it."""

    version: int
    searchable: bool


@dataclass(frozen=True, slots=True)
class _Index:
    """What the database says in the end."""

    images: Mapping[str, _Row]
    deletions: Mapping[str, tuple[int, datetime | None]]
    """The version up to which an image is deleted, and the time."""


@dataclass(frozen=True, slots=True)
class EventAccount:
    """What became of all events. The counts add up to the number of events."""

    outcomes: Mapping[str, int]
    refusals: Mapping[str, int]
    """Dead letters by code."""
    unaccounted: tuple[str, ...] = ()
    """Events that are neither indexed nor replaced, deleted or dead-lettered; at most ten."""
    decoders_died: int = 0
    """Pictures of which a decoding process died: it is replaced, and the picture refused."""
    doubled: int = 0
    """Primary postings beyond one an image."""
    spilled: int = 0
    """Images outside of their best leaf: with them the order of arrival shows in the checksum."""
    counters_agree: bool = True
    """Whether the counters equal what a scan of the rows counts."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The index in the end, in a few letters."""

    checksum: str
    """Of the trie, from the rows."""
    content: str
    """SHA-256 over id, version and bytes of every searchable image."""


@dataclass(slots=True)
class _Ledger:
    """What the log says of each published event."""

    letters: Counter[Place] = field(default_factory=Counter)
    derived: dict[str, list[Place]] = field(default_factory=dict)
    """Places of accepted events by the trace that they continue."""


def published_events(log: EventLog) -> list[Event]:
    """Read every event of the topics that a run publishes to."""
    events: list[Event] = []
    for topic in PUBLISHED:
        events += _all_events(log, topic)
    return events


def account(
    log: EventLog, conn: Connection, generation: int, published: Sequence[Event]
) -> EventAccount:
    """Find out what became of each published event."""
    letters = dead_letters(log, limit=10 * len(published))
    ledger = _ledger(log, published, letters)
    index = _index(conn, generation)
    outcomes: Counter[str] = Counter()
    unaccounted = []
    for event in published:
        outcome = _outcome(event, ledger, index)
        outcomes[outcome] += 1
        if outcome == "unaccounted":
            unaccounted.append(
                f"{event.topic}/{event.partition}:{event.offset} {event.value[:80]!r}"
            )
    counters, scanned = totals(conn, generation), recount(conn, generation)
    primaries = [key for (key,) in conn.execute(_PRIMARIES, (generation,))]
    return EventAccount(
        outcomes=dict(sorted(outcomes.items())),
        refusals=dict(sorted(Counter(letter.code for letter in letters).items())),
        unaccounted=tuple(unaccounted[:_NAMED]),
        decoders_died=sum("process died" in letter.reason for letter in letters),
        doubled=len(primaries) - len(set(primaries)),
        spilled=counters.spilled + counters.beyond,
        counters_agree=(counters.images, counters.postings, counters.checksum)
        == (scanned.images, scanned.postings, scanned.checksum),
    )


def fingerprint(conn: Connection, generation: int) -> Fingerprint:
    """Condense what is searchable."""
    primaries = {key for (key,) in conn.execute(_PRIMARIES, (generation,))}
    content = hashlib.sha256()
    for image_id, key, version, _, checksum in sorted(conn.execute(_IMAGES).fetchall()):
        if key in primaries:
            content.update(f"{image_id}\0{version}\0{checksum}\n".encode())
    return Fingerprint(recount(conn, generation).checksum, content.hexdigest()[:16])


def _all_events(log: EventLog, topic: str) -> list[Event]:
    events: list[Event] = []
    for (name, partition), end in log.end_offsets([topic]).items():
        events += log.read(name, partition, limit=max(1, end))
    return events


def _ledger(log: EventLog, published: Sequence[Event], letters: Sequence[DeadLetter]) -> _Ledger:
    ledger = _Ledger()
    for letter in letters:
        if letter.origin_topic is not None:
            assert letter.origin_partition is not None
            assert letter.origin_offset is not None
            place = (letter.origin_topic, letter.origin_partition, letter.origin_offset)
            ledger.letters[place] += 1
    own = {_place(event) for event in published}
    for event in _all_events(log, ACCEPTED):
        if _place(event) not in own:
            ledger.derived.setdefault(trace_of(event.headers), []).append(_place(event))
    return ledger


def _index(conn: Connection, generation: int) -> _Index:
    primaries = {key for (key,) in conn.execute(_PRIMARIES, (generation,))}
    images = {}
    for image_id, key, version, state, _ in conn.execute(_IMAGES):
        images[image_id] = _Row(version, state == "indexed" and key in primaries)
    deletions = {}
    for image_id, version, published_at in conn.execute(_DELETIONS):
        deletions[image_id] = (version, published_at)
    return _Index(images, deletions)


def _outcome(event: Event, ledger: _Ledger, index: _Index) -> str:
    """What became of one event."""
    letters = ledger.letters[_place(event)]
    if event.topic == ARRIVED:
        for place in ledger.derived.get(trace_of(event.headers), ()):
            letters += ledger.letters[place]
    if letters:
        return "dead-lettered" if letters == 1 else "unaccounted"
    named = _named_version(event)
    if named is None:
        return "unaccounted"
    image_id, version = named
    deleted, deleted_at = index.deletions.get(image_id, (0, None))
    if event.topic == DELETED:
        if version is not None:
            return "deleted" if deleted >= version else "unaccounted"
        done = deleted_at is not None and deleted_at >= event.published_at
        return "deleted" if done else "unaccounted"
    version = 1 if version is None else version
    row = index.images.get(image_id)
    if deleted >= version and (row is None or row.version > version or not row.searchable):
        return "deleted"
    if row is not None and row.version > version:
        return "replaced"
    if row is not None and row.version == version and row.searchable:
        return "indexed"
    return "unaccounted"


def _named_version(event: Event) -> tuple[str, int | None] | None:
    """The id and version in a payload; None when it has none that could be meant."""
    try:
        document = json.loads(event.value.decode("utf-8"), parse_constant=lambda _: None)
        image_id = document["image_id"]
        version = document.get("version")
        if not isinstance(image_id, str):
            return None
        return image_id, None if version is None else int(version)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        return None


def _place(event: Event) -> Place:
    return event.topic, event.partition, event.offset
