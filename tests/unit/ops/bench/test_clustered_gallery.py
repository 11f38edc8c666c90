"""The clustered gallery finds what exact search finds, also while its images come and go."""

from pathlib import Path

import numpy as np

from ops.bench.clustered_gallery import RESULTS, ClusteredGallery


def test_a_clustered_gallery_finds_what_exact_search_finds_before_and_after_churn(
    tmp_path: Path,
) -> None:
    gallery = ClusteredGallery(2000, 32, 0, tmp_path)
    texts = gallery.texts(20, 0)
    assert gallery.recall(texts) > 0.8
    gallery.change(300, 500)
    asked = 0
    while not gallery.updates.empty():
        waited_ms, took_ms = gallery.ask(texts[asked % 20])
        assert 0 <= waited_ms <= took_ms
        asked += 1
    assert asked
    assert gallery.engine.images == 1800
    # The oldest have gone, and slots are used again.
    assert (gallery.engine.gallery.slots(np.arange(1, 501)) == -1).all()
    assert (gallery.engine.gallery.slots(np.arange(501, 2301)) >= 0).all()
    (answer,) = gallery.searcher.search(gallery.texts(1, 1), RESULTS)
    assert len(answer.hits) == RESULTS
    gallery.engine.close()
