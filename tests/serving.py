"""A query server with the stub model, in this process, for tests of answering."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from ops.api_maintenance import api_maintenance
from ops.bench.stub import StubAssigner, shadow_generation, stub_generation
from ops.bench.stub_query import stub_searcher_loader
from schemas.errors import SigmaError
from tests.stubs import accepted, leave_in
from workers.api.maintenance import Maintenance
from workers.generations.catch_up import CatchUp
from workers.query import http
from workers.query.pending import PendingQuery
from workers.query.searcher import AnsweredQuery
from workers.query.server import QueryServer
from workers.query.updates import LoadSearcher
from workers.repository import generations
from workers.repository.connection import Connection
from workers.runtime.process import bind
from workers.runtime.query_metrics import QueryMetrics
from workers.runtime.services import Services

PATIENCE_S = 60.0


@dataclass(eq=False)
class DeadThreads:
    """Which threads died; in place of the end of the process."""

    names: list[str] = field(default_factory=list)

    def __call__(self, thread: str, error: BaseException) -> None:
        self.names.append(thread)


@contextmanager
def serving(
    services: Services, load: LoadSearcher | None = None, deaths: DeadThreads | None = None
) -> Iterator[tuple[QueryServer, QueryMetrics]]:
    """A running server, with the stub model unless another loader is given."""
    metrics = QueryMetrics()
    died = deaths or DeadThreads()
    server = QueryServer(
        services,
        "test",
        metrics,
        load or stub_searcher_loader(services),
        end=died,
    )
    server.start()
    try:
        yield server, metrics
    finally:
        server.close()
    if deaths is None:
        assert died.names == []


def until(condition: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def asked(
    server: QueryServer, text: str = "something", generation: int | None = None
) -> AnsweredQuery:
    """One answered query."""
    query = PendingQuery(text, 10, "fused", generation)
    server.submit(query)
    return query.answer.result(PATIENCE_S)


def answers(server: QueryServer, generation: int | None) -> bool:
    """Whether a query for that generation is answered."""
    try:
        return asked(server, generation=generation).generation == generation
    except SigmaError:
        return False


def value(metrics: QueryMetrics, name: str) -> float:
    """A metric's value."""
    return metrics.registry.get_sample_value(name) or 0.0


def filled(services: Services, conn: Connection, count: int = 30) -> tuple[int, int]:
    """A live generation and a shadow one, both complete."""
    first, second = stub_generation(conn), shadow_generation(conn)
    leave_in(conn, first, accepted(services.store, [f"image {number}" for number in range(count)]))
    CatchUp(conn, generations.get(conn, second), services.store, StubAssigner.of).run()
    return first, second


@contextmanager
def http_serving(
    services: Services,
    load: LoadSearcher | None = None,
    host: str = "127.0.0.1",
    ready: str = "/readyz",
    maintenance: Maintenance | None = None,
) -> Iterator[str]:
    """The address of a query worker that listens on a free port of this machine.

    `ready` is what answers with 200 once the block may begin.
    """
    stop = threading.Event()
    errors: list[BaseException] = []
    listener = bind(host, 0)

    def run() -> None:
        try:
            http.run(
                services,
                stop,
                load or stub_searcher_loader(services),
                maintenance or api_maintenance(),
                listener,
            )
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    # An address that is not loopback listens to all, so loopback reaches it.
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        until(lambda: errors or _is_ready(url + ready), "the worker is ready")
        yield url
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        listener.close()
    assert errors == []


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False
