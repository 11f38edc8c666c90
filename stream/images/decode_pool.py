"""The decode pool: processes that turn hostile bytes into pictures, with limits on memory and time.

A decoder's bug then costs one image, not the worker: a process has no credentials in its
environment, and is killed when it takes too long.
"""

import os
import queue
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from schemas.errors import RejectInputError, RetryLaterError
from schemas.settings import MEBIBYTE
from stream.images.decode_protocol import (
    LONGEST_SIDE,
    READY,
    NormalizedImage,
    RefusedImage,
    read_reply,
    write_request,
)
from stream.images.decode_watchdog import Watchdog

_PROCESS_MODULE = "stream.images.normalize"
_LARGE_BLOCK_BYTES = 128 << 10
_PROJECT_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What one image may cost."""

    max_bytes: int = 20 * MEBIBYTE
    max_pixels: int = 64_500_000
    """Phones take 50 and 64 million pixels: 8,160 x 6,144 and 9,248 x 6,936."""
    memory_bytes: int = 256 * MEBIBYTE
    """Address space beyond that of the idle process."""
    timeout_s: float = 10.0
    """Of processor time."""


class DecodePool:
    """Decodes images in processes, started when first needed and replaced when they die.

    Safe for several threads.
    """

    def __init__(self, limits: DecodeLimits | None = None, *, processes: int = 1) -> None:
        self.limits = limits or DecodeLimits()
        self._size = processes
        # Always as many entries as the pool's size, less those in use; None is not started yet.
        # A thread that takes an entry is the only one to use that process until it puts it back.
        self._idle: queue.SimpleQueue[_DecoderProcess | None] = queue.SimpleQueue()
        for _ in range(processes):
            self._idle.put(None)

    def decode(self, data: bytes, longest_side: int = LONGEST_SIDE) -> NormalizedImage:
        """Decode an image and shrink it to `longest_side` pixels; waits for a free process.

        Raises `RejectInputError` with the codes empty, too-many-bytes, not-an-image,
        unsupported-format, truncated, too-many-parts, too-many-pixels, aspect-ratio, animated,
        decode-failed, out-of-memory and timeout.
        """
        if len(data) > self.limits.max_bytes:
            raise RejectInputError(
                "too-many-bytes",
                f"the image must have at most {self.limits.max_bytes:,} bytes "
                f"(SIGMA_MAX_IMAGE_BYTES={self.limits.max_bytes}), got {len(data):,}; "
                "shrink it or raise it",
            )
        process = self._idle.get()
        try:
            if process is not None and not process.alive:
                process.close()
                process = None
            if process is None:
                process = _DecoderProcess.start(self.limits)
            return process.decode(data, longest_side, self.limits.timeout_s)
        finally:
            # A dead process goes back too; whoever takes it next replaces it.
            self._idle.put(process)

    def close(self) -> None:
        """End the processes; waits for images that are being decoded."""
        for _ in range(self._size):
            process = self._idle.get()
            if process is not None:
                process.close()
        for _ in range(self._size):
            self._idle.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _DecoderProcess:
    """One decoding process and its two pipes. Used by one thread at a time."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._requests = cast(BinaryIO, process.stdin)
        self._replies = cast(BinaryIO, process.stdout)

    @classmethod
    def start(cls, limits: DecodeLimits) -> "_DecoderProcess":
        """Start a process and wait until it is ready; `RetryLaterError` when it ends instead."""
        started = cls(_spawn(limits))
        if started._replies.read(len(READY)) != READY:
            started.close()
            raise RetryLaterError(
                f"the decoding process did not start; run {sys.executable} -m {_PROCESS_MODULE} "
                f"{limits.max_pixels} {limits.memory_bytes} to see why"
            )
        return started

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def decode(self, data: bytes, longest_side: int, timeout_s: float) -> NormalizedImage:
        """Decode one image; a process that computes longer than the timeout is killed."""
        # A watchdog and not a timeout of the pipe: reads of pipes have none, but end with the
        # process.
        watchdog = Watchdog(self._process, timeout_s)
        try:
            with watchdog:
                write_request(self._requests, data, longest_side)
                reply = read_reply(self._replies)
        except (OSError, EOFError) as error:
            self.close()
            if watchdog.overdue:
                raise RejectInputError(
                    "timeout",
                    f"the image must decode within {timeout_s:g} seconds of computing, got no "
                    "answer by then; send a smaller or simpler copy",
                ) from error
            raise RejectInputError(
                "decode-failed",
                "the image cannot be decoded: the decoding process died of it; "
                "save it again and send that",
            ) from error
        if isinstance(reply, RefusedImage):
            raise RejectInputError(reply.code, reply.reason)
        return reply

    def close(self) -> None:
        """Kill the process and close its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._replies, self._requests):
            try:
                pipe.close()
            except BrokenPipeError:
                # Closing flushes, and the dead process does not read the rest.
                continue


def _spawn(limits: DecodeLimits) -> "subprocess.Popen[bytes]":
    # A new environment, because the worker's may hold the database's password.
    environment = {
        "PYTHONPATH": os.pathsep.join([str(_PROJECT_ROOT), *(path for path in sys.path if path)]),
        "PATH": os.defpath,
        # A decoder's thread would otherwise reserve 64 MiB of the address space for itself.
        "MALLOC_ARENA_MAX": "1",
        # Large blocks go back to the system when they are freed. Left to itself, glibc soon keeps
        # them in pieces (mallopt(3), M_MMAP_THRESHOLD), and the next large picture finds no room.
        "MALLOC_MMAP_THRESHOLD_": str(_LARGE_BLOCK_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(_LARGE_BLOCK_BYTES),
    }
    # -P: a module in the working directory must not replace one of the standard library.
    command = [
        sys.executable,
        "-P",
        "-m",
        _PROCESS_MODULE,
        str(limits.max_pixels),
        str(limits.memory_bytes),
    ]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        # Signals to the worker's terminal group must not end it in the middle of an image.
        start_new_session=True,
    )
