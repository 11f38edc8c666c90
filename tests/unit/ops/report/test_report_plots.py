"""What the plots draw: long lines are thinned without losing an alarm, histograms are folded."""

import warnings
from datetime import UTC, datetime, timedelta

import pytest
from matplotlib.figure import Figure

from ops.report.drift_plots import fold_codes, monitor_lines
from ops.report.plotting import time_axis
from ops.report.recall_plots import recall_lines
from ops.report.recorded_runs import DriftCheck, ProbeRun
from schemas.job_results import (
    CohortRecall,
    DriftReportResult,
    MonitorReading,
    RecallProbeResult,
)

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def probe(hour: int) -> ProbeRun:
    """Recall alternates between 0.8 and 0.9; generation 2 goes live at hour 600."""
    recall = CohortRecall(50, {"R@10": 0.9 if hour % 2 else 0.8}, {"R@10": 1.0})
    generation = 1 if hour < 600 else 2
    return ProbeRun(BEGIN + hour * HOUR, RecallProbeResult(generation, {"hour": recall}))


def test_folding_keeps_the_sum_and_the_order() -> None:
    shares = [number / 5050 for number in range(1, 101)]
    folded = fold_codes(shares, 64)
    assert len(folded) == 50
    assert sum(folded) == pytest.approx(1)
    assert folded[0] == pytest.approx(3 / 5050)
    assert fold_codes(shares[:64], 64) == shares[:64]


def test_a_long_line_of_probe_runs_is_thinned_to_means_and_breaks_at_a_switch() -> None:
    probes = [probe(hour) for hour in range(1000)]
    end = BEGIN + 1000 * HOUR
    lines = recall_lines(probes, "hour", BEGIN, end)
    assert len(lines) == 2
    points = [point for line in lines for point in line]
    assert 60 <= len(points) <= 92
    assert all(point.ours == pytest.approx(0.85, abs=0.01) for point in points)
    assert all(point.low < point.ours < point.high for point in points)
    assert lines[0][-1].at < BEGIN + 600 * HOUR <= lines[1][0].at
    assert recall_lines(probes, "day", BEGIN, end) == []


def test_thinning_the_monitors_loses_no_alarm() -> None:
    calm = MonitorReading("id1", 0.1, 0.2, 0.5, 0.01, alarm=False)
    alarm = MonitorReading("id1", 0.3, 0.2, 0.001, 0.01, alarm=True)
    checks = []
    for hour in range(2000):
        reading = alarm if hour == 777 else calm
        checks.append(DriftCheck(BEGIN + hour * HOUR, DriftReportResult(1, 100, (reading,))))
    (line,) = monitor_lines(checks, "id1", BEGIN, BEGIN + 2000 * HOUR)
    assert len(line) <= 121
    assert [at for at, reading in line if reading.alarm] == [BEGIN + 777 * HOUR]


def test_an_effect_without_a_limit_is_beyond_it_unless_it_is_nothing() -> None:
    assert MonitorReading("m", 0.1, 0.0, None, None, alarm=False).ratio == float("inf")
    assert MonitorReading("m", 0.0, 0.0, None, None, alarm=False).ratio == 0


@pytest.mark.parametrize("hours", [1, 2, 7, 25, 40, 48, 100, 24 * 64, 24 * 400, 24 * 600, 24 * 720])
def test_a_time_axis_of_any_length_has_a_few_ticks_and_gives_no_warning(hours: int) -> None:
    axes = Figure().subplots()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        time_axis(axes, BEGIN, BEGIN + hours * HOUR)
        ticks = axes.get_xticks()
    low, high = axes.get_xlim()
    assert 1 <= sum(low <= tick <= high for tick in ticks) <= 5
