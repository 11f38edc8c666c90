"""Hostile events and images against real workers: each ends somewhere, in any order."""

from ops.bench.fuzz import FuzzConfig, fuzz


def test_whatever_is_sent_each_event_ends_somewhere_and_the_order_does_not_matter() -> None:
    result = fuzz(FuzzConfig(events=500, images=60, seed=3))
    account = result.flow.account
    assert sum(account.outcomes.values()) == result.events == 560
    assert account.outcomes.keys() == {"indexed", "replaced", "deleted", "dead-lettered"}
    assert account.spilled == 0
    assert result.flow.workers_ended == ()
    assert len({result.flow.fingerprint, *result.replays}) == 1
    assert len(result.replays) == 3
    assert result.passed
