"""Chaos: workers are killed, or join and leave, while events flow. What is in the database afterwards must not show it."""

import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ops.bench.fleet import ROLES, Fleet, Gap, Publisher, chooser, fleet, pictures, settle, warm_up
from ops.cli.progress_bar import bar
from schemas.errors import WorkFailedError
from schemas.events import INDEXED
from stream.log.event_log import EventLog
from workers.repository.connection import Connection
from workers.repository.counters import recount, totals

_TICK_S, _LOOK_S, _WORKERS, _WARM = 1.0, 0.1, 2, 64


@dataclass(frozen=True, slots=True)
class ChaosConfig:
    """With `churn`, a worker leaves in peace or a new one joins at each strike; otherwise one is killed and started again."""

    events: int = 5000
    strikes: int = 100
    probability: float = 0.3
    churn: bool = False
    seed: int = 0
    kafka: str | None = None
    settle_s: float = 300.0


def chaos(config: ChaosConfig) -> dict[str, Any]:
    """Run it, and an undisturbed run of the same events; the document says what was lost or doubled."""
    chance = chooser(config.seed)
    seconds = config.strikes / config.probability * _TICK_S
    with fleet(config.kafka) as made:
        events = pictures(made.folder, config.events, config.seed)
        log = made.services.open_log()
        with made.services.connect("chaos") as conn, bar("strikes", config.strikes) as progress:
            for role in ROLES * _WORKERS:
                made.start(role)
            warm_up(made, log, conn, events[:_WARM])
            publisher = Publisher(log, events[_WARM:], seconds)
            publisher.start()
            began, gap, struck = time.monotonic(), Gap(), Counter[str]()
            while struck.total() < config.strikes:
                _watch(made, log, conn, gap, _TICK_S)
                if chance.random() < config.probability:
                    struck[_strike(made, config, chance.random())] += 1
                    progress.update(1)
            publisher.join(seconds + 60)
            done = settle(made, log, conn, config.events, config.settle_s)
            found = _findings(made, log, conn, config)
        log.close()
    document = {
        "events": config.events,
        "strikes": dict(struck),
        "seconds": round(time.monotonic() - began, 1),
        "longest_gap_s": round(gap.longest_s, 2),
        "settled": done,
        **found,
        "undisturbed_checksum": undisturbed(config),
    }
    if (
        found["lost"]
        or found["doubled"]
        or document["checksum"] != document["undisturbed_checksum"]
    ):
        raise WorkFailedError(f"the disturbed run differs from the undisturbed one: {document}")
    return document


def undisturbed(config: ChaosConfig) -> str:
    """The trie's checksum of the same events with nothing in the way, through the log in Postgres."""
    with fleet(None) as made:
        events = pictures(made.folder, config.events, config.seed)
        log = made.services.open_log()
        with made.services.connect("chaos") as conn:
            for role in ROLES:
                made.start(role)
            Publisher(log, events, 0).run()
            settle(made, log, conn, config.events, config.settle_s)
            checksum = totals(conn, made.generation).checksum
        log.close()
    return checksum


def _watch(made: Fleet, log: EventLog, conn: Connection, gap: Gap, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        gap.look(totals(conn, made.generation).images, made.left(log, conn) > 0)
        time.sleep(_LOOK_S)


def _strike(made: Fleet, config: ChaosConfig, chance: float) -> str:
    """Hit one worker; returns what was done to it."""
    members = sorted(made.members, key=lambda member: (member.role, member.process.pid))
    member = members[int(chance * len(members))]
    if not config.churn:
        made.end(member, signal.SIGKILL)
        made.start(member.role)
        return f"{member.role} killed"
    if sum(other.role == member.role for other in members) > 1:
        made.end(member, signal.SIGTERM)
        return f"{member.role} left"
    made.start(member.role)
    return f"{member.role} joined"


def _findings(made: Fleet, log: EventLog, conn: Connection, config: ChaosConfig) -> dict[str, Any]:
    """Counted from the rows, not from the counters, which must agree with them."""
    counters, truth = totals(conn, made.generation), recount(conn, made.generation)
    rows = conn.execute(
        "SELECT image_key, count(*) FROM posting WHERE suffix IS NOT NULL GROUP BY image_key"
    ).fetchall()
    places = conn.execute(
        "SELECT count(DISTINCT (leaf, suffix)) FROM posting WHERE suffix IS NOT NULL"
    ).fetchone()
    told = Counter(
        event.headers["ce_id"]
        for place, end in log.end_offsets([INDEXED]).items()
        for event in log.read(*place, limit=end)
    )
    return {
        "indexed": len(rows),
        "lost": config.events - len(rows),
        "doubled": sum(count > 1 for _, count in rows)
        + len(rows)
        - (int(places[0]) if places else 0),
        "counters_agree": (counters.images, counters.checksum) == (truth.images, truth.checksum),
        "indexed_events": len(told),
        "indexed_events_sent_again": told.total() - len(told),
        "checksum": truth.checksum,
    }
