"""Accepted images and stub generations, for tests of what happens around the model."""

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
from workers.repository.image_acceptance import accept_images
from workers.repository.postings import append
from workers.runtime.services import Services

_SIDE = 8
"""Pixels of a small image's side."""


def services_at(database: str, home: Path, **settings: Any) -> Services:
    """Services on a test's database, with a home of their own."""
    return Services(Settings(home=home, database_url=database, **settings), database)


def accepted(store: ImageStore, names: Sequence[str]) -> list[ImageAccepted]:
    """Store a small image for each name, each unlike the others, and return their events."""
    return [_accepted(store, name) for name in names]


def leave_in(conn: Connection, generation: int, events: Sequence[ImageAccepted]) -> None:
    """Accept images and post them in one generation only.

    That is what an index worker does that has not loaded the others.
    """
    stub = StubAssigner.of(generations.get(conn, generation))
    with transaction(conn):
        keys = [stored.image_key for stored in accept_images(conn, events)]
        inferred = stub.infer([np.full((2, 2, 3), key % 256, np.uint8) for key in keys])
        assignments = []
        for inference, key in zip(inferred, keys, strict=True):
            assignments.append(inference.assignment(key))
        append(conn, generation, stub.shape, assignments)


def held_by(conn: Connection, generation: int) -> set[str]:
    """Ids of the images that have a primary posting in a generation."""
    primaries = conn.execute(
        """SELECT image_id FROM posting JOIN image USING (image_key)
           WHERE generation = %s AND suffix IS NOT NULL""",
        (generation,),
    )
    return {image_id for (image_id,) in primaries}


def _accepted(store: ImageStore, name: str) -> ImageAccepted:
    # Seeded by the name: the same name always has the same pixels.
    noise = np.random.default_rng(list(name.encode()))
    pixels = noise.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return ImageAccepted(
        name,
        f"file:///{name}.png",
        store.put(data.getvalue()),
        "0" * 64,
        _SIDE,
        _SIDE,
        datetime.now(UTC),
        captions=(f"picture {name}",),
    )
