"""Retiring: what may be dropped, what is kept for a rollback, and that nothing waits behind it."""

from pathlib import Path

import pytest

from ops.status import candidate_alarms
from schemas.errors import RetryLaterError, UsageError
from schemas.generation_config import GenerationConfig
from schemas.identifiers import IdentifierShape
from schemas.settings import Settings
from workers.generations.retiring import drop, prune, refused_by_gate
from workers.repository import generations
from workers.repository.connection import Connection, connect
from workers.runtime.services import Services

SHAPE = IdentifierShape((4, 4, 2, 2), 16)


@pytest.fixture
def services(database: str, tmp_path: Path) -> Services:
    return Services(Settings(home=tmp_path), database)


def made(
    services: Services, conn: Connection, *states: str, folder: str | None = None, **config: object
) -> int:
    """A generation that went through these states, with a checkpoint's folder."""
    number = generations.create_generation(
        conn, SHAPE, checkpoint_path=folder, config=GenerationConfig.from_json(config)
    )
    for state in states:
        generations.set_state(conn, number, state)
    (services.checkpoints / (folder or f"g{number}")).mkdir(parents=True, exist_ok=True)
    return number


def chain(services: Services, conn: Connection, count: int) -> list[int]:
    """Generations that were live one after the other; the last one is."""
    numbers = [made(services, conn, "shadow") for _ in range(count)]
    for number in numbers:
        generations.promote(conn, number)
    return numbers


def tables(conn: Connection) -> set[str]:
    return {
        name
        for (name,) in conn.execute(
            "SELECT relname FROM pg_class WHERE relname ~ '^placement_[0-9]+$'"
        )
    }


def test_a_candidate_gives_back_its_tables_and_its_folder_and_its_row_stays(
    services: Services, conn: Connection
) -> None:
    (live,) = chain(services, conn, 1)
    candidate = made(services, conn, "shadow")
    drop(conn, services.checkpoints, candidate)
    assert tables(conn) == {f"placement_{live}"}
    assert [path.name for path in services.checkpoints.iterdir()] == [f"g{live}"]
    gone = generations.get(conn, candidate)
    assert (gone.state, gone.dropped, gone.display_state) == ("failed", True, "dropped")
    assert [one.id for one in generations.receiving(conn)] == [live]
    drop(conn, services.checkpoints, candidate)
    with pytest.raises(UsageError, match="failed"):
        generations.promote(conn, candidate)


def test_what_is_in_use_is_kept_and_the_refusal_tells_the_cure(
    services: Services, conn: Connection
) -> None:
    back, live = chain(services, conn, 2)
    building = made(services, conn, parent=live)
    with pytest.raises(UsageError, match="is live; make another one live first"):
        drop(conn, services.checkpoints, live)
    with pytest.raises(UsageError, match="being trained"):
        drop(conn, services.checkpoints, building)
    with pytest.raises(UsageError, match=f"is the fallback generation.* drop {back} --force"):
        drop(conn, services.checkpoints, back)
    parent = made(services, conn, "shadow")
    made(services, conn, parent=parent)
    with pytest.raises(UsageError, match="is trained from; finish that first"):
        drop(conn, services.checkpoints, parent)
    with pytest.raises(UsageError, match="only candidates, failed and retired ones"):
        generations.drop(conn, live)
    assert len(tables(conn)) == 5
    drop(conn, services.checkpoints, back, force=True)
    with pytest.raises(UsageError, match="no fallback generation"):
        generations.require_fallback(conn)


def test_a_folder_that_another_generation_uses_stays(services: Services, conn: Connection) -> None:
    live, copy = (made(services, conn, "shadow", folder="shared") for _ in range(2))
    generations.promote(conn, live)
    drop(conn, services.checkpoints, copy)
    assert (services.checkpoints / "shared").is_dir()


def test_pruning_waits_a_week_and_never_takes_the_fallback_generation(
    services: Services, conn: Connection
) -> None:
    first, second, live = chain(services, conn, 3)
    failed = made(services, conn, "failed", failure=["too few images"])
    assert prune(conn, services.checkpoints) == []
    conn.execute(
        "UPDATE generation SET ended_at = ended_at - interval '8 days' WHERE id IN (%s, %s)",
        (first, failed),
    )
    assert prune(conn, services.checkpoints) == [first, failed]
    conn.execute(
        "UPDATE generation SET ended_at = ended_at - interval '8 days' WHERE id = %s", (second,)
    )
    assert prune(conn, services.checkpoints) == []
    assert generations.require_fallback(conn).id == second
    assert sorted(path.name for path in services.checkpoints.iterdir()) == [
        f"g{second}",
        f"g{live}",
    ]
    assert {one.id: one.display_state for one in generations.generations(conn)} == {
        first: "dropped",
        second: "retired",
        live: "live",
        failed: "failed",
    }


def test_nothing_waits_behind_a_drop_that_waits_for_a_reader(
    services: Services, conn: Connection, database: str
) -> None:
    limit_before = conn.execute("SELECT current_setting('lock_timeout')").fetchone()
    candidate = made(services, conn, "shadow")
    with connect(database) as reader, reader.transaction():
        reader.execute("SELECT count(*) FROM posting")
        with pytest.raises(RetryLaterError, match="lock timeout"):
            drop(conn, services.checkpoints, candidate)
    assert generations.get(conn, candidate).state == "shadow"
    assert (services.checkpoints / f"g{candidate}").is_dir()
    assert conn.execute("SELECT current_setting('lock_timeout')").fetchone() == limit_before
    drop(conn, services.checkpoints, candidate)
    assert tables(conn) == set()


def test_status_tells_which_candidates_wait_for_a_person(
    services: Services, conn: Connection
) -> None:
    (live,) = chain(services, conn, 1)
    fresh = made(services, conn, "shadow")
    good = made(services, conn, "shadow", gate={"passed": True, "reasons": [], "against": live})
    bad = made(
        services, conn, "shadow", gate={"passed": False, "reasons": ["R@10 falls"], "against": live}
    )
    outdated = made(
        services,
        conn,
        "shadow",
        gate={"passed": False, "reasons": ["R@10 falls"], "against": live + 100},
    )
    found, now_live = generations.generations(conn), generations.live(conn)
    assert [one.id for one in found if refused_by_gate(one, now_live)] == [bad]
    told = candidate_alarms(found, now_live)
    assert [line.split(":")[0] for line in told] == [
        f"generation {good} passed its gate and waits",
        f"generation {bad} was refused by its gate, sigma generations list tells why; "
        "the next training replaces it, or",
    ]
    assert not any(f"generation {one} " in line for one in (fresh, outdated) for line in told)
