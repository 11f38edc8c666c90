"""Backup and restore on real PostgreSQL, S3 and Kafka, while everything goes on."""

import os
import stat
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from model.network.file_digests import write_digests
from model.progress import Bar, Progress, quiet
from ops.backup.backup import back_up
from ops.backup.restore import Restored, restore
from ops.backup.verification import verify
from ops.bench.stub import shadow_generation
from ops.jobs.erasing import erase
from schemas.errors import RetryLaterError, UsageError, WorkFailedError
from schemas.named_sql import Migration, migrations
from schemas.service_settings import KafkaSettings, S3Settings
from schemas.settings import Settings
from stream.images.s3 import S3ImageStore
from stream.log.outbox import forward
from tests.integration.test_erasure import AT_ONCE
from tests.line import Line, line_of, open_line
from workers.repository import connection, counters, generations
from workers.repository.connection import Connection, connect, migrate
from workers.repository.follower import TrieFollower
from workers.repository.image_deletion import delete_images
from workers.repository.stored_images import images_by_id
from workers.repository.table_copy import schema_version, sequences, stored_tables
from workers.runtime.services import Services

SECRET = "a-secret-that-nobody-may-read"


@pytest.fixture
def line(conn: Connection, database: str, tmp_path: Path) -> Iterator[Line]:
    """Indexed are a, b and gone; read by intake only is c, by nobody d and that gone is deleted."""
    with open_line(database, tmp_path / "home", conn) as line:
        weights(line.services)
        line.arrive("a", captions=["tab\tand \\ line\nend", "\\N", "ünï"])
        line.arrive("b")
        line.arrive("gone")
        line.run()
        line.arrive("c")
        line.take_in()
        line.arrive("d")
        line.delete("gone")
        yield line


def weights(services: Services) -> None:
    folder = services.checkpoints / "stub"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"weights" * 1000)
    write_digests(folder)


