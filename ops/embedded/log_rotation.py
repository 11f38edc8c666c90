"""Log rotation: the logs of a home's processes are bounded, whatever the processes print.

The processes write to inherited files, tracebacks of the interpreter and of C libraries included,
so nothing in them could rotate. The file is copied and emptied in place: every writer appends, so
it goes on at the new end. Lines written between the two steps, a millisecond apart, are lost.
"""

import shutil
import time
from contextlib import suppress
from pathlib import Path

# Bytes from which a log is set aside: a few days of a busy worker.
MAX_LOG_BYTES = 32 << 20

# Logs of each process that are kept beside the present one.
KEPT_LOGS = 2

# Seconds between looks. At 10 MB a second, more than a disk full of errors wants, a log reaches
# twice its bound.
_EVERY_S = 3.0


class LogRotation:
    """Bounds the logs of one folder, when asked often enough."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._looked_at_s = 0.0

    def step(self) -> None:
        """Rotate what has grown too large, if it is time to look again."""
        if time.monotonic() - self._looked_at_s < _EVERY_S:
            return
        self._looked_at_s = time.monotonic()
        for log_file in self._folder.glob("*.log"):
            # A full disk, or a log that somebody removes, must not end whoever supervises.
            with suppress(OSError):
                rotate(log_file)


def rotate(log_file: Path, limit: int = MAX_LOG_BYTES) -> None:
    """Set a log aside as `NAME.log.1`, and older ones as `.2` and so on, if it is too large."""
    if log_file.stat().st_size <= limit:
        return
    for number in range(KEPT_LOGS, 1, -1):
        older = log_file.with_name(f"{log_file.name}.{number - 1}")
        if older.exists():
            older.replace(log_file.with_name(f"{log_file.name}.{number}"))
    try:
        shutil.copyfile(log_file, log_file.with_name(f"{log_file.name}.1"))
    finally:
        # Even when there is no space for the copy: then above all.
        with log_file.open("r+b") as file:
            file.truncate(0)
