"""The drift report with a real model: it waits for its reference and asks known items."""

from model.drift.monitors import NOVEL_SHARE
from ops.cli.context import open_database
from ops.embedded.database import open_services
from ops.jobs.drift_report import novel_recall
from schemas.settings import Settings
from tests.acceptance.conftest import TRAINED, Home
from workers.query.loading import open_searcher
from workers.repository.connection import fetch_rows
from workers.repository.generations import live


def test_known_items_are_asked_of_the_live_generation(home: Home) -> None:
    (run,) = home.ok("jobs", "run", "drift-report")["runs"]
    assert run["outcome"] == "done"
    assert run["figures"]["why"] == "calibrating: 0 of 2000 reference images have arrived"
    with open_services(Settings(home=home.folder)) as opened, open_database(opened, "test") as conn:
        generation = live(conn)
        assert generation is not None
        page = fetch_rows(conn, "image_page", generation=generation.id, after=0, amount=TRAINED)
        keys = [key for key, *_ in page]
        recall = novel_recall(
            conn, generation, keys, lambda generation: open_searcher(opened, generation)
        )
    assert recall is not None
    # Held-out captions of images that the model was trained on.
    assert recall.queries == round(NOVEL_SHARE * len(keys))
    assert recall.hits > recall.queries / 2
