"""File locks: who holds one is alive. The kernel frees it when its holder ends, however it ends."""

import fcntl
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from ops.embedded.process_identity import ProcessIdentity

_POLL_S = 0.02


class HeldLock:
    """A lock that this process holds until it closes it or ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def sign(self) -> None:
        """Write into the locked file which process holds it, for `holder`."""
        # A full disk is no reason not to work.
        with suppress(OSError):
            if self._descriptor is not None:
                os.ftruncate(self._descriptor, 0)
                text = json.dumps(asdict(ProcessIdentity.current()))
                os.pwrite(self._descriptor, text.encode("utf-8"), 0)

    def close(self) -> None:
        """Let go of the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def hold(path: Path, *, shared: bool = False, wait_s: float = 0.0) -> HeldLock | None:
    """Take the lock of a file, which is created; None when others still hold it after `wait_s`.

    Several processes can share it; otherwise there is one holder. Child processes do not inherit
    it.
    """
    # Locks of flock(2) belong to the open file, so two of one process exclude each other too, and
    # closing any other descriptor of the file keeps them. Those of fcntl(2) have neither.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if _lock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait_s):
        return HeldLock(descriptor)
    os.close(descriptor)
    return None


def hold_when_unused(path: Path) -> HeldLock:
    """Wait until nobody holds the lock, and take it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return HeldLock(descriptor)


def is_held(path: Path, *, exclusively: bool = False) -> bool:
    """Whether somebody holds the lock of a file; with `exclusively`, shared holders do not count.

    The look takes the lock for an instant: whoever takes a lock should try more than once.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH if exclusively else fcntl.LOCK_EX, 0.0)
    finally:
        os.close(descriptor)


def holder(path: Path) -> ProcessIdentity | None:
    """The process that holds a lock and has signed it; None when nobody does."""
    if not is_held(path):
        return None
    try:
        signed = ProcessIdentity(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    # It may have been signed by an earlier holder, which is no more.
    return signed if signed.alive else None


def _lock(descriptor: int, kind: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        else:
            return True
