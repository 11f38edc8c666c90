"""The protocol between the decode pool and its processes, over the two pipes of each process.

The process writes the ready mark once. A request is one part, the image bytes; its reply is two
parts, a JSON object and the PNG bytes. A part is a 4-byte big-endian length and that many bytes.
"""

import json
import struct
from dataclasses import dataclass
from typing import BinaryIO

# The ready mark: the process has its memory limit and waits for requests.
READY = b"\x00"

_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class NormalizedImage:
    """An image as the store keeps it: RGB, longest side at most `normalize.LONGEST_SIDE` pixels."""

    png: bytes
    width: int
    """Pixels of the image that arrived, turned upright; so is `height`."""
    height: int
    format: str
    """Format of the image that arrived, as Pillow names it: JPEG, PNG, WEBP, HEIF and others."""


@dataclass(frozen=True, slots=True)
class RefusedImage:
    """Why an image was not decoded: the code and the message of a `RejectInputError`.

    Not the error itself: its traceback would keep the image in memory.
    """

    code: str
    reason: str


def write_part(stream: BinaryIO, part: bytes) -> None:
    """Write one part, without flushing."""
    stream.write(_LENGTH.pack(len(part)))
    stream.write(part)


def read_part(stream: BinaryIO) -> bytes:
    """Read one part; `EOFError` when the other side is gone."""
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError("the pipe ended before a part")
    (length,) = _LENGTH.unpack(header)
    part = stream.read(length)
    if len(part) < length:
        raise EOFError("the pipe ended inside a part")
    return part


def write_reply(stream: BinaryIO, reply: NormalizedImage | RefusedImage) -> None:
    """Write the reply to one request."""
    if isinstance(reply, RefusedImage):
        write_part(stream, json.dumps({"code": reply.code, "reason": reply.reason}).encode())
        write_part(stream, b"")
    else:
        size = {"width": reply.width, "height": reply.height, "format": reply.format}
        write_part(stream, json.dumps(size).encode())
        write_part(stream, reply.png)
    stream.flush()


def read_reply(stream: BinaryIO) -> NormalizedImage | RefusedImage:
    """Read the reply to one request; `EOFError` when the process died of it."""
    answer = json.loads(read_part(stream))
    png = read_part(stream)
    if "code" in answer:
        return RefusedImage(str(answer["code"]), str(answer["reason"]))
    return NormalizedImage(
        png=png,
        width=int(answer["width"]),
        height=int(answer["height"]),
        format=str(answer["format"]),
    )
