"""The switch benchmark: the order of its moves, and what its document says."""

from dataclasses import replace

from ops.bench.load_client import QueryTiming
from ops.bench.switch import SwitchConfig
from ops.bench.switch_result import AnswerAudit, Move, QueryLatency, SwitchBenchResult

FLAWLESS = SwitchBenchResult(
    model="stub",
    settled=True,
    images=80,
    answers=AnswerAudit(
        queries=4,
        failed=0,
        failures=[],
        mixed=0,
        empty=0,
        generations_that_answered=2,
        missing={2: 0, 3: 0},
    ),
    quiet=QueryLatency(p50=10.0, p95=18.0, p99=20.0, queries=2),
    switching=QueryLatency(p50=10.0, p95=22.0, p99=25.0, queries=2),
    moves=[Move("switch", 0.2, 0.5), Move("switch", 0.4, 0.4567), Move("rollback", 0.1, 0.3)],
)


def test_rollbacks_are_spread_between_the_switches() -> None:
    moves = SwitchConfig(switches=4, rollbacks=1).moves
    assert moves == ["switch", "switch", "rollback", "switch", "switch"]
    default = SwitchConfig().moves
    assert (default.count("switch"), default.count("rollback")) == (10, 3)
    assert default[0] == default[-1] == "switch"


def test_latency_counts_the_answered_queries_that_were_due_in_the_phase() -> None:
    timings = [
        QueryTiming(due_s=1.0, took_ms=10.0, generation=1),
        QueryTiming(due_s=2.0, took_ms=20.0, generation=1),
        QueryTiming(due_s=2.5, took_ms=0.0, generation=None, error="refused"),
        QueryTiming(due_s=3.0, took_ms=500.0, generation=1),
    ]
    latency = QueryLatency.between(timings, 1.0, 3.0)
    assert (latency.p50, latency.queries) == (15.0, 2)


def test_the_document_has_the_slowest_of_each_kind_of_move() -> None:
    document = FLAWLESS.to_json()
    assert (document["switches"], document["rollbacks"]) == (2, 1)
    assert document["switch_s"] == {"command": 0.4, "until_served": 0.5}
    assert document["rollback_s"] == {"command": 0.1, "until_served": 0.3}
    assert document["p99_ratio"] == 1.25
    assert document["missing"] == {"2": 0, "3": 0}
    assert document["quiet_ms"] == {"p50": 10.0, "p95": 18.0, "p99": 20.0, "queries": 2}


def test_a_failed_query_a_mixed_answer_a_missing_image_or_unsettled_events_fail_it() -> None:
    answers = FLAWLESS.answers
    assert FLAWLESS.passed
    assert not replace(FLAWLESS, settled=False).passed
    assert not replace(FLAWLESS, answers=replace(answers, failed=1)).passed
    assert not replace(FLAWLESS, answers=replace(answers, mixed=1)).passed
    assert not replace(FLAWLESS, answers=replace(answers, missing={2: 0, 3: 1})).passed
