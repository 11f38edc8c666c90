"""The protocol between the decode pool and its processes, over the two pipes of each process.

The process writes the ready mark once. A request is a 4-byte big-endian number, the pixels that the
picture's longer side may keep, and one part, the image bytes; its reply is two parts, a JSON object
and the PNG bytes. A part is a 4-byte big-endian length and that many bytes.
"""

import json
import struct
from dataclasses import dataclass
from typing import BinaryIO

# The ready mark: the process has its memory limit and waits for requests.
READY = b"\x00"

# Pixels of a stored picture's longer side where nobody needs more: a photo of four by three then
# has 336 on the other side, and encoders read 224 to 336 as a rule.
LONGEST_SIDE = 448

# A length, or a number of pixels.
_NUMBER = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class NormalizedImage:
    """An image as the store keeps it: RGB, longest side at most what was asked for."""

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
    stream.write(_NUMBER.pack(len(part)))
    stream.write(part)


def read_part(stream: BinaryIO) -> bytes:
    """Read one part; `EOFError` when the other side is gone."""
    header = stream.read(_NUMBER.size)
    if len(header) < _NUMBER.size:
        raise EOFError("the pipe ended before a part")
    (length,) = _NUMBER.unpack(header)
    part = stream.read(length)
    if len(part) < length:
        raise EOFError("the pipe ended inside a part")
    return part


def write_request(stream: BinaryIO, data: bytes, longest_side: int) -> None:
    """Write one request and flush it."""
    stream.write(_NUMBER.pack(longest_side))
    write_part(stream, data)
    stream.flush()


def read_request(stream: BinaryIO) -> tuple[int, bytes]:
    """Read one request: pixels of the longest side, and the image; `EOFError` at the end."""
    number = stream.read(_NUMBER.size)
    if len(number) < _NUMBER.size:
        raise EOFError("the pipe ended before a request")
    (longest_side,) = _NUMBER.unpack(number)
    return longest_side, read_part(stream)


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
