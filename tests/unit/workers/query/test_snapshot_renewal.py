"""When a follower renews its index snapshot: after many changes or a day, one at a time."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.workers.query.engines import KeysEngine, generation, searcher
from workers.query.index_snapshot import IndexSnapshot
from workers.query.residents import FollowerContext, GenerationFollower
from workers.query.searcher import SnapshotRenewal
from workers.runtime.query_metrics import QueryMetrics


def unused(*_: object) -> Any:
    """In place of what a renewal does not need."""
    raise AssertionError("a renewal needs nothing of this")


@pytest.fixture
def follower() -> Iterator[GenerationFollower]:
    with ThreadPoolExecutor(1) as executor:
        stop = threading.Event()
        metrics = QueryMetrics()
        context = FollowerContext(
            unused, unused, executor, unused, unused, metrics, stop, accelerate=False, end=unused
        )
        yield GenerationFollower(context, generation(1))


def test_an_eighth_of_the_images_or_a_day_makes_a_snapshot_due(tmp_path: Path) -> None:
    is_due = IndexSnapshot(tmp_path, 1, cast(Any, None), least_images=10).is_due
    assert not is_due(9, 86_399, 80)
    assert is_due(10, 0, 80)
    assert not is_due(10, 0, 81)
    assert is_due(0, 86_400, 10)
    # So small an index has none.
    assert not is_due(9, 1e9, 9)


def test_a_follower_renews_one_snapshot_at_a_time_and_survives_a_failure(
    follower: GenerationFollower,
) -> None:
    asked: list[int] = []
    go_on = threading.Event()

    def is_due(changed: int, age_s: float, images: int) -> bool:
        asked.append(changed)
        return changed >= 3

    def renew() -> None:
        go_on.wait(10)
        raise OSError("no space left")

    own = searcher(KeysEngine(1))
    own.snapshot = SnapshotRenewal(is_due, renew)
    for changed in (2, 3, 7):
        follower.renew_snapshot(own, changed)
    # Two were not enough; five began a renewal, during which nobody asks whether one is due.
    assert asked == [2, 5]
    go_on.set()
    follower.wait_for_renewal()
    follower.renew_snapshot(own, 0)
    assert asked == [2, 5, 7]
    follower.wait_for_renewal()
