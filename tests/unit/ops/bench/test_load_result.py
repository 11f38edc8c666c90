"""The figures of the load benchmark."""

import pytest

from ops.bench.load_result import MemorySample, PhaseResult
from ops.bench.load_tally import LoadPhase, LoadTally, TallyKeeper

MIB = 2**20


def result(
    tally: LoadTally, counted: dict[str, int], rss_mib: list[float] | None = None
) -> PhaseResult:
    """A phase of a minute whose server had so much memory at even intervals."""
    sizes = rss_mib or [1.0]
    memory = []
    for number, size in enumerate(sizes):
        memory.append(MemorySample(100 + number * 60 / len(sizes), int(size * MIB)))
    return PhaseResult(LoadPhase("test", 60.0, 5), tally, counted, memory, 1.0, True)


def tally() -> LoadTally:
    """Two answers, a refusal and a failure of four queries."""
    keeper = TallyKeeper()
    for _ in range(4):
        keeper.begin(late_s=0.001)
    keeper.answer(10.0)
    keeper.answer(30.0)
    keeper.refuse(1.0)
    assert keeper.under_way == 1
    keeper.fail("connection closed")
    return keeper.tally(clients=5, elapsed_s=2.0, cpu_s=0.5)


def test_every_query_is_told_once_and_the_document_comes_back_as_it_was() -> None:
    seen = tally()
    assert (seen.begun, len(seen.answered_ms), len(seen.refused_ms), seen.failed) == (4, 2, 1, 1)
    assert LoadTally.from_json(seen.to_json()) == seen
    phase = LoadPhase("test", 1.0, 5, rate=2.5)
    assert LoadPhase.from_json(phase.to_json()) == phase


def test_client_and_server_agree_only_when_both_counted_the_same() -> None:
    assert result(tally(), {"200": 2, "429": 1}).agrees
    assert not result(tally(), {"200": 2, "429": 2}).agrees
    assert not result(tally(), {"200": 2}).agrees


def test_the_slope_of_memory_leaves_out_the_begin_of_a_phase() -> None:
    # Up by 50 at once, then one a tenth of a minute.
    sizes = [100.0, 150, 151, 152, 153, 154, 155, 156, 157, 158]
    assert result(tally(), {}, sizes).growth_mib_per_min == pytest.approx(10.0)
    assert result(tally(), {}, [100.0] * 10).growth_mib_per_min == pytest.approx(0.0)
    assert result(tally(), {}, [100.0]).growth_mib_per_min == 0.0


def test_the_document_tells_how_many_clients_the_system_allowed() -> None:
    document = result(tally(), {"200": 2, "429": 1}).to_json()
    assert document["clients"] == 5
    assert document["answered_ms"] == {"p50": 20.0, "p99": 29.8, "max": 30.0}
    assert document["client_cores"] == 0.25
