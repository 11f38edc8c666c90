"""Encoders that people have, from a folder through train, ingest, query and evaluate."""

import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from model.network.encoders.pretrained import PretrainedEncoder
from model.progress import quiet
from ops.evaluation import evaluate
from schemas.records import ManifestEntry
from stream.images.decode_pool import DecodeLimits
from tests.encoder_checkpoints import CHECKPOINTS
from tests.integration.small_training import fill, request, tiny_services
from tests.line import line_of
from tests.unit.model.conftest import TEXTS
from workers.generations.catch_up import CatchUp
from workers.generations.image_assigner import assigner_loader
from workers.generations.model_assigner import load_generation_checkpoint
from workers.query.loading import live_generation, open_searcher
from workers.repository.connection import Connection
from workers.repository.stored_images import images_by_id, images_by_key
from workers.repository.training_data import embeddings_of
from workers.runtime.pictures import read_picture
from workers.trainer.seeding import seed_images
from workers.trainer.trainer import train

SEEN, LATER = 12, 4


@pytest.mark.parametrize("family", ["clip", "open_clip", "siglip", "siglip2", "jina_clip"])
def test_a_folder_serves_as_encoder_from_training_to_evaluation(
    tmp_path: Path, database: str, conn: Connection, family: str
) -> None:
    services = tiny_services(tmp_path / "home", database)
    source = CHECKPOINTS[family](tmp_path / "source")
    keys = fill(services, conn, SEEN)
    trained = train(services, None, request(services, encoder=str(source)), quiet)
    assert trained.state == "live"
    assert trained.record.encoder_source == str(source)
    # All that the generation needs is in its own folder from here on.
    shutil.rmtree(source)

    keys += fill(services, conn, LATER, first=SEEN)
    generation = live_generation(conn)
    load = assigner_loader(services.checkpoints, services.settings.retrieval)
    CatchUp(conn, generation, services.store, load).run()

    checkpoint = load_generation_checkpoint(services.checkpoints, generation)
    encoder = checkpoint.encoder
    assert isinstance(encoder, PretrainedEncoder)
    assert encoder.width == checkpoint.codebook.width
    stored = embeddings_of(conn, generation.id, np.array(keys))
    assert stored.present.all()
    images = images_by_key(conn, keys)
    pictures = [read_picture(services.store, images[key].normalized_uri) for key in keys]
    # The pictures of the store, not the small squares that the backbone is trained on.
    np.testing.assert_allclose(stored.embeddings, encoder.embed_images(pictures), atol=2e-3)

    searcher = open_searcher(services, generation)
    assert searcher.engine.encoder is encoder
    (answer,) = searcher.search([TEXTS[0]], 5)
    assert answer.hits
    entries = []
    for number in range(SEEN + LATER):
        entries.append(
            ManifestEntry(
                image_id=f"image {number:03}", path="/nowhere", test_captions=(TEXTS[number % 4],)
            )
        )
    evaluation = evaluate(searcher, conn, entries, limit=None, seed=0)
    searcher.close()
    assert evaluation.gallery == SEEN + LATER
    assert set(evaluation.splits) == {"seen", "unseen"}
    assert evaluation.invalid_identifiers == 0


def test_an_encoder_that_reads_640_px_gets_pictures_of_that_size_from_training_and_intake(
    tmp_path: Path, database: str, conn: Connection
) -> None:
    services = tiny_services(tmp_path / "home", database)
    source = CHECKPOINTS["clip"](tmp_path / "source", 640)
    with line_of(services, conn) as line:
        entries = []
        for number, caption in enumerate(TEXTS * 3):
            path = line.picture(f"seen {number}", size=(1200, 900)).removeprefix("file://")
            entries.append(ManifestEntry(f"seen {number}", unquote(path), captions=(caption,)))
        line.arrive("before", uri=line.picture("before", size=(1200, 900)))
        line.run()
        begun = request(services, encoder=str(source), until="codebook")
        assert train(services, entries, begun, quiet).record.encoder_px == 640
        # What is stored is not decoded again: every file is larger than this allows.
        again = seed_images(conn, services.store, DecodeLimits(max_bytes=1), entries, quiet)
        assert (len(again.rows), again.rejected) == (len(entries), ())
        line.arrive("after", uri=line.picture("after", size=(1200, 900)))
        line.run()
    # The shorter side fills the 640 px that the encoder reads.
    shapes = {}
    for name in ("before", "seen 0", "after"):
        image = images_by_id(conn, [name])[name]
        shapes[name] = read_picture(services.store, image.normalized_uri).shape[:2]
    assert shapes == {"before": (336, 448), "seen 0": (641, 854), "after": (641, 854)}


def test_a_refresh_and_a_resumed_training_keep_the_encoder(
    tmp_path: Path, database: str, conn: Connection
) -> None:
    services = tiny_services(tmp_path / "home", database)
    source = CHECKPOINTS["clip"](tmp_path / "source")
    fill(services, conn, SEEN)
    begun = request(services, encoder=str(source), until="codebook")
    assert train(services, None, begun, quiet).state == "building"
    shutil.rmtree(source)
    first = train(services, None, request(services, resume=True), quiet)
    assert (first.state, first.record.encoder_source) == ("live", str(source))

    fill(services, conn, LATER, first=SEEN)
    load = assigner_loader(services.checkpoints, services.settings.retrieval)
    CatchUp(conn, live_generation(conn), services.store, load).run()
    refreshed = train(services, None, request(services, mode="refresh"), quiet)
    assert refreshed.state == "shadow"
    assert refreshed.record.encoder_source == str(source)
    folder = services.checkpoints / f"g{refreshed.generation}" / "encoder"
    parent = services.checkpoints / f"g{first.generation}" / "encoder"
    # Generations share the weights on disk where the file system lets them.
    assert (folder / "model.safetensors").samefile(parent / "model.safetensors")
