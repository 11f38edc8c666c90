"""Accepted images and stub generations for tests of what happens around the model."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from schemas.events import ImageAccepted
from schemas.settings import Settings
from stream.images import ImageStore
from workers.repository.connection import Connection
from workers.services import Services


def services_at(database: str, home: Path, **settings: object) -> Services:
    """Services on a test's database, with a home of their own."""
    return Services(Settings(home=home, database_url=database, **settings), database)  # type: ignore[arg-type]


def accepted(store: ImageStore, names: Sequence[str]) -> list[ImageAccepted]:
    """Events of small images that the store holds, each unlike the others."""
    events = []
    for name in names:
        pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        uri = store.put(data.getvalue())
        events.append(ImageAccepted(name, f"file:///{name}.png", uri, "0" * 64, 8, 8, datetime.now(UTC), captions=(f"picture {name}",)))
    return events


def held_by(conn: Connection, generation: int) -> set[str]:
    """Ids of the images that have a primary posting in a generation."""
    found = conn.execute(
        "SELECT image_id FROM posting JOIN image USING (image_key) WHERE generation = %s AND suffix IS NOT NULL", (generation,)
    )
    return {image_id for (image_id,) in found}
