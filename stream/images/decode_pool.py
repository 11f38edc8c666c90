"""Decoding: the pool of processes that turn hostile bytes into pictures, each with a memory limit and a time limit."""

import json
import os
import queue
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from schemas.errors import RejectInputError, RetryLaterError
from schemas.settings import MEBIBYTE


@dataclass(frozen=True, slots=True)
class NormalizedImage:
    """`png` is RGB, longest side at most 448 pixels; width, height and format are those of the image that arrived, upright."""

    png: bytes
    width: int
    height: int
    format: str


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What one image may cost. `memory_bytes` is address space beyond that of the idle process."""

    max_bytes: int = 20 * MEBIBYTE
    max_pixels: int = 50_000_000
    memory_bytes: int = 256 * MEBIBYTE
    timeout_s: float = 10.0


class DecodePool:
    """Decodes images in child processes, started when first needed and replaced when they die. Safe for several threads.

    A decoder's bug then costs one image, not the worker: the child has no credentials in its environment and is killed
    when it takes too long.
    """

    def __init__(self, limits: DecodeLimits | None = None, *, processes: int = 1) -> None:
        self.limits = limits or DecodeLimits()
        self._idle: queue.SimpleQueue[_DecoderProcess | None] = queue.SimpleQueue()
        self._size = processes
        for _ in range(processes):
            self._idle.put(None)

    def decode(self, data: bytes) -> NormalizedImage:
        """The picture in the bytes. `RejectInputError` codes: empty, too-many-bytes, not-an-image, unsupported-format,
        truncated, too-many-parts, too-many-pixels, animated, decode-failed, out-of-memory, timeout."""
        if len(data) > self.limits.max_bytes:
            raise RejectInputError(
                "too-many-bytes",
                f"it has {len(data):,} bytes, allowed are {self.limits.max_bytes:,}; shrink it or raise SIGMA_MAX_IMAGE_BYTES",
            )
        child = self._idle.get()
        try:
            if child is not None and not child.alive:
                child.close()
                child = None
            if child is None:
                child = _DecoderProcess(self.limits)
            return child.decode(data, self.limits.timeout_s)
        finally:
            self._idle.put(child)

    def close(self) -> None:
        """Ends the processes; waits for images that are being decoded."""
        for _ in range(self._size):
            child = self._idle.get()
            if child is not None:
                child.close()
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
    """One decoding process and its two pipes."""

    def __init__(self, limits: DecodeLimits) -> None:
        house = str(Path(__file__).resolve().parents[2])
        # Nothing of the parent's environment goes along: it may hold the database's password.
        environment = {
            "PYTHONPATH": os.pathsep.join([house, *(p for p in sys.path if p)]),
            "PATH": os.defpath,
        }
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "stream.images.normalize",
                str(limits.max_pixels),
                str(limits.memory_bytes),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._replies: IO[bytes] = self._process.stdout
        if self._replies.read(1) != b"\x00":
            self.close()
            raise RetryLaterError(
                f"the decoding process did not start: {sys.executable} -m stream.images.normalize; run it by hand to see why"
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def decode(self, data: bytes, timeout_s: float) -> NormalizedImage:
        overdue = threading.Event()

        def kill() -> None:
            overdue.set()
            self._process.kill()

        watch = threading.Timer(timeout_s, kill)
        watch.daemon = True
        watch.start()
        try:
            answer, png = self._ask(data)
        except (OSError, EOFError) as error:
            self.close()
            if overdue.is_set():
                message = f"decoding took longer than {timeout_s:g} seconds; send a smaller or simpler copy"
                raise RejectInputError("timeout", message) from error
            raise RejectInputError(
                "decode-failed", "the decoding process died of it; send a JPEG, PNG or WebP image"
            ) from error
        finally:
            watch.cancel()
        if "code" in answer:
            raise RejectInputError(str(answer["code"]), str(answer["reason"]))
        return NormalizedImage(
            png=png,
            width=int(answer["width"]),
            height=int(answer["height"]),
            format=str(answer["format"]),
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._replies, self._requests):
            try:
                pipe.close()
            except BrokenPipeError:
                # Bytes that the dead process never read are of no use to anybody.
                continue

    def _ask(self, data: bytes) -> tuple[dict[str, str | int], bytes]:
        self._requests.write(struct.pack(">I", len(data)) + data)
        self._requests.flush()
        answer: dict[str, str | int] = json.loads(self._part())
        return answer, self._part()

    def _part(self) -> bytes:
        header = self._replies.read(4)
        if len(header) < 4:
            raise EOFError("the reply ended")
        (length,) = struct.unpack(">I", header)
        part = self._replies.read(length)
        if len(part) < length:
            raise EOFError("the reply ended")
        return part
