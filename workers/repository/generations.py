"""Generations: one (codebook, model, trie) triple each, exactly one of them live.

States: building → shadow → live → retired, and failed from each of them. A retired generation can
become live again. The database refuses every other step.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from psycopg import errors
from psycopg.types.json import Jsonb

from schemas.errors import UsageError
from schemas.generation_config import GateVerdict, GenerationConfig, config_changes
from schemas.identifiers import IdentifierShape
from schemas.training_record import TrainingRecord
from workers.repository.connection import (
    Connection,
    execute,
    fetch_row,
    fetch_rows,
    transaction,
)

# Notified when a generation's state changes; the name is also in generations.sql.
CHANNEL = "sigma_generation"

_RECEIVING_STATES = ("shadow", "live")
_DROPPABLE_STATES = ("shadow", "failed", "retired")


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation as the database stores it."""

    id: int
    state: str
    """building, shadow, live, retired or failed"""
    codebook_version: str | None
    checkpoint_path: str | None
    shape: IdentifierShape
    config: GenerationConfig
    created_at: datetime
    live_at: datetime | None
    """When it became live last."""
    ended_at: datetime | None
    """When it was retired or failed."""

    @property
    def folder(self) -> str:
        """Name of its checkpoint's folder, in the folder of all checkpoints."""
        return self.checkpoint_path or f"g{self.id}"

    @property
    def dropped(self) -> bool:
        """Whether its tables are dropped; its state is failed then."""
        return self.config.dropped_at is not None

    @property
    def display_state(self) -> str:
        """The state to show to a person: `dropped` for one that was dropped without a failure."""
        if self.dropped and self.config.failure is None:
            return "dropped"
        return self.state


def create_generation(
    conn: Connection,
    shape: IdentifierShape,
    *,
    codebook_version: str | None = None,
    checkpoint_path: str | None = None,
    config: GenerationConfig | None = None,
) -> int:
    """Create a generation in state building, with its own tables; return its number."""
    with transaction(conn):
        row = fetch_row(
            conn,
            "insert_generation",
            codebook_version=codebook_version,
            checkpoint_path=checkpoint_path,
            shape=Jsonb({"codes": list(shape.codes), "suffixes": shape.suffixes}),
            config=Jsonb({} if config is None else config.to_json()),
        )
        generation = int(row[0]) if row else 0
        fetch_rows(conn, "open_partitions", generation=generation)
    return generation


def update(
    conn: Connection,
    generation: int,
    *,
    codebook_version: str | None = None,
    checkpoint_path: str | None = None,
    training: TrainingRecord | None = None,
    gate: GateVerdict | None = None,
    failure: Sequence[str] | None = None,
    dropped_at: datetime | None = None,
) -> None:
    """Record what is given: columns, and parts of the configuration; the rest stays as it is."""
    changes = config_changes(training=training, gate=gate, failure=failure, dropped_at=dropped_at)
    updated = execute(
        conn,
        "update_generation",
        generation=generation,
        codebook_version=codebook_version,
        checkpoint_path=checkpoint_path,
        config=Jsonb(changes),
    )
    if not updated:
        raise _unknown(conn, generation)


def generations(conn: Connection) -> list[Generation]:
    """Return all generations, oldest first."""
    return [_generation(row) for row in fetch_rows(conn, "generations")]


def get(conn: Connection, number: int) -> Generation:
    """Return one generation; `UsageError` when there is none of that number."""
    for generation in generations(conn):
        if generation.id == number:
            return generation
    raise _unknown(conn, number)


def learnt_captions(conn: Connection, generation: Generation) -> bool:
    """Whether it, or a generation that it began with, learnt what identifiers mean in words."""
    record = generation.config.training
    while record.stages and "comprehend" not in record.stages:
        if record.parent is None:
            return False
        record = get(conn, record.parent).config.training
    return True


def largest_encoder(conn: Connection) -> int:
    """Pixels of a side that the generations' pretrained encoders read at most; 0 without any."""
    ((side,),) = fetch_rows(conn, "largest_encoder")
    return int(side)


def unfinished(conn: Connection) -> Generation | None:
    """Return the newest generation whose training did not finish."""
    building = [generation for generation in generations(conn) if generation.state == "building"]
    return building[-1] if building else None


def live(conn: Connection) -> Generation | None:
    """Return the generation that answers queries; None before the first promotion."""
    for generation in generations(conn):
        if generation.state == "live":
            return generation
    return None


def receiving(conn: Connection) -> list[Generation]:
    """Return the generations that every new arrival is appended to, ascending.

    These are shadow and live ones, and the fallback generation, so that a rollback loses nothing.
    """
    known = generations(conn)
    # It goes on receiving, so that a rollback finds it complete.
    fallback = find_fallback(known)
    return [
        generation
        for generation in known
        if generation.state in _RECEIVING_STATES or generation is fallback
    ]


def find_fallback(known: Sequence[Generation]) -> Generation | None:
    """Return the fallback generation: the newest retired one, which a rollback makes live."""
    retired = [
        generation
        for generation in known
        if generation.state == "retired" and generation.ended_at is not None
    ]
    return max(retired, key=_end_or_creation, default=None)


def require_fallback(conn: Connection) -> Generation:
    """Return the fallback generation; `UsageError` when there is none."""
    fallback = find_fallback(generations(conn))
    if fallback is None:
        raise UsageError(
            "no generation was live before this one, so there is no fallback generation; "
            "list them with: sigma generations list"
        )
    return fallback


