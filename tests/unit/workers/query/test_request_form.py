"""Heads that are too large, or that two programs could read in two ways, are refused."""

import pytest

from workers.query.request_form import form_refusal
from workers.runtime.connection_guard import MAX_HEAD_BYTES

HOST = (b"host", b"127.0.0.1")


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/v1/images/holiday%2Fbeach.jpg", b"caption=%C3%A9+100%25&metadata={}"),
        ("/v1/images/%ff", b""),
        ("/v1/query", b"k=5"),
        ("/", b""),
    ],
)
def test_usual_heads_pass(path: str, query: bytes) -> None:
    # Whether an id is UTF-8 is judged where it is read.
    assert form_refusal(path, query, [HOST, (b"content-length", b"5")]) is None


@pytest.mark.parametrize(
    ("path", "query", "headers", "sentence"),
    [
        ("/", b"", [HOST, (b"x", b"a" * MAX_HEAD_BYTES)], "at most 16,384 bytes"),
        ("/", b"", [HOST] * 1000, "at most 16,384 bytes"),
        ("/" + "a" * MAX_HEAD_BYTES, b"", [HOST], "at most 16,384 bytes"),
        ("/", b"a" * MAX_HEAD_BYTES, [HOST], "at most 16,384 bytes"),
        (
            "/v1/query",
            b"",
            [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
            "got both",
        ),
        ("/v1/images/100%", b"", [HOST], "encode it as %25"),
        ("/v1/images/a%2", b"", [HOST], "encode it as %25"),
        ("/v1/images/a%zz", b"", [HOST], "encode it as %25"),
        ("/v1/images/a", b"caption=100%", [HOST], "encode it as %25"),
        ("/v1/images/a", b"caption=%ff", [HOST], "must be UTF-8"),
        ("/v1/images/a", b"caption=%ED%A0%80", [HOST], "must be UTF-8"),
        ("/v1/images/a", b"caption=\xe9", [HOST], "must be UTF-8"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(
    path: str, query: bytes, headers: list[tuple[bytes, bytes]], sentence: str
) -> None:
    refusal = form_refusal(path, query, headers)
    assert refusal is not None
    assert refusal.status == 400
    assert sentence in refusal.sentence
