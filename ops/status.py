"""Status: one look at the whole installation, from counters only, so that it costs the same at any size."""

from collections.abc import Sequence
from typing import Any

from ops.jobs.timetable import job_alarms
from schemas.events import ACCEPTED, ARRIVED
from stream.log.event_log import EventLog
from stream.log.offsets import lag
from stream.log.outbox import outbox_size
from workers.generations.retiring import refused_by_gate
from workers.repository import generations
from workers.repository.alarms import open_alarms
from workers.repository.connection import Connection
from workers.repository.counters import Totals, image_totals, totals
from workers.repository.generations import Generation
from workers.repository.images import freshness

STALE_S = 5.0
"""Seconds from arrival to searchable (p95) above which status raises an alarm."""

WAITING = 1000
"""Images in line above which status raises an alarm."""


def status(conn: Connection, log: EventLog) -> dict[str, Any]:
    """The JSON document of `sigma status`."""
    live = generations.live(conn)
    found = totals(conn, live.id) if live else Totals()
    gone = image_totals(conn)
    waiting = {
        "intake": lag(log, conn, "intake", [ARRIVED]),
        "outbox": outbox_size(conn),
        "index": lag(log, conn, "index", [ACCEPTED]),
    }
    fresh = freshness(conn)
    return {
        "generation": live.id if live else None,
        "generations": [
            {"id": g.id, "state": g.state, "codebook": g.codebook_version}
            for g in generations.generations(conn)
        ],
        "images": {
            "indexed": found.images,
            "rejected": gone.rejected,
            "deleted": gone.deleted,
            "pending": sum(waiting.values()),
        },
        "lag": waiting,
        "trie": {
            "images": found.images,
            "leaves": found.leaves,
            "postings": found.postings,
            "checksum": found.checksum,
        },
        "spilled": found.spilled,
        "freshness_s": {"p50": _rounded(fresh.p50_s), "p95": _rounded(fresh.p95_s)},
        "alarms": [
            *alarms(live is not None, found, sum(waiting.values()), fresh.p95_s),
            *candidates(generations.generations(conn), live),
            *(f"{one}: see sigma report drift" for one in open_alarms(conn)),
            *job_alarms(conn),
        ],
    }


def alarms(live: bool, found: Totals, waiting: int, p95: float | None) -> list[str]:
    """What the person on call should look at, each with what to do."""
    raised = []
    if not live:
        raised.append("no generation is live: train one with sigma train --manifest F")
    if waiting > WAITING:
        raised.append(
            f"{waiting} images wait to be indexed: look at the logs of the intake and index workers, or start more"
        )
    if p95 is not None and p95 > STALE_S:
        raised.append(
            f"images need {p95:.1f} s (p95) to become searchable, {STALE_S:g} s are allowed: start more index workers"
        )
    if found.no_room:
        raised.append(
            f"{found.no_room} images found no leaf with room: train a generation with more suffixes or leaves"
        )
    return raised


def candidates(found: Sequence[Generation], live: Generation | None) -> list[str]:
    """Candidates that wait for a person. Each costs a second assignment of every arrival."""
    waiting = [one for one in found if one.state == "shadow" and one.config.gate is not None]
    return [
        f"generation {one.id} was refused by its gate, sigma generations list tells why; the next training replaces it, or: "
        f"sigma generations drop {one.id}"
        if refused_by_gate(one, live)
        else f"generation {one.id} passed its gate and waits: sigma generations promote {one.id}, or sigma generations drop {one.id}"
        for one in waiting
        if refused_by_gate(one, live) or (one.config.gate is not None and one.config.gate.passed)
    ]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
