"""An installation for tests of the API, and what is expected of its answers."""

import io
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
from PIL import Image

from ops.bench.stub import stub_generation
from stream.log.postgres import PostgresLog
from tests.stubs import accepted, leave_in, services_at
from workers.repository.connection import connect
from workers.runtime.services import Services


def opened(database: str, home: Path, count: int = 40, **settings: Any) -> Services:
    """Services with a live generation of so many images."""
    log = PostgresLog(database)
    log.ensure_topics()
    log.close()
    services = services_at(database, home, **settings)
    with connect(database) as conn:
        names = [f"folder/image {number}.png" for number in range(count)]
        leave_in(conn, stub_generation(conn), accepted(services.store, names))
        # Long searchable, for those who wait until they are.
        conn.execute("UPDATE image SET indexed_at = indexed_at - interval '1 hour'")
    return services


def path_of(image_id: str, rest: str = "") -> str:
    return f"/v1/images/{quote(image_id, safe='')}{rest}"


def png(seed: int = 1, side: int = 32) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def refused(response: httpx.Response, status: int) -> str:
    """The sentence of a refusal."""
    assert response.status_code == status, response.text
    document = response.json()
    assert list(document) == ["error"]
    assert 0 < len(document["error"]) <= 400
    assert document["error"].isprintable()
    return str(document["error"])


def good(response: httpx.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return response.json()
