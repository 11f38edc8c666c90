"""Training from the store: full, refresh and re-clustering, gates, resuming after a kill, one at a time."""

from pathlib import Path

import numpy as np
import pytest

from model.progress import quiet
from schemas.errors import RefuseToStartError, RetryLaterError, UsageError, WorkFailedError
from tests.integration.small_training import fill, request, tiny_services
from workers.repository import counters, generations, postings
from workers.repository.connection import Connection, connect
from workers.repository.training import claim_trainer, held_images
from workers.services import Services
from workers.trainer import train

SEEN, LATER = 24, 8


@pytest.fixture
def services(tmp_path: Path, database: str) -> Services:
    return tiny_services(tmp_path / "home", database)


def test_smoke(services: Services, conn: Connection) -> None:
    import time

    fill(services, conn, SEEN)
    t = time.time()
    done = train(services, None, request(services), quiet)
    print(done, time.time() - t)
    g = generations.get(conn, done.generation)
    print(g)
    assert counters.totals(conn, 1) == counters.recount(conn, 1)
    held = held_images(conn, 1)
    assert held.trained.all()
    keys = fill(services, conn, LATER, SEEN)
    from workers.append import Appender
    from workers.trainer import catch_up

    catch_up(services, conn, Appender.load(services, generations.get(conn, 1)), quiet)
    t = time.time()
    done = train(services, None, request(services, mode="refresh", seed=2), quiet)
    print(done, time.time() - t)
    print(generations.get(conn, 2))
    assert counters.totals(conn, 2) == counters.recount(conn, 2)
    a, b = held_images(conn, 1), held_images(conn, 2)
    print(a.trained, b.trained, a.leaves - b.leaves)
