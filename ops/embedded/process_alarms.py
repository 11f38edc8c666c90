"""Process alarms: what is wrong with the processes of one machine, for `sigma status`.

A worker that dies again and again leaves its trace in the supervisor's record only: the database
shows no more than images that wait.
"""

import time

from ops.embedded.control import dead_supervisor, readiness, running
from ops.embedded.supervised_worker import DEATHS_KEPT_S
from ops.embedded.supervisor_record import WorkerRecord
from schemas.settings import Settings

# Deaths that are told: of a single one the worker has come back, and nothing is left to do.
_MANY = 2


def process_alarms(settings: Settings, *, is_live: bool, now: float | None = None) -> list[str]:
    """What the person on call should know of this home's processes.

    `now` is by `time.monotonic`, by default this moment. `is_live` tells whether a generation is
    live; without one no query can be answered, which is an alarm already.
    """
    supervisor = running(settings)
    if supervisor is None:
        if dead_supervisor(settings) is None:
            return []
        return ["the supervisor was killed and its processes have ended: start them with sigma up"]
    moment = time.monotonic() if now is None else now
    alarms = []
    for worker in supervisor.workers:
        alarms += worker_alarms(worker, moment)
    if is_live:
        found = readiness(supervisor, settings.access)
        if found.problem and not found.is_starting:
            alarms.append(f"queries are not answered: {found.problem}")
    return alarms


def worker_alarms(worker: WorkerRecord, now: float) -> list[str]:
    """Whether a worker dies again and again, or does not run now, with its last error."""
    # Older versions wrote the time of day, which is far ahead of this clock.
    recent = [moment for moment in worker.deaths if 0 <= now - moment < DEATHS_KEPT_S]
    if not recent or (len(recent) < _MANY and worker.process is not None):
        return []
    times = "once" if len(recent) == 1 else f"{len(recent)} times"
    state = "and is started again" if worker.process is None else f"last {_ago(now - recent[-1])}"
    return [
        f"the {worker.role} worker died {times} in the last {DEATHS_KEPT_S / 60:.0f} minutes,"
        f" {state}: {worker.last_error}; its log is {worker.log}"
    ]


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} minutes ago"
