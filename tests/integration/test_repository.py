"""Images, postings and counters in a real PostgreSQL."""

import threading
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import psycopg
import pytest

from model.retrieval.trie import Trie
from schemas.errors import RefuseToStartError, UsageError
from schemas.events import ImageAccepted, ImageDeleted, ImageRejected
from schemas.identifiers import IdentifierShape
from schemas.records import Assignment, Posting
from workers.repository import bulk_load, counters, generations, postings
from workers.repository.bulk_load import InitialLoad
from workers.repository.connection import Connection, connect, migrate
from workers.repository.follower import TrieFollower
from workers.repository.freshness import Freshness, freshness, record_visibility
from workers.repository.image_acceptance import StoredKey, accept_images
from workers.repository.image_deletion import Deletion, delete_images
from workers.repository.postings import AppendStatus, StoredPosting
from workers.repository.rejections import reject_image, rejections
from workers.repository.stored_images import images_by_id, images_by_key, missing_images

SHAPE = IdentifierShape(codes=(2, 2, 2, 2), suffixes=4)


def accepted(image_id: str, version: int = 1) -> ImageAccepted:
    return ImageAccepted(
        image_id=image_id,
        uri=f"file:///{image_id}.jpg",
        normalized_uri=f"file:///store/{image_id}.png",
        checksum="0" * 64,
        width=10,
        height=20,
        arrived_at=datetime.now(UTC),
        version=version,
        captions=("a caption",),
    )


def accept(conn: Connection, names: Sequence[str]) -> list[int]:
    stored = accept_images(conn, [accepted(name) for name in names])
    return [image.image_key for image in stored]


def accept_one(conn: Connection, image: ImageAccepted) -> StoredKey:
    (stored,) = accept_images(conn, [image])
    return stored


def assignment(key: int, *leaves: int, spill: Sequence[int] = ()) -> Assignment:
    posted = tuple(Posting(leaf, -0.5 * rank) for rank, leaf in enumerate(leaves))
    return Assignment(
        image_key=key,
        postings=posted,
        embedding=np.full(8, 0.25, np.float16),
        confidence=-1.0,
        spill=tuple(spill),
    )


@pytest.fixture
def generation(conn: Connection) -> int:
    return generations.create_generation(conn, SHAPE)


def test_migrating_twice_changes_nothing(conn: Connection) -> None:
    first = migrate(conn)
    assert migrate(conn) == first
    assert conn.execute("SELECT max(version) FROM schema_version").fetchone() == (first,)


def test_a_database_newer_than_the_program_is_refused(conn: Connection) -> None:
    conn.execute("INSERT INTO schema_version (version, name) VALUES (999, 'future')")
    with pytest.raises(RefuseToStartError, match="999"):
        migrate(conn)


def test_processes_that_start_at_once_migrate_in_turn(
    postgres: object, conn: Connection, database: str
) -> None:
    conn.execute("DROP SCHEMA public CASCADE")
    conn.execute("CREATE SCHEMA public")
    failures: list[BaseException] = []

    def start() -> None:
        try:
            with connect(database) as own:
                migrate(own)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert generations.create_generation(conn, SHAPE) == 1


def test_a_replayed_arrival_keeps_its_key(conn: Connection) -> None:
    stored = accept_one(conn, accepted("a", version=2))
    assert stored.is_new
    replayed = StoredKey(stored.image_key, is_new=False)
    assert accept_one(conn, accepted("a", version=2)) == replayed
    older = StoredKey(stored.image_key, is_new=False, outdated=True)
    assert accept_one(conn, accepted("a", version=1)) == older


def test_a_deleted_image_stays_deleted_on_replay_and_comes_back_with_a_higher_version(
    conn: Connection, generation: int
) -> None:
    (key,) = accept(conn, ["a"])
    assert delete_images(conn, ["a", "unknown"]) == Deletion(deleted=("a",), untouched=("unknown",))
    assert accept_one(conn, accepted("a")) == StoredKey(key, is_new=False)
    assert (
        postings.append(conn, generation, SHAPE, [assignment(key, 1)])[0].status
        is AppendStatus.GONE
    )
    newer = accept_one(conn, accepted("a", version=2))
    assert newer.is_new
    assert newer.image_key != key
    again = assignment(newer.image_key, 1)
    assert postings.append(conn, generation, SHAPE, [again])[0].status is AppendStatus.INDEXED


