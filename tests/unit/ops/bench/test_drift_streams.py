"""Delays of the drift benchmark: what was noticed too late counts as not noticed."""

from ops.bench.drift_streams import DelaySummary


def test_a_summary_has_the_least_median_and_most_images_of_the_delays_in_time() -> None:
    summary = DelaySummary.of([900, None, 2000, 1500, 2001])
    assert summary.to_json() == {"within": 3, "images": [900, 1500, 2000]}


def test_a_topic_that_was_never_noticed_in_time_has_no_images() -> None:
    assert DelaySummary.of([None, 2500]).to_json() == {"within": 0, "images": []}