def live_number(conn: Connection) -> int | None:
    """Return the live generation's number, in one small query."""
    row = fetch_row(conn, "live_generation")
    return None if row is None else int(row[0])


def lock_set(conn: Connection) -> None:
    """Lock the set of generations and their states exclusively, until the transaction ends.

    First in the lock order. Waits for all transactions that called `share_set`.
    """
    fetch_rows(conn, "lock_generations")


def share_set(conn: Connection) -> None:
    """Keep the set of generations and their states from changing, until the transaction ends.

    First in the lock order. Several transactions may share the set.
    """
    fetch_rows(conn, "share_generations")


def set_state(conn: Connection, generation: int, state: str) -> None:
    """Take one step of the state machine; `UsageError` when it is not allowed.

    Waits for the transactions that accept images: those that begin after it see the new state.
    """
    try:
        with transaction(conn):
            lock_set(conn)
            if not execute(conn, "set_generation_state", generation=generation, state=state):
                raise _unknown(conn, generation)
            fetch_rows(conn, "notify_generation", generation=generation)
    except (
        # The trigger refused the step.
        errors.CheckViolation,
        # Another generation is live.
        errors.UniqueViolation,
        # There is no such state.
        errors.InvalidTextRepresentation,
    ) as error:
        allowed = error.diag.message_hint or "one live generation"
        raise UsageError(f"{error.diag.message_primary}; allowed are: {allowed}") from error


def promote(conn: Connection, generation: int) -> int | None:
    """Make a shadow or retired generation live and retire the live one, in one transaction.

    Returns the number of the one retired, None if there was none. Whether the promoted generation
    has every image is not checked here but in `workers.generations.switching`.
    """
    with transaction(conn):
        lock_set(conn)
        previous = live(conn)
        if previous is not None and previous.id == generation:
            return None
        # Retired first: the database refuses two live generations even inside a transaction.
        if previous is not None:
            set_state(conn, previous.id, "retired")
        set_state(conn, generation, "live")
    return None if previous is None else previous.id


@dataclass(frozen=True, slots=True)
class Watermark:
    """Where to look for images that a generation lacks."""

    complete_to: int = 0
    """It has every image with a key up to this one, but for the unplaced ones."""
    unplaced: tuple[int, ...] = ()
    """Keys up to there of images that could not be assigned."""


def watermark(conn: Connection, generation: int) -> Watermark:
    """Return where to look for what a generation lacks: nobody has to read all images.

    Queries get it as values, not by a join: the planner has to know how few images are above it.
    """
    row = fetch_row(conn, "watermark", generation=generation)
    return Watermark() if row is None else Watermark(row[0], tuple(row[1]))


def count_lacking(conn: Connection, candidate: int, live: int, ceiling: int) -> int:
    """Count the images up to a key that the live generation has and a candidate lacks."""
    known = watermark(conn, candidate)
    row = fetch_row(
        conn,
        "count_lacking_images",
        candidate=candidate,
        live=live,
        ceiling=ceiling,
        above=known.complete_to,
        unplaced=list(known.unplaced),
    )
    return int(row[0]) if row else 0


def set_complete(
    conn: Connection, generation: int, complete_to: int, unplaced: Collection[int]
) -> None:
    """Record that a generation has every image up to a key, but for `unplaced` ones.

    No image with a key up to it may be still to be committed: see `newest_image`.
    """
    execute(
        conn,
        "set_complete",
        generation=generation,
        complete_to=complete_to,
        unplaced=sorted(unplaced),
    )


def drop(conn: Connection, generation: int) -> None:
    """Drop the tables of a candidate, a failed or a retired generation, in one transaction.

    Its row stays as history, in state failed for good. `RetryLaterError` when a reader blocks the
    tables for longer than arrivals, which queue behind the drop, may be delayed.
    """
    with transaction(conn):
        # Before the first lock, so that it bounds the wait for all of them.
        fetch_rows(conn, "limit_lock_wait")
        # The state is read under the lock: someone may have promoted it meanwhile.
        lock_set(conn)
        state = get(conn, generation).state
        if state not in _DROPPABLE_STATES:
            raise UsageError(
                f"generation {generation} is {state}, "
                "only candidates, failed and retired ones can be dropped"
            )
        set_state(conn, generation, "failed")
        for query in ("drop_partitions", "delete_leaves", "delete_counters"):
            execute(conn, query, generation=generation)
        update(conn, generation, dropped_at=datetime.now(UTC))


def _end_or_creation(generation: Generation) -> datetime:
    return generation.ended_at or generation.created_at


def _generation(row: tuple[Any, ...]) -> Generation:
    number, state, codebook, checkpoint, shape, config, created_at, live_at, ended_at = row
    return Generation(
        id=number,
        state=state,
        codebook_version=codebook,
        checkpoint_path=checkpoint,
        shape=IdentifierShape(codes=tuple(shape["codes"]), suffixes=shape["suffixes"]),
        config=GenerationConfig.from_json(config),
        created_at=created_at,
        live_at=live_at,
        ended_at=ended_at,
    )


def _unknown(conn: Connection, generation: int) -> UsageError:
    numbers = [str(existing.id) for existing in generations(conn)]
    known = ", ".join(numbers) or "none yet"
    return UsageError(
        f"there is no generation {generation}, known are: {known}; "
        "list them with: sigma generations list"
    )