def test_a_replayed_deletion_spares_a_newer_version(conn: Connection) -> None:
    accept_one(conn, accepted("a", version=2))
    assert delete_images(conn, [ImageDeleted("a", version=1)]).untouched == ("a",)
    assert delete_images(conn, [ImageDeleted("a", version=2)]).deleted == ("a",)


def test_a_new_version_replaces_the_old_one_and_late_work_for_the_old_one_is_dropped(
    conn: Connection, generation: int
) -> None:
    (old,) = accept(conn, ["a"])
    postings.append(conn, generation, SHAPE, [assignment(old, 1, 2)])
    new = accept_one(conn, accepted("a", version=2)).image_key
    assert counters.totals(conn, generation) == counters.Totals()
    assert (
        postings.append(conn, generation, SHAPE, [assignment(old, 1)])[0].status
        is AppendStatus.GONE
    )
    assert postings.append(conn, generation, SHAPE, [assignment(new, 3)])[0].leaf == 3
    assert counters.image_totals(conn).deleted == 0


def test_an_image_is_rejected_once_and_no_longer_when_it_is_accepted(conn: Connection) -> None:
    refused = ImageRejected(
        image_id="a", uri="file:///a.jpg", code="truncated", reason="cut short", stage="intake"
    )
    assert reject_image(conn, refused)
    assert not reject_image(conn, refused)
    assert [rejection.code for rejection in rejections(conn)] == ["truncated"]
    assert counters.image_totals(conn).rejected == 1
    accept(conn, ["a"])
    assert counters.image_totals(conn).rejected == 0


def test_an_image_gets_a_primary_with_a_suffix_and_alternates_without(
    conn: Connection, generation: int
) -> None:
    first, second = accept(conn, ["a", "b"])
    outcomes = postings.append(
        conn, generation, SHAPE, [assignment(first, 5, 6), assignment(second, 5)]
    )
    assert [(outcome.status, outcome.leaf, outcome.suffix) for outcome in outcomes] == [
        (AppendStatus.INDEXED, 5, 0),
        (AppendStatus.INDEXED, 5, 1),
    ]
    assert postings.postings_of(conn, generation, [first]) == {
        first: [StoredPosting(5, 0, 0.0), StoredPosting(6, None, -0.5)]
    }
    assert postings.identifiers_of(conn, generation, SHAPE, [second]) == {second: [0, 1, 0, 1, 1]}
    assert postings.image_at(conn, generation, 5, 1) == second
    assert images_by_id(conn, ["a"])["a"].state == "indexed"


def test_replaying_a_batch_three_times_leaves_the_same_checksum(
    conn: Connection, generation: int
) -> None:
    work = [
        assignment(key, key % 16, (key + 1) % 16)
        for key in accept(conn, [f"i{n}" for n in range(20)])
    ]
    postings.append(conn, generation, SHAPE, work)
    before = counters.totals(conn, generation)
    for _ in range(3):
        assert {outcome.status for outcome in postings.append(conn, generation, SHAPE, work)} == {
            AppendStatus.PRESENT
        }
    assert counters.totals(conn, generation) == before


def test_the_checksum_does_not_depend_on_the_order_of_arrival(conn: Connection) -> None:
    work = [
        assignment(key, key % 16, (key + 1) % 16)
        for key in accept(conn, [f"i{n}" for n in range(12)])
    ]
    sums = []
    for order in (work, work[::-1]):
        generation = generations.create_generation(conn, SHAPE)
        for image in order:
            postings.append(conn, generation, SHAPE, [image])
        sums.append(counters.totals(conn, generation))
    assert sums[0] == sums[1]
    assert sums[0].checksum != "0" * 16


def test_an_image_named_twice_in_a_batch_is_indexed_once(conn: Connection, generation: int) -> None:
    (key,) = accept(conn, ["a"])
    postings.append(conn, generation, SHAPE, [assignment(key, 1), assignment(key, 1)])
    assert counters.totals(conn, generation).images == 1


