"""The plan for a larger index: what it computes from what one image costs."""

import pytest

from ops.bench.growth import SIZES, Slopes, planned


def test_a_plan_grows_with_the_images_from_what_is_there_without_any() -> None:
    gib = float(1 << 30)
    slopes = Slopes(
        trie_bytes=30.0,
        trie_base_bytes=gib,
        stored_bytes={"image": 600.0, "posting": 400.0},
        event_bytes={"sigma.images.arrived": 500.0, "sigma.images.accepted": 700.0},
        append_s=0.001,
        bulk_postings_s=50_000.0,
    )
    rows = dict(planned(slopes))
    assert rows["memory of a query worker's trie, GiB"] == pytest.approx(
        [1 + 30 * size / gib for size in SIZES]
    )
    stored = rows["PostgreSQL, one generation, width 128, GiB"]
    assert stored == pytest.approx([1000 * size / gib for size in SIZES])
    # Arrivals are kept for 30 days of a year, accepted images for seven.
    kept = (500 * 30 + 700 * 7) / 365
    assert rows["Kafka, one copy, GiB"] == pytest.approx([kept * size / gib for size in SIZES])
    cores = rows["share of a core for their postings, PostgreSQL's too"]
    assert cores == pytest.approx([0.001 * size / 365 / 86_400 for size in SIZES])
    assert rows["minutes of a core to load a new generation by COPY"] == (1.0, 10.0, 100.0)
    assert rows["index workers, at 5 images a second each"] == (1, 1, 1)
