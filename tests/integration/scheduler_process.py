"""One scheduler process of the tests: a job every two seconds that notes when it ran, and one that takes as long as that."""

import os
import sys
import time
from collections.abc import Mapping

from ops.jobs import scheduler
from ops.jobs.registry import Figures, Job
from schemas.settings import Settings
from workers.repository.connection import Connection
from workers.runtime.logs import configure
from workers.runtime.process import stop_on_signals
from workers.runtime.services import Services

EVERY_S = 2.0


def note(services: Services, conn: Connection) -> Figures:
    """The job's work: a row of its own, so that running twice shows."""
    conn.execute("INSERT INTO noted (process) VALUES (%s)", (os.getpid(),))
    return {"process": os.getpid()}


def dawdle(services: Services, conn: Connection) -> Figures:
    """Longer than the other job's period, which it must not hold up; leaders are killed in the middle of it."""
    time.sleep(EVERY_S)
    return {"process": os.getpid()}


JOBS: Mapping[str, Job] = {
    "note": Job("note", EVERY_S, "note a row", note),
    "dawdle": Job("dawdle", 2 * EVERY_S, "take long", dawdle),
}

if __name__ == "__main__":
    configure("info")
    scheduler.run(Services(Settings(), sys.argv[1]), stop_on_signals(), JOBS)