def test_a_full_leaf_spills_and_stays_an_alternate(conn: Connection, generation: int) -> None:
    keys = accept(conn, [f"i{n}" for n in range(6)])
    postings.append(conn, generation, SHAPE, [assignment(key, 3) for key in keys[:4]])
    spilled, listed = postings.append(
        conn, generation, SHAPE, [assignment(keys[4], 3, 9), assignment(keys[5], 3, 9, spill=[7])]
    )
    assert (spilled.status, spilled.leaf, spilled.suffix) == (AppendStatus.SPILLED, 9, 0)
    assert (listed.status, listed.leaf) == (AppendStatus.SPILLED, 7)
    assert postings.postings_of(conn, generation, [keys[4]])[keys[4]] == [
        StoredPosting(9, 0, -0.5),
        StoredPosting(3, None, 0.0),
    ]
    assert postings.postings_of(conn, generation, [keys[5]])[keys[5]] == [
        StoredPosting(7, 0, -0.5),
        StoredPosting(3, None, 0.0),
    ]
    assert counters.totals(conn, generation).spilled == 2


def test_an_image_whose_leaves_are_all_full_is_indexed_beyond_the_shape_and_counted(
    conn: Connection, generation: int
) -> None:
    keys = accept(conn, [f"i{n}" for n in range(7)])
    outcomes = postings.append(
        conn,
        generation,
        SHAPE,
        [
            *(assignment(key, 3) for key in keys[:4]),
            assignment(keys[4], 3, spill=[3]),
            assignment(keys[5], 3),
            assignment(keys[6], 4),
        ],
    )
    assert [(outcome.status, outcome.suffix) for outcome in outcomes[3:]] == [
        (AppendStatus.INDEXED, 3),
        (AppendStatus.BEYOND, 4),
        (AppendStatus.BEYOND, 5),
        (AppendStatus.INDEXED, 0),
    ]
    assert images_by_key(conn, [keys[4]])[keys[4]].state == "indexed"
    assert postings.identifiers_of(conn, generation, SHAPE, [keys[4]]) == {keys[4]: [0, 0, 1, 1, 4]}
    assert counters.totals(conn, generation) == counters.recount(conn, generation)
    assert counters.totals(conn, generation).beyond == 2
    # A suffix of the shape that becomes free is used again, one beyond it is not.
    delete_images(conn, ["i1", "i4"])
    assert counters.totals(conn, generation).beyond == 1
    late = accept(conn, ["j1", "j2"])
    again = postings.append(conn, generation, SHAPE, [assignment(key, 3) for key in late])
    assert [(outcome.status, outcome.suffix) for outcome in again] == [
        (AppendStatus.INDEXED, 1),
        (AppendStatus.BEYOND, 6),
    ]
    assert counters.totals(conn, generation) == counters.recount(conn, generation)


def test_twenty_thousand_images_that_crowd_into_a_small_shape_are_all_indexed_and_searchable(
    conn: Connection, generation: int
) -> None:
    """Room for 64 images; a quarter of them want the same leaf."""
    count = 20_000
    random = np.random.default_rng(0)
    batches = [list(range(start, start + 2000)) for start in range(0, count, 2000)]
    statuses: Counter[AppendStatus] = Counter()
    for batch in batches:
        keys = accept(conn, [f"i{number}" for number in batch])
        work = []
        for key in keys:
            leaves = np.minimum(random.geometric(0.25, 3) - 1, SHAPE.leaves - 1)
            work.append(assignment(key, *dict.fromkeys(leaves.tolist())))
        outcomes = postings.append(conn, generation, SHAPE, work)
        statuses.update(outcome.status for outcome in outcomes)
    assert set(statuses) <= set(postings.APPENDED)
    totals = counters.totals(conn, generation)
    assert totals.images == count
    assert totals.beyond == statuses[AppendStatus.BEYOND] >= count - SHAPE.leaves * SHAPE.suffixes
    found = TrieFollower(conn, generation).load().postings
    trie = Trie(SHAPE)
    slots = found.image_keys - found.image_keys.min()
    trie.insert(found.leaves, slots, found.weights, found.suffixes)
    assert len(trie.searchable_slots()) == trie.images == count
    # The paper's mode decodes only suffixes that the model knows.
    known = [len(trie.suffixes(leaf)) for leaf in range(SHAPE.leaves)]
    assert max(known) == SHAPE.suffixes


def test_a_full_leaf_reuses_the_gap_that_a_deleted_image_left(
    conn: Connection, generation: int
) -> None:
    keys = accept(conn, [f"i{n}" for n in range(5)])
    postings.append(conn, generation, SHAPE, [assignment(key, 3) for key in keys[:4]])
    delete_images(conn, ["i2"])
    outcome = postings.append(conn, generation, SHAPE, [assignment(keys[4], 3)])[0]
    assert (outcome.status, outcome.suffix) == (AppendStatus.INDEXED, 2)


