"""A worker with the stub model: `python -m ops.bench.stub_worker index|query`.

It is like `sigma worker index|query`, with `ops.bench.stub` in place of the model.
"""

import os
import sys
import threading
from functools import partial

from ops.bench.stub import StubAssigner
from schemas.settings import Settings
from workers.index import IndexWorker
from workers.repository.connection import MEMBER_LIMITS
from workers.runtime.logs import configure
from workers.runtime.metrics import IndexMetrics
from workers.runtime.process import stop_on_signals
from workers.runtime.relay import start_relay
from workers.runtime.services import Services


def main(role: str) -> None:
    """Run one worker process until a signal."""
    settings = Settings.from_environment(os.environ)
    assert settings.database_url is not None
    configure(settings.log_level)
    services = Services(settings, settings.database_url)
    stop = stop_on_signals()
    if role == "query":
        _run_query(services, stop)
    else:
        _run_index(services, stop)


def _run_query(services: Services, stop: threading.Event) -> None:
    # Imported here: an index worker with the stub starts without PyTorch.
    from ops.bench.stub_query import serve

    serve(services, stop)


def _run_index(services: Services, stop: threading.Event) -> None:
    start_relay(services.settings.kafka, services.database_url, stop)
    worker = IndexWorker(services.store, StubAssigner.of, IndexMetrics())
    worker.run(partial(services.connect, limits=MEMBER_LIMITS), services.open_log, stop)


if __name__ == "__main__":
    main(sys.argv[1])
