"""Accepted images and stub generations for tests of what happens around the model."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ops.bench.stub import StubAssigner
from schemas.events import ImageAccepted
from schemas.settings import Settings
from stream.images.store import ImageStore
from workers.repository import generations
from workers.repository.connection import Connection, transaction
from workers.repository.images import accept_images
from workers.repository.postings import append
from workers.runtime.services import Services


def services_at(database: str, home: Path, **settings: Any) -> Services:
    """Services on a test's database, with a home of their own."""
    return Services(Settings(home=home, database_url=database, **settings), database)


def accepted(store: ImageStore, names: Sequence[str]) -> list[ImageAccepted]:
    """Events of small images that the store holds, each unlike the others."""
    events = []
    for name in names:
        pixels = np.random.default_rng(list(name.encode())).integers(
            0, 256, (8, 8, 3), dtype=np.uint8
        )
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        uri = store.put(data.getvalue())
        events.append(
            ImageAccepted(
                name,
                f"file:///{name}.png",
                uri,
                "0" * 64,
                8,
                8,
                datetime.now(UTC),
                captions=(f"picture {name}",),
            )
        )
    return events


def leave_in(conn: Connection, generation: int, events: Sequence[ImageAccepted]) -> None:
    """Accept images and post them in one generation only, as a worker does that has not loaded the others."""
    found = generations.get(conn, generation)
    stub = StubAssigner(found.shape, generation)
    with transaction(conn):
        keys = [stored.image_key for stored in accept_images(conn, events)]
        inferred = stub.infer([np.full((2, 2, 3), key % 256, np.uint8) for key in keys])
        append(
            conn,
            generation,
            stub.shape,
            [one.assignment(key) for one, key in zip(inferred, keys, strict=True)],
        )


def held_by(conn: Connection, generation: int) -> set[str]:
    """Ids of the images that have a primary posting in a generation."""
    found = conn.execute(
        "SELECT image_id FROM posting JOIN image USING (image_key) WHERE generation = %s AND suffix IS NOT NULL",
        (generation,),
    )
    return {image_id for (image_id,) in found}
