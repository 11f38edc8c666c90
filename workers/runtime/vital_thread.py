"""The vital thread: a thread without which its process is of no use.

A thread that dies of an error leaves a process that looks alive and does nothing. So the process
ends, and its supervisor starts it again: every worker survives being killed at any moment.
"""

import os
import threading
from collections.abc import Callable

import structlog

_EXIT_CODE = 1

# Called in the dying thread with the thread's name and the error that ended it.
EndProcess = Callable[[str, BaseException], None]

log = structlog.get_logger()


def end_process(thread: str, error: BaseException) -> None:
    """Log what happened and end this process at once."""
    try:
        log.critical(
            "a thread died, ending the process",
            thread=thread,
            reason=f"{type(error).__name__}: {error}",
            exc_info=error,
        )
    finally:
        # Not `sys.exit`, which ends only this thread. Nor an orderly end: it would wait for other
        # threads, which may be stuck for the same reason.
        os._exit(_EXIT_CODE)


class VitalThread(threading.Thread):
    """A daemon thread whose error ends the process; returning is not an error."""

    def __init__(
        self, name: str, target: Callable[[], None], end: EndProcess = end_process
    ) -> None:
        """`end` is what happens on an error."""
        super().__init__(name=name, daemon=True)
        self._body = target
        self._end = end

    def run(self) -> None:
        """Run the target in this thread."""
        try:
            self._body()
        except BaseException as error:
            self._end(self.name, error)


def exit_within(seconds: float) -> None:
    """End this process after that time, however long its other threads take to stop.

    For a process that failed: at its end the interpreter waits for threads that may be stuck.
    """
    timer = threading.Timer(seconds, os._exit, (_EXIT_CODE,))
    timer.daemon = True
    timer.start()
