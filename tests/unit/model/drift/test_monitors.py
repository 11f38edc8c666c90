"""Drift monitors on synthetic streams: quiet without drift, alarming with it, at any size."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, norm

from model.drift.calibration import NullDistribution, holm_limits
from model.drift.monitors import (
    EFFECT_LIMITS,
    ArrivalWindow,
    DriftReference,
    MonitorResult,
    RecallCount,
    alarm_level,
    code_shares,
    examine,
    fit_reference,
)
from model.drift.sketches import CodeHistogram, HitShare, LeafCrowding, MeanShift, SortedValues
from schemas.errors import UsageError
from schemas.identifiers import IdentifierShape

SHAPE = IdentifierShape((6, 4, 4, 2), 32)
WIDTH, SAMPLE, POOL = 12, 400, 1200


def stream(
    rng: np.random.Generator, count: int, fresh: float = 0.0, *, queries: int = 300
) -> ArrivalWindow:
    """Arrivals of six topics, a share `fresh` of them of a seventh.

    The model assigns the seventh to a leaf of the sixth, with little confidence.
    """
    topic = rng.choice(6, count, p=(0.3, 0.25, 0.2, 0.15, 0.06, 0.04))
    new = rng.random(count) < fresh
    topic[new] = 5
    middles = np.eye(7, WIDTH) * 3
    embeddings = (middles[np.where(new, 6, topic)] + rng.normal(size=(count, WIDTH))).astype(
        np.float32
    )
    codes = np.column_stack(
        [topic, rng.integers(0, 4, count), rng.integers(0, 4, count), rng.integers(0, 2, count)]
    )
    confidences = (rng.normal(-1, 0.5, count) - 2 * new).astype(np.float32)
    agreement = rng.random(count) < np.where(new, 0.3, 0.85)
    loads = np.where(new, 30, rng.integers(1, 12, count))
    return ArrivalWindow(
        codes,
        embeddings,
        confidences,
        agreement,
        loads,
        rng.normal(size=queries).astype(np.float32),
    )


def alarms(results: tuple[MonitorResult, ...]) -> set[str]:
    return {result.monitor for result in results if result.alarm}


@pytest.fixture(scope="module")
def reference() -> DriftReference:
    return fit_reference(
        stream(np.random.default_rng(1), POOL),
        SHAPE,
        window=SAMPLE,
        expected_run=2000,
        replays=1000,
    )


def test_a_month_of_hours_without_drift_is_quiet_and_its_chances_are_what_they_say() -> None:
    raised = 0
    chances: dict[str, list[float]] = {name: [] for name in EFFECT_LIMITS}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        learned = fit_reference(
            stream(rng, POOL), SHAPE, seed=seed, window=SAMPLE, expected_run=2000, replays=400
        )
        for _ in range(120):
            results = examine(learned, stream(rng, SAMPLE))
            raised += bool(alarms(results))
            for result in results:
                chances[result.monitor].append(result.p)
    # 720 windows, 2000 expected between false alarms.
    assert raised <= 2
    # A p-value below 5% is about as frequent as that, with six references; no image came under
    # pressure in any of them.
    often = {name: float(np.mean(np.array(own) < 0.05)) for name, own in chances.items()}
    assert often.pop("suffix-pressure") == 0
    assert all(0.01 < share < 0.13 for share in often.values()), often
    assert float(np.mean(list(often.values()))) < 0.07


def test_a_tenth_of_something_new_is_noticed_in_one_window(reference: DriftReference) -> None:
    noticed = [
        alarms(examine(reference, stream(np.random.default_rng(100 + seed), SAMPLE, 0.1)))
        for seed in range(20)
    ]
    assert sum(bool(names) for names in noticed) >= 19
    assert {"embedding", "suffix-pressure"} <= set.union(*noticed)


def test_each_monitor_can_alarm(reference: DriftReference) -> None:
    novel = examine(reference, stream(np.random.default_rng(5), SAMPLE, 0.9))
    other = stream(np.random.default_rng(6), SAMPLE)
    levels = examine(
        reference, replace(other, codes=other.codes // 2, query_scores=other.query_scores + 1)
    )
    assert alarms(novel) | alarms(levels) == set(EFFECT_LIMITS)
    assert all(
        result.effect >= result.effect_limit and result.p <= result.p_limit
        for result in (*novel, *levels)
        if result.alarm
    )


@pytest.mark.parametrize("size", [200, 800])
def test_the_chance_of_a_false_alarm_does_not_depend_on_the_size_of_the_window(size: int) -> None:
    rng = np.random.default_rng(size)
    small = looks = 0
    for seed in range(4):
        learned = fit_reference(stream(rng, 1200), SHAPE, seed=seed, window=size, replays=400)
        for _ in range(50):
            results = examine(learned, stream(rng, size))
            small += sum(result.p < 0.05 for result in results)
            looks += len(results)
    assert small / looks < 0.07


def test_a_reference_survives_its_document_and_stays_small() -> None:
    pool = stream(np.random.default_rng(1), POOL)
    learned = fit_reference(pool, SHAPE, window=SAMPLE, replays=200)
    text = json.dumps(learned.to_dict())
    again = DriftReference.from_dict(json.loads(text))
    window = stream(np.random.default_rng(2), SAMPLE, 0.05)
    assert examine(again, window) == examine(learned, window)
    assert json.dumps(again.to_dict()) == text
    longer = fit_reference(
        stream(np.random.default_rng(1), 3 * POOL), SHAPE, window=SAMPLE, replays=50
    )
    assert len(json.dumps(longer.to_dict())) < 2 * len(text)


def test_monitors_without_input_say_nothing(reference: DriftReference) -> None:
    window = stream(np.random.default_rng(3), SAMPLE)
    silent = replace(window, agreement=np.zeros(0, np.bool_), query_scores=np.zeros(0, np.float32))
    assert {result.monitor for result in examine(reference, silent)} == set(EFFECT_LIMITS) - {
        "agreement",
        "query-score",
    }
    blind = fit_reference(
        replace(silent, query_scores=np.zeros(50, np.float32)), SHAPE, window=SAMPLE, replays=100
    )
    assert "query-score" not in blind.monitors


def test_a_pool_smaller_than_a_window_is_refused() -> None:
    with pytest.raises(UsageError, match="wait for more"):
        fit_reference(stream(np.random.default_rng(0), 10), SHAPE, window=11)


def test_codes_then_and_now_are_shares(reference: DriftReference) -> None:
    shares = code_shares(reference, stream(np.random.default_rng(4), SAMPLE))
    for level, count in enumerate(SHAPE.codes, start=1):
        assert len(shares[f"id{level}"]["now"]) == count
        assert (
            sum(shares[f"id{level}"]["then"])
            == pytest.approx(sum(shares[f"id{level}"]["now"]))
            == pytest.approx(1)
        )


ALARM = MonitorResult("id1", 0.5, 0.1, 1e-9, 1e-5, True)
CALM = MonitorResult("id1", 0.0, 0.1, 0.4, 1e-5, False)


@pytest.mark.parametrize(
    ("result", "then", "now", "level"),
    [
        (CALM, RecallCount(190, 200), RecallCount(20, 200), "none"),
        (ALARM, RecallCount(190, 200), RecallCount(189, 200), "ticket"),
        (ALARM, RecallCount(190, 200), RecallCount(150, 200), "page"),
        (ALARM, RecallCount(150, 200), RecallCount(190, 200), "ticket"),
        (ALARM, RecallCount(95, 100), RecallCount(91, 100), "ticket"),
        (ALARM, RecallCount(9800, 10000), RecallCount(9600, 10000), "ticket"),
        (ALARM, None, RecallCount(0, 200), "ticket"),
        (ALARM, RecallCount(190, 200), RecallCount(0, 0), "ticket"),
    ],
)
def test_a_page_needs_recall_to_fall_by_three_points_and_not_by_chance(
    result: MonitorResult, then: RecallCount | None, now: RecallCount | None, level: str
) -> None:
    assert alarm_level([CALM, result], then, now) == level


def test_effects_are_what_they_are_called() -> None:
    halves = CodeHistogram.of(np.array([0] * 50 + [1] * 50), 4)
    assert halves.distance(np.array([0, 1] * 10)) == pytest.approx(0, abs=1e-12)
    assert halves.distance(np.array([2, 3] * 10)) == pytest.approx(1)
    assert SortedValues.of(np.arange(100.0)).distance(np.arange(25.0, 125.0)) == pytest.approx(
        0.25**2
    )
    assert HitShare.of(np.arange(10) < 5).distance(np.ones(3)) == pytest.approx((np.pi / 2) ** 2)
    assert HitShare.of(np.arange(10) < 5, rising=True).distance(np.zeros(3)) == 0
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20_000, 3)).astype(np.float32) * np.array([1, 5, 9], np.float32)
    moved = MeanShift.of(rows).distance(rows + np.array([0, 10, 0], np.float32))
    assert moved == pytest.approx(4, rel=0.05)
    leaves = rng.integers(0, 400, 20_000)
    assert LeafCrowding.of(leaves).distance(leaves // 2) == pytest.approx(np.log(2) ** 2, rel=0.05)


def test_a_calibrated_chance_errs_towards_silence_far_beyond_the_replays() -> None:
    null = NullDistribution.of(np.random.default_rng(0).chisquare(9, 4000), 1.0)
    assert null.p_value(-1) == 1
    assert null.p_value(float(norm.ppf(0.5)) + 8.34) == pytest.approx(0.5, abs=0.05)
    # The 1e-6 quantile of that distribution is 45.1.
    assert 1e-6 < null.p_value(45.1) < 1e-3
    still = NullDistribution.of(np.zeros(100), 1.0)
    assert still.p_value(0.0) == 1
    assert still.p_value(30.0) < 1e-6


def test_holm_keeps_the_family_and_stops_at_the_first_failure() -> None:
    assert holm_limits([0.5, 0.001, 0.02], 0.06) == pytest.approx([0.06, 0.02, 0.03])
    assert holm_limits([0.04, 0.04, 0.04], 0.06) == pytest.approx([0.02] * 3)
    rng = np.random.default_rng(0)
    false = sum(
        any(p <= limit for p, limit in zip(ps, holm_limits(ps, 0.05), strict=True))
        for ps in rng.random((4000, 6)).tolist()
    )
    assert false <= binom.ppf(0.999, 4000, 0.05)


def test_what_is_least_like_the_reference_comes_first(reference: DriftReference) -> None:
    rng = np.random.default_rng(8)
    embeddings = np.concatenate([stream(rng, 360).embeddings, stream(rng, 40, 1.0).embeddings])
    order = reference.by_novelty(embeddings)
    assert sorted(order.tolist()) == list(range(400))
    # A tenth of all; by chance a tenth of the first would be too.
    assert np.mean(order[:40] >= 360) > 0.4
    assert np.array_equal(
        DriftReference.from_dict(json.loads(json.dumps(reference.to_dict()))).by_novelty(
            embeddings
        ),
        order,
    )
