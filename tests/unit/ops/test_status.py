"""Status: what it raises an alarm for, and its document."""

from datetime import UTC, datetime

import pytest

from ops.status import (
    MAX_FRESHNESS_S,
    MAX_PENDING,
    InstallationStatus,
    PendingImages,
    candidate_alarms,
    index_alarms,
)
from schemas.generation_config import GateVerdict, GenerationConfig
from schemas.identifiers import IdentifierShape
from workers.repository.counters import ImageTotals, Totals
from workers.repository.freshness import Freshness
from workers.repository.generations import Generation

SHAPE = IdentifierShape((4, 4, 2, 2), 16)


def generation(number: int, state: str, gate: GateVerdict | None = None) -> Generation:
    moment = datetime(2026, 11, 25, tzinfo=UTC)
    config = GenerationConfig(gate=gate)
    return Generation(number, state, "abc", None, SHAPE, config, moment, None, None)


LIVE = generation(1, "live")


def test_nothing_is_wrong_at_the_limits() -> None:
    assert index_alarms(LIVE, Totals(), MAX_PENDING, MAX_FRESHNESS_S) == []
    assert index_alarms(LIVE, Totals(), 0, None) == []


def test_each_thing_that_is_wrong_is_told_with_what_to_do() -> None:
    alarms = index_alarms(None, Totals(no_room=3), MAX_PENDING + 1, MAX_FRESHNESS_S + 1)
    alarms += index_alarms(LIVE, Totals(images=40, beyond=2), 0, None)
    assert [alarm.split(":")[0] for alarm in alarms] == [
        "1001 images wait to be indexed",
        "images need 6.0 s (p95) to become searchable, 5 s are allowed",
        "3 images were left out by an earlier version, because their leaves were full",
        "2 images found their leaves full, generation 1 is meant for 32",
    ]


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        (None, None),
        (GateVerdict(passed=True, against=1), "passed its gate and waits"),
        (GateVerdict(passed=False, against=1), "was refused by its gate"),
        (GateVerdict(passed=False, against=9), None),
    ],
)
def test_candidates_with_a_verdict_wait_for_a_person(
    gate: GateVerdict | None, told: str | None
) -> None:
    alarms = candidate_alarms([LIVE, generation(2, "shadow", gate)], LIVE)
    if told is None:
        assert alarms == []
    else:
        (alarm,) = alarms
        assert told in alarm
    assert candidate_alarms([LIVE, generation(2, "retired", gate)], LIVE) == []


def test_the_document_counts_images_by_where_they_are() -> None:
    status = InstallationStatus(
        LIVE,
        [LIVE],
        Totals(images=40, postings=100, leaves=9, spilled=2),
        ImageTotals(rejected=3, deleted=4),
        7,
        PendingImages(intake=5, outbox=1, index=2, generation=3),
        Freshness(0.12345, None),
        ("look here",),
    )
    assert status.to_json() == {
        "generation": 1,
        "generations": [{"id": 1, "state": "live", "codebook": "abc"}],
        "images": {"indexed": 40, "rejected": 3, "deleted": 4, "pending": 11},
        "dead_letters": 7,
        "lag": {"intake": 5, "outbox": 1, "index": 2, "generation": 3},
        "trie": {"images": 40, "leaves": 9, "postings": 100, "checksum": "0" * 16},
        "spilled": 2,
        "room": {"comfortable": 32, "share": 1.25, "beyond": 0},
        "freshness_s": {"p50": 0.123, "p95": None},
        "alarms": ["look here"],
    }
