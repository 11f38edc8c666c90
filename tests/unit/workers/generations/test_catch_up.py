"""Catching up and switching: which images are assigned, in which steps, and when a switch waits."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import cast

import numpy as np
import pytest

from model.decoding.leaves import Leaves
from schemas.errors import RejectInputError, UsageError
from schemas.identifiers import IdentifierShape
from schemas.records import Assignment, ByteArray, Posting
from stream.images.store import ImageStore
from tests.unit.workers.generation_rows import SHAPE, generation
from workers.generations import catch_up
from workers.generations.catch_up import BATCH, CatchUp, images_up_to, placeable
from workers.generations.image_assigner import ImageAssigner
from workers.generations.inferred import Inferred
from workers.generations.switching import may_assign_under_lock, require_promotable
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.repository.postings import AppendOutcome, AppendStatus
from workers.repository.stored_images import StoredImage


def image(key: int) -> StoredImage:
    return StoredImage(
        image_key=key,
        image_id=f"image {key}",
        version=1,
        state="accepted",
        uri="",
        normalized_uri=str(key),
        captions=(),
        test_captions=(),
        split=None,
        arrived_at=datetime(2026, 1, 1, tzinfo=UTC),
        indexed_at=None,
    )


class Assigner:
    """Gives every picture leaf 0."""

    shape: IdentifierShape = SHAPE

    def infer(self, pictures: Sequence[ByteArray]) -> list[Inferred]:
        leaves = Leaves((Posting(0, 0.0),), (), 0.0)
        return [Inferred(leaves, np.zeros(4, np.float16)) for _ in pictures]


class Database:
    """The images that a generation lacks. Some have no picture."""

    def __init__(self, keys: Sequence[int]) -> None:
        self.keys = list(keys)
        self.lost: set[int] = set()
        self.batches: list[list[int]] = []
        self.loaded = 0

    def missing_images(
        self, conn: Connection, generation: int, *, after: int, limit: int
    ) -> list[StoredImage]:
        return [image(key) for key in sorted(self.keys) if key > after][:limit]

    def read_picture(self, store: ImageStore, uri: str) -> ByteArray:
        if int(uri) in self.lost:
            raise RejectInputError("damaged-store", "the picture is lost")
        return np.zeros((1, 1, 3), np.uint8)

    def append(
        self,
        conn: Connection,
        generation: int,
        shape: IdentifierShape,
        assignments: Sequence[Assignment],
    ) -> list[AppendOutcome]:
        keys = [assignment.image_key for assignment in assignments]
        self.batches.append(keys)
        outcomes = []
        for key in keys:
            self.keys.remove(key)
            outcomes.append(AppendOutcome(key, AppendStatus.INDEXED, 0, 0))
        return outcomes

    def load(self, generation: Generation) -> ImageAssigner:
        self.loaded += 1
        return Assigner()


def catch_up_with(database: Database, monkeypatch: pytest.MonkeyPatch) -> CatchUp:
    for name in ("missing_images", "read_picture", "append"):
        monkeypatch.setattr(catch_up, name, getattr(database, name))
    return CatchUp(cast(Connection, None), generation(1), cast(ImageStore, None), database.load)


def test_everything_missing_is_assigned_in_ascending_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = Database(range(1, 2 * BATCH + 3))
    assert catch_up_with(database, monkeypatch).run() == 2 * BATCH + 2
    assert [len(batch) for batch in database.batches] == [BATCH, BATCH, 2]
    assert list(chain(*database.batches)) == list(range(1, 2 * BATCH + 3))
    assert database.loaded == 1


def test_a_bounded_run_leaves_older_and_newer_images_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = Database(range(1, 11))
    assert catch_up_with(database, monkeypatch).run(after=3, until=7) == 4
    assert database.batches == [[4, 5, 6, 7]]


def test_no_model_is_loaded_when_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database([9])
    assert catch_up_with(database, monkeypatch).run(until=8) == 0
    assert (database.loaded, database.batches) == (0, [])


def test_unplaceable_images_are_tried_once_and_end_no_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = Database(range(1, BATCH + 3))
    database.lost = {1, 2}
    sweep = catch_up_with(database, monkeypatch)
    assert sweep.run() == BATCH
    assert sweep.unplaceable == {1, 2}
    database.keys.append(BATCH + 3)
    assert sweep.run() == 1
    assert (sweep.assigned, database.batches[-1]) == (BATCH + 1, [BATCH + 3])
    assert sweep.missing() == []


def test_unplaceable_images_do_not_hide_those_behind_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = Database(range(1, BATCH + 6))
    sweep = catch_up_with(database, monkeypatch)
    sweep.unplaceable = set(range(1, BATCH + 1))
    assert [missing.image_key for missing in sweep.missing()] == list(range(BATCH + 1, BATCH + 6))


def test_images_are_chosen_by_key_in_their_order() -> None:
    images = [image(key) for key in (2, 5, 9)]
    assert images_up_to(images, None) == images
    assert [chosen.image_key for chosen in images_up_to(images, 5)] == [2, 5]
    assert [chosen.image_key for chosen in placeable(images, {5})] == [2, 9]


@pytest.mark.parametrize("state", ["building", "failed", "live"])
def test_only_shadow_and_retired_generations_can_become_live(state: str) -> None:
    with pytest.raises(UsageError, match=f"must be shadow or retired .* {state}"):
        require_promotable(generation(4, state))
    require_promotable(generation(4, "shadow"))
    require_promotable(generation(4, "retired"))


def test_arrivals_wait_for_one_batch_in_the_last_attempt_only() -> None:
    assert may_assign_under_lock(BATCH - 1, last_attempt=True)
    assert not may_assign_under_lock(BATCH - 1, last_attempt=False)
    assert not may_assign_under_lock(BATCH, last_attempt=True)
    assert not may_assign_under_lock(0, last_attempt=True)
