"""Generations: one (codebook, model, trie) triple each, exactly one of them live."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from psycopg import errors
from psycopg.types.json import Jsonb

from schemas.errors import UsageError
from schemas.generation_config import GateVerdict, GenerationConfig, config_changes
from schemas.identifiers import IdentifierShape
from schemas.training_record import TrainingRecord
from workers.repository.connection import Connection, row, rows, run, transaction

CHANNEL = "sigma_generation"
"""Notified at every switch."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A row of the table. `state` is building, shadow, live, retired or failed."""

    id: int
    state: str
    codebook_version: str | None
    checkpoint_path: str | None
    shape: IdentifierShape
    config: GenerationConfig
    created_at: datetime
    live_at: datetime | None
    ended_at: datetime | None

    @property
    def folder(self) -> str:
        """Name of its checkpoint's folder among those of all generations."""
        return self.checkpoint_path or f"g{self.id}"

    @property
    def dropped(self) -> bool:
        """Whether its tables are gone: its state is failed then, whatever it was before."""
        return self.config.dropped_at is not None

    @property
    def display_state(self) -> str:
        """The state for a person: `dropped` where nothing failed, but somebody gave it up."""
        return "dropped" if self.dropped and self.config.failure is None else self.state


def create_generation(
    conn: Connection,
    shape: IdentifierShape,
    *,
    codebook_version: str | None = None,
    checkpoint_path: str | None = None,
    config: GenerationConfig | None = None,
) -> int:
    """A new generation in state building, with its own tables. Returns its number."""
    described = Jsonb({"codes": list(shape.codes), "suffixes": shape.suffixes})
    with transaction(conn):
        found = row(
            conn,
            "insert_generation",
            codebook_version=codebook_version,
            checkpoint_path=checkpoint_path,
            shape=described,
            config=Jsonb({} if config is None else config.to_json()),
        )
        generation = int(found[0]) if found else 0
        rows(conn, "open_partitions", generation=generation)
    return generation


def describe(
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
    if not run(
        conn,
        "describe_generation",
        generation=generation,
        codebook_version=codebook_version,
        checkpoint_path=checkpoint_path,
        config=Jsonb(changes),
    ):
        raise _unknown(conn, generation)


def generations(conn: Connection) -> list[Generation]:
    """All generations, oldest first."""
    return [_generation(found) for found in rows(conn, "generations")]


def get(conn: Connection, generation: int) -> Generation:
    """One generation; `UsageError` when there is none of that number."""
    for found in generations(conn):
        if found.id == generation:
            return found
    raise _unknown(conn, generation)


def unfinished(conn: Connection) -> Generation | None:
    """The newest generation that a training began and did not finish."""
    return next((found for found in reversed(generations(conn)) if found.state == "building"), None)


def live(conn: Connection) -> Generation | None:
    """The generation that answers queries, or None before the first one is promoted."""
    return next((found for found in generations(conn) if found.state == "live"), None)


def receiving(conn: Connection) -> list[Generation]:
    """Generations that every new arrival is assigned in, ascending: shadow and live ones, and the newest retired one.

    The retired one goes on receiving so that a rollback loses nothing.
    """
    found = generations(conn)
    back = find_fallback(found)
    return [g for g in found if g.state in ("shadow", "live") or g is back]


def find_fallback(found: Sequence[Generation]) -> Generation | None:
    """The newest retired one of these: what a rollback makes live again."""
    retired = [g for g in found if g.state == "retired" and g.ended_at is not None]
    return max(retired, key=lambda g: g.ended_at or g.created_at, default=None)


def live_number(conn: Connection) -> int | None:
    """The live generation's number, in one small query."""
    found = row(conn, "live_generation")
    return None if found is None else int(found[0])


def lock_set(conn: Connection) -> None:
    """Hold the set of generations and their states alone until the transaction ends. Comes before every other lock."""
    rows(conn, "lock_generations")


def share_set(conn: Connection) -> None:
    """Keep the set of generations and their states as they are until the transaction ends. Comes before every other lock."""
    rows(conn, "share_generations")


def set_state(conn: Connection, generation: int, state: str) -> None:
    """One step of the state machine; `UsageError` when it cannot be taken.

    Waits for the transactions that accept images: those that begin after it see the new state.
    """
    try:
        with transaction(conn):
            lock_set(conn)
            if not run(conn, "set_generation_state", generation=generation, state=state):
                raise _unknown(conn, generation)
            rows(conn, "notify_generation", generation=generation)
    except (
        errors.CheckViolation,
        errors.UniqueViolation,
        errors.InvalidTextRepresentation,
    ) as error:
        raise UsageError(
            f"{error.diag.message_primary}; allowed are: {error.diag.message_hint or 'one live generation'}"
        ) from error


def promote(conn: Connection, generation: int) -> int | None:
    """Makes a shadow or retired generation live and retires the live one, in one transaction. Returns the one retired.

    Whether it holds every image is the caller's to know: `workers.switching`.
    """
    with transaction(conn):
        lock_set(conn)
        before = live(conn)
        if before is not None and before.id == generation:
            return None
        if before is not None:
            set_state(conn, before.id, "retired")
        set_state(conn, generation, "live")
    return None if before is None else before.id


def require_fallback(conn: Connection) -> Generation:
    """The generation that a rollback makes live again; `UsageError` when there is none."""
    previous = find_fallback(generations(conn))
    if previous is None:
        raise UsageError(
            "no generation was live before this one, so there is no fallback generation; list them with: sigma generations list"
        )
    return previous


def drop(conn: Connection, generation: int) -> None:
    """Frees the tables of a candidate, a failed or a retired generation, in one transaction; its row stays as history, failed, and
    cannot come back. `RetryLaterError` when somebody reads them for longer than arrivals can wait behind it."""
    with transaction(conn):
        rows(conn, "do_not_wait")
        # Asked under the lock: somebody may have promoted it meanwhile.
        lock_set(conn)
        found = get(conn, generation)
        if found.state not in ("shadow", "failed", "retired"):
            raise UsageError(
                f"generation {generation} is {found.state}, only candidates, failed and retired ones can be dropped"
            )
        set_state(conn, generation, "failed")
        for query in ("drop_partitions", "delete_leaves", "delete_counters"):
            run(conn, query, generation=generation)
        describe(conn, generation, dropped_at=datetime.now(UTC))


def _generation(found: tuple[Any, ...]) -> Generation:
    number, state, codebook, checkpoint, shape, config, created_at, live_at, ended_at = found
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
    known = ", ".join(str(g.id) for g in generations(conn)) or "none yet"
    return UsageError(
        f"there is no generation {generation}, known are: {known}; list them with: sigma generations list"
    )
