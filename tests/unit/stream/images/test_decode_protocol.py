"""The protocol of the decode pool: what one side writes, the other reads, or it notices the end."""

import io

import pytest

from stream.images.decode_protocol import (
    NormalizedImage,
    RefusedImage,
    read_part,
    read_reply,
    write_part,
    write_reply,
)


@pytest.mark.parametrize(
    "reply",
    [
        NormalizedImage(png=b"\x89PNG", width=80, height=60, format="JPEG"),
        RefusedImage(code="truncated", reason="send the whole file – “ganz”"),
    ],
)
def test_a_reply_survives_the_pipe(reply: NormalizedImage | RefusedImage) -> None:
    pipe = io.BytesIO()
    write_reply(pipe, reply)
    pipe.seek(0)
    assert read_reply(pipe) == reply
    assert pipe.read() == b""


@pytest.mark.parametrize("kept_bytes", [0, 3, 4, 8])
def test_a_part_that_is_cut_short_is_the_end_of_the_pipe(kept_bytes: int) -> None:
    pipe = io.BytesIO()
    write_part(pipe, b"image")
    with pytest.raises(EOFError):
        read_part(io.BytesIO(pipe.getvalue()[:kept_bytes]))