def test_deleting_removes_every_trace_from_every_generation(
    conn: Connection, generation: int
) -> None:
    other = generations.create_generation(conn, SHAPE)
    keys = accept(conn, ["a", "b"])
    for number in (generation, other):
        postings.append(conn, number, SHAPE, [assignment(key, 3, 4) for key in keys])
    delete_images(conn, ["a", "b"])
    delete_images(conn, ["a", "b"])
    for number in (generation, other):
        assert counters.totals(conn, number) == counters.recount(conn, number) == counters.Totals()
        assert not postings.postings_of(conn, number, keys)
    assert counters.image_totals(conn).deleted == 2


def test_eight_writers_hand_out_unique_suffixes_without_deadlock(
    conn: Connection, database: str
) -> None:
    shape = IdentifierShape(codes=(2, 2, 2, 2), suffixes=20)
    generation = generations.create_generation(conn, shape)
    keys = accept(conn, [f"i{n}" for n in range(320)])
    failures: list[BaseException] = []
    statuses: list[AppendStatus] = []

    def write(number: int) -> None:
        generator = np.random.default_rng(number)
        try:
            with connect(database) as own:
                for start in range(number * 40, number * 40 + 40, 10):
                    # Few leaves in random order, nearly full: locks and spills meet all the time.
                    work = [
                        assignment(key, *map(int, generator.permutation(16)[:16]))
                        for key in keys[start : start + 10]
                    ]
                    statuses.extend(
                        outcome.status for outcome in postings.append(own, generation, shape, work)
                    )
                    doomed = f"i{start}"
                    delete_images(own, [doomed])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    tally = Counter(statuses)
    assert set(tally) <= {AppendStatus.INDEXED, AppendStatus.SPILLED}
    assert tally.total() == 320
    totals = counters.totals(conn, generation)
    assert totals.images == 288
    truth = counters.recount(conn, generation)
    assert (totals.images, totals.postings, totals.leaves, totals.checksum) == (
        truth.images,
        truth.postings,
        truth.leaves,
        truth.checksum,
    )
    assert totals.spilled == tally[AppendStatus.SPILLED]


def test_the_initial_load_equals_appending_one_by_one_and_leaves_out_deleted_images(
    conn: Connection, generation: int
) -> None:
    keys = np.array(accept(conn, [f"i{n}" for n in range(5)]))
    delete_images(conn, ["i4"])
    load = InitialLoad(
        leaves=np.array([1, 1, 2, 3, 3, 9, 9]),
        posted_keys=np.array([*keys, keys[0], keys[4]]),
        weights=np.array([0, 0, 0, 0, 0, -1, -1], np.float32),
        suffixes=np.array([0, 1, 0, 0, 1, -1, -1]),
        image_keys=keys,
        embeddings=np.tile(np.arange(8, dtype=np.float16), (5, 1)),
        confidences=np.zeros(5, np.float32),
    )
    assert bulk_load.bulk_append(conn, generation, load) == 4
    assert counters.totals(conn, generation) == counters.recount(conn, generation)
    assert counters.totals(conn, generation).postings == 5
    (late,) = accept(conn, ["late"])
    assert postings.append(conn, generation, SHAPE, [assignment(late, 1)])[0].suffix == 2
    with pytest.raises(UsageError, match="has images already"):
        bulk_load.bulk_append(conn, generation, load)


@pytest.mark.parametrize("image_id", ["a", "ü?!", "x" * 200])
def test_a_postings_hash_is_the_databases(conn: Connection, image_id: str) -> None:
    for leaf in (0, 7, 1 << 40):
        for is_primary in (True, False):
            row = conn.execute("SELECT posting_hash(%s, %s, %s)", (image_id, leaf, is_primary))
            own = counters.sum_of_hashes([image_id], [leaf], is_primary=is_primary)
            assert row.fetchone() == (own,)


