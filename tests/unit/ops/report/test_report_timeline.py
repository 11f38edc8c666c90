"""The timeline of a report: when generations began to answer, and how jobs went."""

from datetime import UTC, datetime, timedelta

from ops.report.timeline import GenerationSwitch, find_switches
from schemas.generation_config import GenerationConfig
from schemas.identifiers import IdentifierShape
from workers.repository.generations import Generation

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def generation(
    number: int, state: str, live: float | None = None, ended: float | None = None
) -> Generation:
    """A row of the table; `live` and `ended` in hours after `BEGIN`."""
    shape = IdentifierShape(codes=(2, 2, 2, 2), suffixes=4)
    live_at = None if live is None else BEGIN + live * HOUR
    ended_at = None if ended is None else BEGIN + ended * HOUR
    config = GenerationConfig()
    return Generation(number, state, None, None, shape, config, BEGIN, live_at, ended_at)


def test_a_switch_that_a_rollback_took_from_the_table_is_seen_in_the_records() -> None:
    # Generation 1, then 2, then 1 again: the table knows 1 since hour 20 only.
    seen = [(BEGIN + hour * HOUR, 2 if 10 <= hour < 20 else 1) for hour in range(30)]
    expected = [GenerationSwitch(BEGIN + 10 * HOUR, 2), GenerationSwitch(BEGIN + 20 * HOUR, 1)]
    known = [generation(1, "live", 20), generation(2, "retired", 10, 20)]
    assert find_switches(known, seen, BEGIN + HOUR) == expected
    forgotten = [generation(1, "live", 20), generation(2, "failed")]
    assert find_switches(forgotten, seen, BEGIN) == expected
