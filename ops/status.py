"""Status: one look at the whole installation.

It reads counters only, so it costs the same at any size once a generation is live.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ops.jobs.timetable import job_alarms
from schemas.events import ACCEPTED, ARRIVED, DELETED
from schemas.identifiers import IdentifierShape
from schemas.records import JsonObject
from stream.log.dead_letters import count_letters
from stream.log.event_log import EventLog
from stream.log.offsets import lag
from stream.log.outbox import outbox_size
from workers.generations.none_live import why_none_is_live
from workers.generations.retiring import refused_by_gate
from workers.repository import generations
from workers.repository.alarms import open_alarms
from workers.repository.connection import Connection
from workers.repository.counters import ImageTotals, Totals, image_totals, totals
from workers.repository.freshness import Freshness, freshness
from workers.repository.generations import Generation
from workers.repository.stored_images import accepted_images

# Seconds from arrival to searchable (p95) above which status raises an alarm.
MAX_FRESHNESS_S = 5.0

# Images waiting to be indexed above which status raises an alarm: 40 s of the demo's stream.
MAX_PENDING = 1000


@dataclass(frozen=True, slots=True)
class PendingImages:
    """Images that wait, by what they wait for."""

    intake: int
    """Arrivals and deletions that intake has not read."""
    outbox: int
    """Accepted images whose events are not published."""
    index: int
    """Accepted images that no index worker has assigned."""
    generation: int = 0
    """Accepted images that no generation takes, because none is live."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.intake + self.outbox + self.index + self.generation

    def to_json(self) -> dict[str, int]:
        """`lag` in the document of `sigma status`."""
        return {
            "intake": self.intake,
            "outbox": self.outbox,
            "index": self.index,
            "generation": self.generation,
        }


@dataclass(frozen=True, slots=True)
class InstallationStatus:
    """What there is, how much of it waits, and what is wrong."""

    live: Generation | None
    generations: Sequence[Generation]
    """All of them, the live one included."""
    indexed: Totals
    """Counters of the live generation."""
    unindexed: ImageTotals
    dead_letters: int
    """Events that could not be used: several may be of one image, or of none."""
    pending: PendingImages
    freshness: Freshness
    alarms: tuple[str, ...]
    """What the person on call should look at, each with what to do."""

    def to_json(self) -> JsonObject:
        """The document of `sigma status`."""
        indexed = self.indexed
        return {
            "generation": self.live.id if self.live else None,
            "generations": [_generation_json(generation) for generation in self.generations],
            "images": {
                "indexed": indexed.images,
                "rejected": self.unindexed.rejected,
                "deleted": self.unindexed.deleted,
                "pending": self.pending.total,
            },
            "dead_letters": self.dead_letters,
            "lag": self.pending.to_json(),
            "trie": {
                "images": indexed.images,
                "leaves": indexed.leaves,
                "postings": indexed.postings,
                "checksum": indexed.checksum,
            },
            "spilled": indexed.spilled,
            "room": None if self.live is None else room_json(self.live.shape, indexed),
            "freshness_s": {
                "p50": _milliseconds(self.freshness.p50_s),
                "p95": _milliseconds(self.freshness.p95_s),
            },
            "alarms": list(self.alarms),
        }


def read_status(
    conn: Connection, log: EventLog, own_alarms: Callable[[bool], Sequence[str]] = lambda _: ()
) -> InstallationStatus:
    """The status of the installation whose database and log these are.

    `own_alarms` tells what is wrong with the processes of this machine, given whether a generation
    is live.
    """
    live = generations.live(conn)
    every = generations.generations(conn)
    indexed = totals(conn, live.id) if live else Totals()
    # An image may be counted twice while it moves from one to the next: the log and the database
    # are not read at the same moment.
    pending = PendingImages(
        intake=lag(log, conn, "intake", [ARRIVED, DELETED]),
        outbox=outbox_size(conn),
        index=lag(log, conn, "index", [ACCEPTED]),
        # Without a generation the index worker reads the events and assigns nothing.
        generation=0 if live else accepted_images(conn),
    )
    fresh = freshness(conn)
    alarms = [] if live else [why_none_is_live(every)]
    alarms += index_alarms(live, indexed, pending.total, fresh.p95_s)
    alarms += candidate_alarms(every, live)
    for alarm in open_alarms(conn):
        alarms.append(f"{alarm}: see sigma report drift")
    alarms += job_alarms(conn)
    alarms += own_alarms(live is not None)
    return InstallationStatus(
        live,
        every,
        indexed,
        image_totals(conn),
        count_letters(log),
        pending,
        fresh,
        tuple(alarms),
    )


def index_alarms(
    live: Generation | None, indexed: Totals, pending: int, p95_s: float | None
) -> list[str]:
    """What is wrong with the live generation and with the way of images into it."""
    alarms = []
    if pending > MAX_PENDING:
        alarms.append(
            f"{pending} images wait to be indexed: look at the logs of the intake and index "
            "workers, or start more"
        )
    if p95_s is not None and p95_s > MAX_FRESHNESS_S:
        alarms.append(
            f"images need {p95_s:.1f} s (p95) to become searchable, {MAX_FRESHNESS_S:g} s are "
            "allowed: start more index workers"
        )
    if live is not None and indexed.beyond:
        alarms.append(
            f"{indexed.beyond} images found their leaves full, generation {live.id} is meant for "
            f"{live.shape.comfortable:,}: queries find them, the paper's mode does not; train one "
            f"with more room: sigma train --from-store --expect {2 * indexed.images}"
        )
    if indexed.no_room:
        alarms.append(
            f"{indexed.no_room} images were left out by an earlier version, because their leaves "
            "were full: train a generation, which takes them"
        )
    return alarms


def room_json(shape: IdentifierShape, indexed: Totals) -> JsonObject:
    """How full a generation is: the images it is meant for, and those beyond their leaf's room."""
    return {
        "comfortable": shape.comfortable,
        "share": round(indexed.images / max(shape.comfortable, 1), 3),
        "beyond": indexed.beyond,
    }


def candidate_alarms(every: Sequence[Generation], live: Generation | None) -> list[str]:
    """Candidates that wait for a person: each costs a second assignment of every arrival.

    A candidate without a verdict, or refused beside a generation that is not live any more, waits
    for its gate and not for a person.
    """
    alarms = []
    for candidate in every:
        verdict = candidate.config.gate
        if candidate.state != "shadow" or verdict is None:
            continue
        number = candidate.id
        if refused_by_gate(candidate, live):
            alarms.append(
                f"generation {number} was refused by its gate, sigma generations list tells why; "
                f"the next training replaces it, or: sigma generations drop {number}"
            )
        elif verdict.passed:
            alarms.append(
                f"generation {number} passed its gate and waits: sigma generations promote "
                f"{number}, or sigma generations drop {number}"
            )
    return alarms


def _generation_json(generation: Generation) -> dict[str, object]:
    return {
        "id": generation.id,
        "state": generation.state,
        "codebook": generation.codebook_version,
    }


def _milliseconds(seconds: float | None) -> float | None:
    """Seconds, rounded to milliseconds."""
    return None if seconds is None else round(seconds, 3)