@pytest.fixture
def empty(postgres: Any) -> Iterator[str]:
    """The URL of an empty database."""
    name = f"restored_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres.get_uri(), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}".encode())
    yield postgres.get_uri(database=name)
    with psycopg.connect(postgres.get_uri(), autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def services_in(home: Path, url: str, **settings: Any) -> Services:
    return Services(Settings(home=home, database_url=url, **settings), url)


def restored(services: Services, folder: Path, progress: Progress = quiet) -> Restored:
    return restore(services, folder, verify(folder, quiet), progress)


def epoch_of(conn: Connection) -> int:
    ((number,),) = conn.execute("SELECT number FROM epoch").fetchall()
    return int(number)


def cleared(url: str) -> int:
    """Empty a database; returns its last epoch."""
    with connect(url) as conn:
        epoch = epoch_of(conn)
        conn.execute("DROP SCHEMA public CASCADE")
        conn.execute("CREATE SCHEMA public")
    return epoch


def meanwhile(label: str, work: Callable[[], object]) -> Progress:
    """A `Progress` that does something after every step of one part."""

    class Meanwhile:
        def update(self, n: int, **figures: float) -> None:
            work()

    def progress(part: str, total: int) -> AbstractContextManager[Bar]:
        return nullcontext(Meanwhile()) if part == label else quiet(part, total)

    return progress


def rows_of(url: str) -> dict[str, list[str]]:
    """All rows of all tables, but for what is of one cluster."""
    rows: dict[str, list[str]] = {}
    with psycopg.connect(url) as conn:
        conn.execute("SET TIME ZONE 'UTC'")
        tables = conn.execute(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition"
            " AND relnamespace = 'public'::regnamespace"
            " AND relname NOT IN ('epoch', 'lease', 'schema_version')"
        ).fetchall()
        for (name,) in tables:
            found = conn.execute(f"SELECT to_jsonb(t) - 'changed_by' FROM {name} t".encode())
            rows[name] = sorted(str(row) for (row,) in found.fetchall())
    return rows


@contextmanager
def opened(services: Services) -> Iterator[Line]:
    """A line that goes on with a restored installation."""
    with connect(services.database_url) as conn, line_of(services, conn) as line:
        yield line


def test_a_backup_is_one_moment_although_images_come_and_go_meanwhile(
    line: Line, database: str, empty: str, tmp_path: Path
) -> None:
    before, checksum = rows_of(database), line.checksum
    turn = 0

    def go_on() -> None:
        nonlocal turn
        turn += 1
        line.arrive(f"later {turn}")
        line.run()
        delete_images(line.conn, [f"later {turn - 1}", "b"])

    manifest = back_up(line.services, tmp_path / "saved", meanwhile("tables", go_on))
    assert turn > 10
    assert line.checksum != checksum
    assert manifest.unread >= 3
    services = services_in(tmp_path / "other", empty)
    restored(services, tmp_path / "saved")
    assert rows_of(empty) == before
    with opened(services) as other:
        assert other.checksum == checksum
        # Nothing that was published is lost, and no number is given twice.
        other.arrive("new")
        other.run()
        assert other.searchable() == dict.fromkeys("abcd", 1) | {"new": 1}
        assert set(other.letters()) == set()
        for stored in images_by_id(other.conn, ["a", "b", "c", "d", "new"]).values():
            assert services.store.get(stored.normalized_uri)
        assert counters.totals(other.conn, other.generation) == counters.recount(
            other.conn, other.generation
        )


def test_followers_of_a_restored_database_load_it_once_and_follow_it(
    line: Line, empty: str, tmp_path: Path
) -> None:
    # As after years: this cluster's numbers lie far beyond those of a new one.
    line.conn.execute("UPDATE posting SET changed_by = '9000000000'::xid8")
    before = epoch_of(line.conn)
    back_up(line.services, tmp_path / "saved", quiet)
    services = services_in(tmp_path / "other", empty)
    restored(services, tmp_path / "saved")
    with opened(services) as other, connect(empty) as own:
        assert epoch_of(other.conn) > before
        follower = TrieFollower.open(own, other.generation)
        assert len(follower.load().embeddings) == 3
        assert not follower.changes()
        # What a worker does at its start changes nothing any more.
        migrate(other.conn)
        assert not follower.changes()
        other.run()
        changes = follower.changes()
        assert (len(changes.embeddings), len(changes.deleted)) == (2, 1)


def test_every_table_of_a_migrated_database_is_saved_and_no_other(conn: Connection) -> None:
    every = conn.execute(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition"
        " AND relnamespace = 'public'::regnamespace"
    ).fetchall()
    # APScheduler makes one like it, and fills it at its start.
    conn.execute("CREATE TABLE scheduler_job (id serial PRIMARY KEY, job_state bytea)")
    conn.execute("INSERT INTO scheduler_job (job_state) VALUES ('')")
    saved = {table.name for table in stored_tables(conn)}
    assert saved == {name for (name,) in every} - {"lease", "schema_version"}
    assert len(saved) > 15
    assert not any("scheduler_job" in name for name in sequences(conn))


def test_a_restore_or_backup_that_is_killed_half_way_is_simply_run_again(
    line: Line, database: str, empty: str, tmp_path: Path
) -> None:
    def kill() -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "saved"
    for part in ("tables", "weights stub", "pictures"):
        with pytest.raises(KeyboardInterrupt):
            back_up(line.services, folder, meanwhile(part, kill))
        with pytest.raises(UsageError, match="did not finish"):
            verify(folder, quiet)
    # Of the unfinished one a picture that is not wanted any more, and one that is not whole.
    left = next((folder / "images").rglob("*.png"))
    left.write_bytes(b"half")
    (left.parent / f"{'0' * 62}.png").write_bytes(b"of a deleted image")
    back_up(line.services, folder, quiet)
    services = services_in(tmp_path / "other", empty)
    for part in ("pictures", "tables"):
        with pytest.raises(KeyboardInterrupt):
            restored(services, folder, meanwhile(part, kill))
        with connect(empty) as conn:
            assert schema_version(conn) is None
    restored(services, folder)
    assert rows_of(empty) == rows_of(database)
    with pytest.raises(UsageError, match="holds a backup already"):
        back_up(line.services, folder, quiet)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    with pytest.raises(UsageError, match="got other files"):
        back_up(line.services, tmp_path / "full", quiet)


def test_an_image_that_is_erased_meanwhile_is_told_and_stays_deleted(
    line: Line, empty: str, tmp_path: Path
) -> None:
    (picture,) = {stored.normalized_uri for stored in images_by_id(line.conn, ["a"]).values()}
    line.run()

    def go_on() -> None:
        delete_images(line.conn, ["a"])
        erase(line.conn, line.services.store, line.log, embedded_log=True, grace=AT_ONCE)

    manifest = back_up(line.services, tmp_path / "saved", meanwhile("weights stub", go_on))
    assert manifest.erased == (picture,)
    assert manifest.damaged == ()
    services = services_in(tmp_path / "other", empty)
    assert restored(services, tmp_path / "saved").deleted == 1
    with opened(services) as other:
        assert other.searchable() == dict.fromkeys("bcd", 1)


def test_what_is_damaged_before_is_told_and_the_rest_is_saved(line: Line, tmp_path: Path) -> None:
    lost = next((line.services.home / "images").rglob("*.png"))
    lost.write_bytes(lost.read_bytes()[:-1])
    (line.services.checkpoints / "stub" / "weights.bin").write_bytes(b"flipped")
    manifest = back_up(line.services, tmp_path / "saved", quiet)
    weights_sentence, picture_sentence = manifest.damaged
    assert "weights.bin is damaged" in weights_sentence
    assert lost.stem in picture_sentence or lost.parent.name in picture_sentence
    assert manifest.pictures == len(list((tmp_path / "saved" / "images").rglob("*.png"))) > 0
    verify(tmp_path / "saved", quiet)


def test_only_an_empty_database_that_nobody_uses_is_restored_into(
    line: Line, database: str, empty: str, tmp_path: Path
) -> None:
    back_up(line.services, tmp_path / "saved", quiet)
    with pytest.raises(UsageError, match=r"must be empty, got rows in the table \w+; name a new"):
        restored(services_in(tmp_path / "other", database), tmp_path / "saved")
    services = services_in(tmp_path / "other", empty)
    with connect(empty, name="sigma query"), pytest.raises(UsageError, match="sigma query"):
        restored(services, tmp_path / "saved")
    # An earlier home's weights are not overwritten.
    (services.checkpoints / "stub").mkdir(parents=True)
    (services.checkpoints / "stub" / "weights.bin").write_bytes(b"others")
    with pytest.raises(UsageError, match="is not the folder of the backup"):
        restored(services, tmp_path / "saved")
    # One that was only initialised is as good as an empty one.
    with connect(empty) as conn:
        migrate(conn)
    log = services.open_log()
    log.ensure_topics()
    log.close()
    restored(services_in(tmp_path / "third", empty), tmp_path / "saved")
    assert rows_of(empty) == rows_of(database)


def test_a_backup_of_an_older_schema_is_migrated(
    line: Line, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(line.services, tmp_path / "saved", quiet)
    newest = migrations()[-1].version + 1
    step = Migration(newest, "later", b"ALTER TABLE image RENAME COLUMN split TO part")
    monkeypatch.setattr(connection, "migrations", lambda: (*migrations(), step))
    restored(services_in(tmp_path / "other", empty), tmp_path / "saved")
    with connect(empty) as conn:
        assert schema_version(conn) == newest
        assert conn.execute("SELECT count(part), count(*) FROM image").fetchone() == (0, 3)


def test_no_generation_is_dropped_between_its_row_and_its_postings(
    line: Line, tmp_path: Path
) -> None:
    number = shadow_generation(line.conn)
    refused: list[RetryLaterError] = []

    def drop_it() -> None:
        if not refused:
            try:
                generations.drop(line.conn, number)
            except RetryLaterError as error:
                refused.append(error)

    manifest = back_up(line.services, tmp_path / "saved", meanwhile("tables", drop_it))
    assert refused
    assert manifest.partitions == (line.generation, number)


def test_a_training_under_way_is_left_out_and_told(line: Line, empty: str, tmp_path: Path) -> None:
    number = generations.create_generation(line.conn, generations.get(line.conn, 1).shape)
    manifest = back_up(line.services, tmp_path / "saved", quiet)
    assert str(number) in manifest.left_out[0]
    services = services_in(tmp_path / "other", empty)
    assert restored(services, tmp_path / "saved").given_up == (number,)
    with connect(empty) as conn:
        assert generations.get(conn, number).state == "failed"
        assert generations.create_generation(conn, generations.get(conn, 1).shape) == number + 1


def test_a_backup_is_private_without_secrets_and_shares_pictures_with_an_older_one(
    line: Line, database: str, tmp_path: Path
) -> None:
    url = f"{database}&password={SECRET}" if "?" in database else f"{database}?password={SECRET}"
    services = services_in(line.services.home, url)
    # A lax mask must not matter.
    mask = os.umask(0)
    try:
        back_up(services, tmp_path / "saved", quiet)
        back_up(services, tmp_path / "second", quiet, tmp_path / "saved")
    finally:
        os.umask(mask)
    for path in [tmp_path / "saved", *(tmp_path / "saved").rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes()
    shared = [
        path.relative_to(tmp_path / "saved")
        for part in ("images", "generations")
        for path in (tmp_path / "saved" / part).rglob("*")
        if path.is_file()
    ]
    assert len(shared) >= 5
    for inside in shared:
        assert (tmp_path / "saved" / inside).samefile(tmp_path / "second" / inside)
    # What is damaged there is taken from the store.
    victim = next(path for path in shared if path.suffix == ".png")
    (tmp_path / "saved" / victim).write_bytes(b"flipped")
    back_up(services, tmp_path / "third", quiet, tmp_path / "saved")
    verify(tmp_path / "third", quiet)


def test_a_full_disk_is_one_sentence_and_leaves_no_backup(line: Line, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="sigma-full-") as name:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "tmpfs", name], check=False
        )
        if mounted.returncode:
            pytest.skip("a disk of its own needs root")
        try:
            noise = os.urandom(1 << 20)
            (line.services.checkpoints / "stub" / "more.bin").write_bytes(noise)
            with pytest.raises(WorkFailedError, match="No space left on device"):
                back_up(line.services, Path(name) / "saved", quiet)
            with pytest.raises(UsageError, match="did not finish"):
                verify(Path(name) / "saved", quiet)
            # The same for a restore: nothing is restored until there is room.
            back_up(line.services, tmp_path / "saved", quiet)
            small = Settings(home=Path(name) / "home")
            with pytest.raises(WorkFailedError, match="must have room"):
                restore(
                    Services(small, line.services.database_url),
                    tmp_path / "saved",
                    verify(tmp_path / "saved", quiet),
                    quiet,
                )
        finally:
            subprocess.run(["umount", name], check=True)


def test_pictures_move_from_a_folder_to_s3_and_back(
    line: Line, empty: str, postgres: Any, s3: S3Settings, tmp_path: Path
) -> None:
    back_up(line.services, tmp_path / "saved", quiet)
    bucket = replace(s3, bucket=f"backup-{uuid.uuid4().hex[:12]}")
    services = services_in(tmp_path / "other", empty, s3=bucket)
    restored(services, tmp_path / "saved")
    assert not (services.home / "images").exists()
    with opened(services) as other:
        other.run()
        assert other.searchable() == dict.fromkeys("abcd", 1)
        assert isinstance(services.store, S3ImageStore)
        back_up(services, tmp_path / "of s3", quiet)
        assert other.services.s3 is not None
    manifest = verify(tmp_path / "of s3", quiet)
    assert manifest.pictures == 4
    for path in (tmp_path / "of s3").rglob("*"):
        assert path.is_dir() or s3.secret_key.encode() not in path.read_bytes()
    epoch = cleared(empty)
    third = services_in(tmp_path / "third", empty)
    restored(third, tmp_path / "of s3")
    with opened(third) as other:
        # Also in the very same database: whoever has followed it loads anew.
        assert epoch_of(other.conn) == epoch + 1
        for stored in images_by_id(other.conn, list("abcd")).values():
            assert third.store.get(stored.normalized_uri)


def forwarded(line: Line) -> None:
    while forward(line.log, line.conn):
        pass


def run_with_kafka(line: Line) -> None:
    """What workers and their relay do."""
    forwarded(line)
    line.take_in()
    forwarded(line)
    line.index()
    forwarded(line)


@pytest.mark.timeout(300)
def test_what_waits_in_the_embedded_log_goes_to_kafka_and_back(
    line: Line, empty: str, postgres: Any, kafka: KafkaSettings, tmp_path: Path
) -> None:
    back_up(line.services, tmp_path / "saved", quiet)
    roots = (line.services.home, tmp_path / "other")
    services = services_in(tmp_path / "other", empty, kafka=kafka, source_roots=roots)
    assert restored(services, tmp_path / "saved").carried_over == 3
    with opened(services) as other:
        run_with_kafka(other)
        assert other.searchable() == dict.fromkeys("abcd", 1)
        other.arrive("e")
        other.take_in()
        # Accepted and still in the outbox, accepted and forwarded, arrived only.
        other.arrive("f")
        other.take_in()
        forwarded(other)
        other.arrive("g")
        before = other.checksum
        manifest = back_up(services, tmp_path / "of kafka", quiet)
        assert manifest.unread == 3
        run_with_kafka(other)
        after = other.checksum
        assert after != before
    # The same brokers: what was read since the snapshot is read again, and changes nothing.
    cleared(empty)
    same = services_in(tmp_path / "same", empty, kafka=kafka, source_roots=roots)
    assert restored(same, tmp_path / "of kafka").carried_over == 0
    with opened(same) as other:
        assert other.checksum == before
        # Accepted since, so its picture is not in the backup: intake stores it once more.
        other.index()
        run_with_kafka(other)
        assert other.checksum == after
        assert other.conn.execute("SELECT count(*) FROM rejection").fetchone() == (0,)
    # Without brokers: nothing that waited there is lost.
    cleared(empty)
    third = services_in(tmp_path / "third", empty)
    assert restored(third, tmp_path / "of kafka").carried_over == 3
    with opened(third) as other:
        other.run()
        assert other.checksum == after
        assert other.conn.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