def test_a_load_in_parts_counts_what_a_scan_counts(conn: Connection) -> None:
    rng = np.random.default_rng(0)
    first = generations.create_generation(conn, SHAPE)
    second = generations.create_generation(conn, SHAPE)
    used = [0] * SHAPE.leaves
    for part in range(3):
        keys = np.array(accept(conn, [f"{part}-{n}" for n in range(30)]))
        own = np.array([rng.permutation(SHAPE.leaves)[:3] for _ in keys])
        suffixes = np.full(own.shape, -1)
        for row, leaf in enumerate(own[:, 0].tolist()):
            suffixes[row, 0] = used[leaf]
            used[leaf] += 1
        load = InitialLoad(
            leaves=own.ravel(),
            posted_keys=np.repeat(keys, 3),
            weights=np.zeros(own.size, np.float32),
            suffixes=suffixes.ravel(),
            image_keys=keys,
            embeddings=np.ones((len(keys), 8), np.float16),
            confidences=np.zeros(len(keys), np.float32),
        )
        indexed_at = "SELECT image_key, indexed_at, ctid::text FROM image ORDER BY image_key"
        assert bulk_load.bulk_append(conn, first, load, more=True) == 30
        before = conn.execute(indexed_at).fetchall()
        assert None not in {row[1] for row in before}
        assert bulk_load.bulk_append(conn, second, load, more=True) == 30
        assert bulk_load.bulk_append(conn, second, load, more=True) == 0
        # The rows of images that were indexed are not written again.
        assert conn.execute(indexed_at).fetchall() == before
        for generation in (first, second):
            assert counters.totals(conn, generation) == counters.recount(conn, generation)
    assert counters.totals(conn, second).beyond > 0
    leaves = conn.execute("SELECT leaf, next_suffix, live FROM leaf WHERE generation = 1")
    found = {leaf: (next_suffix, live) for leaf, next_suffix, live in leaves}
    assert found == {leaf: (count, count) for leaf, count in enumerate(used) if count}


def test_a_generation_takes_only_the_steps_that_are_allowed(
    conn: Connection, generation: int
) -> None:
    with pytest.raises(UsageError, match="building"):
        generations.promote(conn, generation)
    generations.set_state(conn, generation, "shadow")
    assert generations.promote(conn, generation) is None
    live = generations.live(conn)
    assert live is not None
    assert (live.id, live.shape) == (generation, SHAPE)
    with pytest.raises(UsageError):
        generations.set_state(conn, generation, "building")
    with pytest.raises(UsageError, match="no generation 77"):
        generations.promote(conn, 77)


def test_a_switch_and_a_rollback_leave_exactly_one_live_generation(conn: Connection) -> None:
    first, second = (generations.create_generation(conn, SHAPE) for _ in range(2))
    for number in (first, second):
        generations.set_state(conn, number, "shadow")
        generations.promote(conn, number)
    assert [each.state for each in generations.generations(conn)] == ["retired", "live"]
    assert [each.id for each in generations.receiving(conn)] == [first, second]
    assert generations.promote(conn, generations.require_fallback(conn).id) == second
    assert [each.state for each in generations.generations(conn)] == ["live", "retired"]
    generations.drop(conn, second)
    assert [each.id for each in generations.receiving(conn)] == [first]


def test_two_live_generations_are_refused_by_the_database(conn: Connection) -> None:
    first, second = (generations.create_generation(conn, SHAPE) for _ in range(2))
    for number in (first, second):
        generations.set_state(conn, number, "shadow")
    generations.set_state(conn, first, "live")
    with pytest.raises(UsageError):
        generations.set_state(conn, second, "live")
    with pytest.raises(psycopg.errors.UniqueViolation):
        conn.execute("UPDATE generation SET state = 'live' WHERE id = %s", (second,))


def test_a_candidate_learns_which_images_it_misses(conn: Connection, generation: int) -> None:
    keys = accept(conn, ["a", "b", "c"])
    postings.append(conn, generation, SHAPE, [assignment(keys[0], 1)])
    delete_images(conn, ["b"])
    assert [image.image_id for image in missing_images(conn, generation)] == ["c"]


def test_freshness_is_measured_from_publishing_to_searchable(
    conn: Connection, generation: int
) -> None:
    assert freshness(conn) == Freshness(None, None)
    keys = accept(conn, ["a"])
    postings.append(conn, generation, SHAPE, [assignment(keys[0], 1)])
    record_visibility(conn, "query-1", keys)
    fresh = freshness(conn)
    assert fresh.p50_s is not None
    assert 0 <= fresh.p50_s < 60
    assert fresh.p95_s == fresh.p50_s
