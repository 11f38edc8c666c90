"""One scheduler process of the tests: a job every two seconds, and one that takes so long."""

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from ops.jobs.registry import Job
from ops.jobs.scheduler import Scheduler
from schemas.schedules import Schedule
from schemas.settings import Settings
from workers.repository.connection import Connection
from workers.runtime.logs import configure
from workers.runtime.process import stop_on_signals
from workers.runtime.services import Services

EVERY_S = 2
"""Period of the quick job."""


@dataclass(frozen=True)
class Figures:
    """A job's result: whatever a test wants to read in the run's row."""

    values: Mapping[str, object]

    def to_json(self) -> dict[str, object]:
        return dict(self.values)


def note(services: Services, conn: Connection) -> Figures:
    """The job's work: a row of its own, so that running twice shows."""
    conn.execute("INSERT INTO noted (process) VALUES (%s)", (os.getpid(),))
    return Figures({"process": os.getpid()})


def dawdle(services: Services, conn: Connection) -> Figures:
    """Take as long as the other job's period; leaders are killed in the middle of it."""
    time.sleep(EVERY_S)
    return Figures({"process": os.getpid()})


PERIODS_S = {"note": EVERY_S, "dawdle": 2 * EVERY_S}

JOBS: Mapping[str, Job] = {
    "note": Job("note", "note a row", note, Schedule(f"every {PERIODS_S['note']}")),
    "dawdle": Job("dawdle", "take long", dawdle, Schedule(f"every {PERIODS_S['dawdle']}")),
}

if __name__ == "__main__":
    configure("info")
    Scheduler(Services(Settings(), sys.argv[1]), JOBS).run(stop_on_signals())
